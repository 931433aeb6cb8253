"""Runs of an older commit: today's code predicts the same with their checkpoints, and resumes them.

The older code is taken from the history, and writes the checkpoints here.
"""

import subprocess
import sys
import tarfile

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from training_helpers import drawn, metrics, train_here, words

from prediction.predictor import Predictor

pytestmark = pytest.mark.slow

OLD = "a185250"
SIZES = {
    "m2f": ("", ["--adapter", "pyramid"]),
    "upernet": ("upernet_", ["--hidden-dim", "8", "--adapter", "pyramid"]),
    "linear": ("linear_", []),
}
SCHEDULE = ["--epochs", "2", "--save-interval", "1", "--log-interval", "1", "--lr", "1e-4", "--seed", "3"]


@pytest.fixture(scope="module")
def old_code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    packed = folder / "code.tar"
    git = ["git", "-C", str(ROOT), "archive", "--output", str(packed), OLD, "--", "*.py"]
    if subprocess.run(git, capture_output=True).returncode != 0:
        pytest.skip(f"the history with {OLD} is not here: a shallow clone, or no git")
    with tarfile.open(packed) as code:
        code.extractall(folder, filter="data")
    return folder


def run(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("head", SIZES)
def test_their_checkpoints_predict_the_same_and_are_resumed(head, old_code, tmp_path):
    prefix, sizes = SIZES[head]
    data = drawn(tmp_path / "data")
    then, now = tmp_path / "then", tmp_path / "now"
    flags = [*data, *sizes, *SCHEDULE]
    run(old_code / f"demo/train_{head}_head.py", *words(head, then, *flags))

    first, last = (then / f"{prefix}checkpoint_epoch_{epoch}.pth" for epoch in (1, 2))
    images = tmp_path / "data/images/val"
    run(old_code / "demo/predict.py", "-m", last, "-d", images, "-od", tmp_path / "results", "--save", "masks")
    masks = sorted((tmp_path / "results").rglob("*.png"))
    assert [mask.stem for mask in masks] == [image.stem for image in sorted(images.iterdir())]
    predictor = Predictor.load(last)
    for mask in masks:
        assert np.array_equal(np.asarray(Image.open(mask)), predictor.predict(images / mask.name).classes)

    assert train_here(head, now, *flags, "--resume-checkpoint", str(first)) == 0
    (*_, before), (*_, after) = (metrics(folder, prefix, "train") for folder in (then, now))
    assert (before["epoch"], before["step"], before["lr"]) == (after["epoch"], after["step"], after["lr"])
    assert after["loss"] == pytest.approx(before["loss"], rel=2e-3)
