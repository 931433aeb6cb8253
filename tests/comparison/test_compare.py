"""A comparison: each head ends as by its own script, on one pass of the backbone; resuming, finished runs, refusals."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from panoptic_helpers import panoptic_set
from training_helpers import SMALL, assert_same_state, drawn, train_here

from comparison.compare import compare, steps_in_time
from comparison.config import parse_compare_arguments
from comparison.files import read_comparison, write_comparison
from comparison.together import Together
from data.drawn.sets import make_coco_demo_set
from errors import Interrupted, UserError, run_job
from segmenter import Segmenter
from training.config import parse_training_arguments
from training.features.cache import TRIAL_KEY, FeatureCache
from training.processes import make_accelerator
from training.run import train
from training.trainer import Trainer

pytestmark = pytest.mark.slow

PREFIXES = {"m2f": "", "upernet": "upernet_", "linear": "linear_"}
LIGHT = ("upernet", "linear")


def settings(head: str) -> list[str]:
    pairs = zip(SMALL[head][::2], SMALL[head][1::2], strict=True)
    return [f"{head}.{flag[2:]}={value}" for flag, value in pairs]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return drawn(tmp_path_factory.mktemp("data"), train=5, val=3)


def words(
    data: list[str], folder: Path, *more: str, heads: tuple[str, ...] = ("m2f", "upernet", "linear")
) -> list[str]:
    return [
        *data,
        *("--backbone", "test_vit", "--weights", "random", "--batch-size", "2", "--num-workers", "0"),
        *("--warmup-epochs", "0", "--drop-path", "0.2", "--checkpoint-dir", str(folder)),
        *(
            "--heads",
            *heads,
            "--set",
            *(["upernet.lr=0.0003"] if "upernet" in heads else []),
            *(word for head in heads for word in settings(head)),
            *more,
        ),
    ]


def run(data: list[str], folder: Path, *more: str, **options) -> int:
    config = parse_compare_arguments(words(data, folder, *more, **options))
    return run_job(lambda: compare(config) and None)


@pytest.fixture
def numbers_only(monkeypatch):
    """The report is its JSON file: drawing it takes longer than such a training."""

    def write(comparison, folder):
        write_comparison(folder / "comparison.json", comparison)

    monkeypatch.setattr("comparison.compare.write_report", write)


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory) -> Path:
    """A comparison of three heads, of two epochs each."""
    folder = tmp_path_factory.mktemp("compared")
    assert run(data, folder, "--budget", "epochs=2", "--save-interval", "1", "--num-workers", "1") == 0
    return folder


@pytest.mark.parametrize("number", range(3))
def test_each_head_ends_as_by_the_command_that_the_report_names(compared, tmp_path, number):
    result = read_comparison(compared / "report" / "comparison.json").results[number]
    python, script, *argv = shlex.split(result.command)
    assert (python, script) == ("python", f"demo/train_{result.head}_head.py")
    argv[argv.index("--checkpoint-dir") + 1] = str(tmp_path / "alone")
    assert run_job(lambda: train(parse_training_arguments(result.head, argv))) == 0
    name = f"{PREFIXES[result.head]}checkpoint_epoch_2.pth"
    assert_same_state(compared / "seed_0" / name, tmp_path / "alone" / name)


def test_the_report_has_what_the_logs_say(compared):
    comparison = read_comparison(compared / "report" / "comparison.json")
    assert [result.head for result in comparison.results] == ["m2f", "upernet", "linear"]
    for result in comparison.results:
        log = compared / "seed_0" / f"{PREFIXES[result.head]}metrics.jsonl"
        lines = [line for line in map(json.loads, log.read_text().splitlines()) if line["split"] == "val"]
        best = max(line["miou"] for line in lines)
        assert result.metrics["mIoU"] == pytest.approx(best, abs=1e-6)
        assert [point.value for point in result.curve] == [line["miou"] for line in lines]
        assert result.checkpoint_bytes == Path(result.checkpoint).stat().st_size
        assert result.step_seconds > 0 and result.image_seconds > 0 and len(result.per_image) == 3
    assert (compared / "report" / "report.html").is_file()


def test_all_heads_wait_for_the_same_data(compared):
    logs = [compared / "seed_0" / f"{prefix}metrics.jsonl" for prefix in PREFIXES.values()]
    lines = [[json.loads(line) for line in log.read_text().splitlines()] for log in logs]
    assert all(line["data_wait"] > 0 for of_head in lines for line in of_head if line["split"] == "train")


def test_each_batch_passes_the_backbone_once(data, tmp_path, monkeypatch, numbers_only):
    passes, has_features = [], []
    own_pass, own_forward = Together.with_features, Segmenter.forward

    def counted(self, batch):
        passes.append(tuple(batch.sample_ids))
        return own_pass(self, batch)

    def forward(self, images, features=None):
        if self.training:
            has_features.append(features is not None)
        return own_forward(self, images, features)

    cached, own_computed = [], FeatureCache._computed

    def computed(self, images, keys):
        cached.extend(keys)
        return own_computed(self, images, keys)

    monkeypatch.setattr(Together, "with_features", counted)
    monkeypatch.setattr(Segmenter, "forward", forward)
    monkeypatch.setattr(FeatureCache, "_computed", computed)
    assert run(data, tmp_path / "run", "--budget", "epochs=2", heads=LIGHT) == 0
    assert len(passes) == 2 * 3 and len(set(cached)) == len(cached) == 3  # validation images once in all
    assert has_features == [True] * len(LIGHT) * 6


def test_the_heads_of_a_comparison_share_a_cache(data, tmp_path, monkeypatch, numbers_only):
    computed, own = [], FeatureCache._computed

    def counted(self, images, keys):
        computed.extend(keys)
        return own(self, images, keys)

    monkeypatch.setattr(FeatureCache, "_computed", counted)
    flags = ("--budget", "epochs=2", "--cache-features", "ram", "--cache-views", "1")
    assert run(data, tmp_path / "run", *flags, heads=LIGHT) == 0
    assert len([key for key in computed if key != TRIAL_KEY]) == 5 + 3


@pytest.mark.parametrize("stopped", ["upernet", "linear"])
def test_an_interrupted_comparison_is_resumed(compared, data, tmp_path, monkeypatch, stopped, numbers_only):
    """Interrupted after the step of the first head, or of the last one; the others are a step behind, or equal."""
    own = Trainer.step

    def interrupted(self, micro_batches):
        own(self, micro_batches)
        if self.segmenter.spec.head == stopped and self.progress.step == 4:
            raise Interrupted(15)

    flags = ("--budget", "epochs=2", "--save-interval", "1", "--resume-checkpoint", "auto")
    monkeypatch.setattr(Trainer, "step", interrupted)
    assert run(data, tmp_path / "run", *flags, heads=LIGHT) == 143
    monkeypatch.setattr(Trainer, "step", own)
    assert run(data, tmp_path / "run", *flags, heads=LIGHT) == 0
    for head in LIGHT:
        name = f"{PREFIXES[head]}checkpoint_epoch_2.pth"
        assert_same_state(compared / "seed_0" / name, tmp_path / "run" / "seed_0" / name)


def test_one_after_the_other_gives_the_same(compared, data, tmp_path, numbers_only):
    assert run(data, tmp_path, "--budget", "epochs=2", "--save-interval", "1", "--one-by-one", heads=LIGHT) == 0
    for head in LIGHT:
        name = f"{PREFIXES[head]}checkpoint_epoch_2.pth"
        assert_same_state(compared / "seed_0" / name, tmp_path / "seed_0" / name)


def test_minutes_are_steps_of_each_head_which_resuming_keeps(data, tmp_path, monkeypatch, numbers_only):
    monkeypatch.setattr(Together, "step_seconds", lambda self: {"upernet": 12.0, "linear": 6.7})
    flags = ("--budget", "minutes=1", "--save-interval", "1")
    assert run(data, tmp_path, *flags, heads=LIGHT) == 0
    monkeypatch.setattr(Together, "step_seconds", lambda self: pytest.fail("timed again"))
    assert run(data, tmp_path, *flags, "--resume-checkpoint", "auto", heads=LIGHT) == 0
    results = read_comparison(tmp_path / "report" / "comparison.json").results
    assert {result.head: result.curve[-1].step for result in results} == {"upernet": 5, "linear": 8}
    for head, steps in (("upernet", 5), ("linear", 8)):  # of three in an epoch: both end within one
        flags = [
            *data,
            "--max-steps",
            str(steps),
            "--drop-path",
            "0.2",
            "--best-metric",
            "miou",
            "--save-interval",
            "1",
        ]
        flags += ["--lr", "0.0003"] if head == "upernet" else []
        assert train_here(head, tmp_path / "alone", *flags) == 0
        name = f"{PREFIXES[head]}checkpoint_step_{steps}.pth"
        assert_same_state(tmp_path / "seed_0" / name, tmp_path / "alone" / name)


def test_a_trial_times_steps_and_writes_nothing(data, tmp_path):
    config = parse_compare_arguments(words(data, tmp_path, "--budget", "minutes=1", heads=LIGHT))
    steps = steps_in_time(config, 0, "all", make_accelerator("auto"))
    assert steps["linear"] >= steps["upernet"] >= 1
    assert [path.name for path in (tmp_path / "seed_0").iterdir() if not path.name.startswith(".")] == ["budget.json"]


def test_seeds_and_sizes_of_the_training_set(data, tmp_path, numbers_only):
    flags = ("--budget", "steps=3", "--seeds", "2", "--train-sizes", "2", "all")
    assert run(data, tmp_path, *flags, heads=LIGHT) == 0
    results = read_comparison(tmp_path / "report" / "comparison.json").results
    found = {(result.head, result.seed, result.train_size) for result in results}
    assert found == {(head, seed, size) for head in LIGHT for seed in (0, 1) for size in (2, 5)}


@pytest.mark.parametrize(("task", "metric"), [("instance", "AP"), ("panoptic", "PQ")])
def test_heads_that_find_objects_are_compared_by_them(tmp_path, numbers_only, task, metric):
    if task == "instance":
        make_coco_demo_set(tmp_path / "data", 3, 2, 64)
        data = ["--coco-dir", str(tmp_path / "data")]
    else:
        json_file, images, segments = panoptic_set(tmp_path / "data", 3)
        data = ["--coco-json", json_file, "--coco-images", images, "--coco-segments", segments]
        data += ["--validate", "--val-fraction", "0.5"]
    flags = ("--task", task, "--image-size", "64", "--budget", "steps=2")
    assert run(data, tmp_path / "run", *flags, heads=("m2f", "pmt")) == 0
    comparison = read_comparison(tmp_path / "run" / "report" / "comparison.json")
    assert comparison.task == task and comparison.metric == metric and len(comparison.results) == 2
    everything = np.ones(len(comparison.sample_ids), np.int64)
    for result in comparison.results:
        assert result.per_image.value(everything) == pytest.approx(result.metrics[metric], abs=1e-6)


def test_finished_runs_are_compared(data, tmp_path, numbers_only):
    for head in LIGHT:
        assert train_here(head, tmp_path / head, *data, "--max-steps", "2", "--best-metric", "miou") == 0
    flags = ["--runs", str(tmp_path / "upernet"), str(tmp_path / "linear"), "--checkpoint-dir", str(tmp_path / "both")]
    assert run_job(lambda: compare(parse_compare_arguments(flags)) and None) == 0
    results = read_comparison(tmp_path / "both" / "report" / "comparison.json").results
    assert [result.name for result in results] == ["UPerNet", "linear"]


def test_runs_of_other_images_or_classes_are_refused(data, tmp_path):
    other = drawn(tmp_path / "other", train=4, val=2)
    runs = {"first": data, "images": other, "classes": [*data, "--class-names", *"abcde"]}
    for name, flags in runs.items():
        assert train_here("linear", tmp_path / name, *flags, "--max-steps", "1") == 0
    for name in ("images", "classes"):
        flags = ["--runs", str(tmp_path / "first"), str(tmp_path / name), "--checkpoint-dir", str(tmp_path / "no")]
        with pytest.raises(UserError, match=f"--runs .*{name}"):
            compare(parse_compare_arguments(flags))
