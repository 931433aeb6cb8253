"""Awkward data sets: each is trained on with the right labels, or refused in one message that names what is wrong."""

import faulthandler
import json
import re
import signal
import sys
from pathlib import Path

import awkward_masks as masks
import numpy as np
import pytest
from awkward_cases import BROKEN, USABLE, Case
from awkward_data import DataSet
from training_helpers import train_here

from data.labels import LabelRule
from data.sources.masks import MaskSource
from data.sources.pairs import Pair
from training.checkpoints import RunFiles

pytestmark = pytest.mark.slow

LIMIT_S = 20
GREY_TOLERANCE = 12
"""Of JPEG and CMYK, far less than the classes differ by."""


@pytest.fixture(autouse=True)
def limited(monkeypatch, tmp_path):
    """A hang is a failure: of Python code it ends this test, of anything else the whole session."""

    class TookTooLong(BaseException):  # no `except Exception` on the way may swallow it
        pass

    def stop(*_):
        raise TookTooLong(f"more than {LIMIT_S} s")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what is known of other files must not help
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    faulthandler.dump_traceback_later(3 * LIMIT_S, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def readings(monkeypatch) -> dict[tuple[Path, Path], np.ndarray]:
    """Fills with the class ids of every pair that is read for training or validation."""
    seen = {}
    read = MaskSource.read

    def watched(self, pair):
        content = read(self, pair)
        seen[pair.image, pair.mask] = content.classes
        return content

    monkeypatch.setattr(MaskSource, "read", watched)
    return seen


def made(case: Case, tmp_path: Path) -> tuple[DataSet, list[str]]:
    """The data set, in a folder whose name is awkward too, and the flags of a short run."""
    data = DataSet(tmp_path / "data [v1] #2")
    case.maker(data)
    flags = (
        f"--image-paths {{}}/images --mask-paths {{}}/masks --num-classes 3 --image-size 32 --max-steps 2 {case.flags}"
    )
    return data, [word.replace("{}", str(data.folder)) for word in flags.split()]


def check_labels(data: DataSet, run: Path, readings: dict[tuple[Path, Path], np.ndarray]) -> None:
    """Exactly the expected samples were read, with the labels and images that the maker knows.

    So they are, too, by the rule that is written into run.json.
    """
    images = data.folder / "images"
    assert {str(image.relative_to(images)) for image, _ in readings} == set(data.truth)
    record = json.loads(RunFiles.of(run, "linear").run_json.read_text())
    source = MaskSource([], LabelRule.from_dict(record["labels"]))
    for (image, mask), classes in list(readings.items()):
        name = str(image.relative_to(images))
        again = source.read(Pair(name, image, mask))
        assert np.array_equal(classes, data.truth[name]), name
        assert np.array_equal(again.classes, data.truth[name]), name
        assert again.pixels.shape == (3, *data.greys[name].shape)
        assert np.abs(again.pixels.numpy().astype(int) - data.greys[name]).max() <= GREY_TOLERANCE, name


def error_of(capsys, run: Path) -> str:
    """The one message on stderr of a run that must not have begun."""
    err = capsys.readouterr().err
    assert sum(line.startswith("error:") for line in err.splitlines()) == 1, err
    assert "Traceback" not in err
    assert not RunFiles.of(run, "linear").run_json.exists()
    return err[err.index("error:") :]


@pytest.mark.parametrize("name", USABLE)
def test_is_trained_on_with_the_right_labels(name, tmp_path, capsys, readings):
    case, run = USABLE[name], tmp_path / "run"
    data, flags = made(case, tmp_path)
    assert train_here("linear", run, *flags) == 0, capsys.readouterr().err
    err = capsys.readouterr().err
    check_labels(data, run, readings)
    for words in case.says:
        assert words in err
    if not case.says:
        assert "warning" not in err


@pytest.mark.parametrize("name", BROKEN)
def test_is_refused_in_one_message(name, tmp_path, capsys):
    case, run = BROKEN[name], tmp_path / "run"
    _, flags = made(case, tmp_path)
    assert train_here("linear", run, *flags) == 2
    message = error_of(capsys, run)
    for words in case.says:
        assert words in message
    assert "good" not in message


def test_the_label_map_that_is_proposed_for_0_and_255_works(tmp_path, capsys, readings):
    data, flags = made(Case(masks.masks_of_0_and_255, "--num-classes 2"), tmp_path)
    assert train_here("linear", tmp_path / "run", *flags) == 2
    proposed = re.search(r"\{.*\}", error_of(capsys, tmp_path / "run"))
    data.text("map.json", proposed[0])
    assert train_here("linear", tmp_path / "run", *flags, "--label-map", str(data.folder / "map.json")) == 0
    check_labels(data, tmp_path / "run", readings)
    assert set(np.unique(data.truth["a.png"])) == {0, 1}
