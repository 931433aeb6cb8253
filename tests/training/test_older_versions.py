"""Runs of an older commit: today's code predicts the same with their checkpoints, and resumes them.

The older code is taken from the history, and writes the checkpoints here.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from training_helpers import data_flags, drawn, metrics, train_here, words

from prediction.predictor import Predictor

pytestmark = pytest.mark.slow

OLD = "a185250"
SIZES = {
    "m2f": ("", ["--adapter", "pyramid"]),
    "upernet": ("upernet_", ["--hidden-dim", "8", "--adapter", "pyramid"]),
    "linear": ("linear_", []),
}
SCHEDULE = ["--epochs", "2", "--save-interval", "1", "--log-interval", "1", "--lr", "1e-4", "--seed", "3"]


ALL_RUNS = """
import runpy, sys
folder, runs = sys.argv[1], eval(sys.argv[2])
sys.path.insert(0, folder)
from accelerate.state import AcceleratorState
for script, *words in runs:
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.argv = [script, *words]
    try:
        runpy.run_path(f"{folder}/demo/{script}", run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, (script, stop.code)
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """data/, and what the older code made of it, in one process: runs in HEAD/ and results in HEAD_results/."""
    folder = tmp_path_factory.mktemp("old")
    packed = folder / "code.tar"
    git = ["git", "-C", str(ROOT), "archive", "--output", str(packed), OLD, "--", "*.py"]
    if subprocess.run(git, capture_output=True).returncode != 0:
        pytest.skip(f"the history with {OLD} is not here: a shallow clone, or no git")
    with tarfile.open(packed) as code:
        code.extractall(folder / "code", filter="data")
    data = drawn(folder / "data")
    runs = []
    for head, (prefix, sizes) in SIZES.items():
        runs.append([f"train_{head}_head.py", *words(head, folder / head, *data, *sizes, *SCHEDULE)])
        last, images = folder / head / f"{prefix}checkpoint_epoch_2.pth", folder / "data/images/val"
        predict = ["-m", last, "-d", images, "-od", folder / f"{head}_results", "--save", "masks"]
        runs.append(["predict.py", *map(str, predict)])
    command = [sys.executable, "-c", ALL_RUNS, str(folder / "code"), repr(runs)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=one_thread, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("head", SIZES)
def test_their_checkpoints_predict_the_same_and_are_resumed(head, old, tmp_path):
    prefix, sizes = SIZES[head]
    images = old / "data/images/val"
    first, last = (old / head / f"{prefix}checkpoint_epoch_{epoch}.pth" for epoch in (1, 2))
    masks = sorted((old / f"{head}_results").rglob("*.png"))
    assert [mask.stem for mask in masks] == [image.stem for image in sorted(images.iterdir())]
    predictor = Predictor.load(last)
    for mask in masks:
        assert np.array_equal(np.asarray(Image.open(mask)), predictor.predict(images / mask.name).classes)

    flags = [*data_flags(old / "data"), *sizes, *SCHEDULE]
    assert train_here(head, tmp_path, *flags, "--resume-checkpoint", str(first)) == 0
    (*_, before), (*_, after) = (metrics(folder, prefix, "train") for folder in (old / head, tmp_path))
    assert (before["epoch"], before["step"], before["lr"]) == (after["epoch"], after["step"], after["lr"])
    assert after["loss"] == pytest.approx(before["loss"], rel=2e-3)
