"""--early-stopping ends a run whose validations get no better, also a resumed one; --tracker is given the log."""

import pytest
from training_helpers import drawn, metrics, train_here

import training.processes
from checkpoint import read_checkpoint
from errors import UserError
from training.checkpoints import Progress
from training.processes import make_accelerator

pytestmark = pytest.mark.slow

FLAGS = ["--epochs", "9", "--save-interval", "9", "--early-stopping", "2"]


@pytest.fixture
def best_at_once(monkeypatch):
    """The first validation is the best of all."""
    monkeypatch.setattr(Progress, "improves", lambda self, values, metrics: not self.best)


def test_a_run_ends_when_nothing_gets_better(tmp_path, best_at_once):
    data = drawn(tmp_path / "data")
    run = tmp_path / "run"
    assert train_here("linear", run, *data, *FLAGS) == 0
    assert [line["epoch"] for line in metrics(run, "linear_", "val")] == [1, 2, 3]
    (last,) = run.glob("*.pth")
    assert last.name == "linear_checkpoint_epoch_3.pth"
    assert read_checkpoint(last)["progress"]["not_better"] == 2
    (best,) = (run / "linear_best_model").iterdir()
    assert best.name == "linear_checkpoint_epoch_1.pth"
    # Nothing is left to do; without the flag it goes to its end.
    assert train_here("linear", run, *data, *FLAGS, "--resume-checkpoint", "auto") == 0
    assert len(metrics(run, "linear_", "val")) == 3
    assert train_here("linear", run, *data, *FLAGS[:4], "--resume-checkpoint", "auto") == 0
    assert metrics(run, "linear_", "val")[-1]["epoch"] == 9


def test_a_resumed_run_counts_the_validations_of_before(tmp_path, best_at_once):
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "2", "--early-stopping", "2") == 0
    assert train_here("linear", tmp_path / "run", *data, *FLAGS, "--resume-checkpoint", "auto") == 0
    assert [line["epoch"] for line in metrics(tmp_path / "run", "linear_", "val")] == [1, 2, 3]


def test_it_needs_a_validation(tmp_path):
    with pytest.raises(SystemExit) as stop:
        train_here("linear", tmp_path, *drawn(tmp_path / "data")[:4], "--num-classes", "5", "--early-stopping", "2")
    assert stop.value.code == 2


def test_a_tracker_is_given_the_numbers_of_the_log(tmp_path, monkeypatch):
    import accelerate.tracking as tracking

    logged, stored = [], {}

    class Remembering(tracking.GeneralTracker):
        name, requires_logging_directory = "wandb", False

        def __init__(self, run_name):
            super().__init__()
            stored["project"] = run_name

        @property
        def tracker(self):
            return None

        def store_init_configuration(self, values):
            stored.update(values)

        def log(self, values, step=None):
            logged.append((step, values))

        def finish(self):
            stored["finished"] = True

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Remembering)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType("wandb")])
    monkeypatch.setattr(training.processes, "find_spec", lambda name: name)
    run = tmp_path / "run"
    assert train_here("linear", run, *drawn(tmp_path / "data"), "--epochs", "1", "--tracker", "wandb") == 0
    train, val = metrics(run, "linear_")
    assert [step for step, _ in logged] == [train["step"], val["step"]]
    assert logged[0][1]["train/loss"] == train["loss"] and logged[1][1]["val/miou"] == val["miou"]
    assert stored["lr"] == 1e-4 and stored["finished"]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(training.processes, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--tracker mlflow"):
        make_accelerator("fp32", "mlflow")
