"""The launchers: sound, documented, and never in a folder that holds a run."""

import os
import re
import subprocess

import pytest
from paths import ROOT

LAUNCHERS = ["run_train_m2f_example.sh", "run_train_upernet_example.sh", "run_compare_example.sh"]
INSTANCE_LAUNCHER = "demo/run_train_instance_example.sh"


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], "runs_2"),
        (["--resume-checkpoint", "auto"], "runs"),
        (["--resume_checkpoint=auto"], "runs"),
        (["--overwrite"], "runs"),
    ],
)
def test_launchers_take_a_new_folder_unless_they_resume(tmp_path, words, folder):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "checkpoint_epoch_1.pth").write_bytes(b"")
    script = f'set -euo pipefail; source "{ROOT}/demo/example_folder.sh" name "$@"; echo "$CHECKPOINT_DIR"'
    environment = {**os.environ, "CHECKPOINT_DIR": str(tmp_path / "runs")}
    done = subprocess.run(["bash", "-c", script, "bash", *words], env=environment, capture_output=True, text=True)
    assert re.fullmatch(rf".*/{folder}\n", done.stdout), done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_are_sound_and_linked(launcher):
    shared = [f"demo/{name}.sh" for name in ("environment", "example_data", "example_folder")]
    for script in (launcher, INSTANCE_LAUNCHER, *shared, "run_tests.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
    assert (ROOT / "demo" / launcher).resolve() == ROOT / launcher
    head = (ROOT / launcher).read_text(encoding="utf-8").split("set -euo")[0]
    for variable in (
        "IMAGES",
        "MASKS",
        "VAL_IMAGES",
        "VAL_MASKS",
        "NUM_CLASSES",
        "BACKBONE",
        "WEIGHTS",
        "CHECKPOINT_DIR",
    ):
        assert f"#   {variable}" in head
