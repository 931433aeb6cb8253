"""Several processes: they join whatever the device, wait for the first one's decisions, and share one folder."""

import pytest
from training_helpers import drawn, run_ranks, train_here, training_of

pytestmark = pytest.mark.slow


QUICK = "import training.processes; training.processes.SEEN_WITHIN_S = 1"
"""Where a folder is not shared, no process ever sees the mark."""


def test_the_others_wait_longer_than_the_group_does():
    """The check of a large data set takes longer than a group's time-out; here that is a second."""
    code = """
        import time
        from datetime import timedelta
        from accelerate import Accelerator, InitProcessGroupKwargs
        from errors import UserError
        from training.processes import decided
        accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=1))])
        def check():
            time.sleep(2)
            return {"val": ["a"]}
        print(decided(accelerator, "checking", check))
        def fail():
            raise UserError("no such folder")
        try:
            decided(accelerator, "checking", fail)
        except UserError as error:
            print(error)
    """
    done = run_ranks([code, code])
    assert [d.stdout for d in done] == ["{'val': ['a']}\nno such folder\n"] * 2, done[1].stderr
    assert "checking in one process" in done[0].stderr and "checking" not in done[1].stderr


def test_a_folder_that_is_not_shared_is_refused_in_all_processes(tmp_path):
    data = drawn(tmp_path / "data")
    folders = (tmp_path / "here", tmp_path / "there")
    done = run_ranks([training_of("linear", folder, *data, "--max-steps", "1", first=QUICK) for folder in folders])
    assert [d.returncode for d in done] == [2, 2]
    for one in done:
        assert "--checkpoint-dir" in one.stderr and "process 1 on" in one.stderr and "Traceback" not in one.stderr
    assert not list(tmp_path.rglob("*.pth")) and not list(tmp_path.rglob(".seen*"))


def test_the_first_process_decides_what_auto_resumes(tmp_path):
    """The second one reads the same file, also where it would have chosen another one."""
    data = [*drawn(tmp_path / "data"), "--epochs", "3", "--checkpointing-steps", "1", "--resume-checkpoint", "auto"]
    run = tmp_path / "run"
    assert train_here("linear", run, *data) == 0
    for path in (*run.glob("*epoch*.pth"), *run.glob("*/*.pth"), *run.glob("*step_[3-9].pth")):
        path.unlink()
    spoilt = "import training.checkpoints as resuming; resuming.newest_first = lambda files: 1 / 0"
    flags = [*data, "--batch-size", "1"]
    done = run_ranks([training_of("linear", run, *flags, first=first) for first in (QUICK, f"{QUICK}; {spoilt}")])
    assert [d.returncode for d in done] == [0, 0], done[1].stderr
    assert "linear_checkpoint_step_1.pth" in done[0].stdout
    assert (run / "linear_checkpoint_epoch_3.pth").exists()
