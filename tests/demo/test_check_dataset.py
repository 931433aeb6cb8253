"""The script of the dataset check, on pairs of files and on COCO sets."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from check_helpers import Maker
from coco_helpers import CocoMaker, PanopticMaker, square
from paths import ROOT
from PIL import Image

from demo import check_dataset
from evaluation.drawing import object_colors

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "demo" / "check_dataset.py"


@pytest.fixture
def make(tmp_path) -> Maker:
    return Maker(tmp_path / "set")


def run(make: Maker, *options: str) -> subprocess.CompletedProcess:
    """As a person does; the environment has the test's cache folder."""
    images, masks = (str(make.folder / kind / "train") for kind in ("images", "masks"))
    command = [sys.executable, str(SCRIPT), "--image-paths", images, "--mask-paths", masks, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_script(make, tmp_path):
    for number in range(6):
        make.pair(f"p{number}", [0, 1, 2])
    sheet = tmp_path / "sheet.png"
    done = run(make, "--num_classes", "3", "--validate", "--val-fraction", "0.5", "--json", "--preview", str(sheet))
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert (content["train"]["pairs"], content["val"]["pairs"], content["findings"]) == (3, 3, [])
    assert Image.open(sheet).format == "PNG"

    done = run(make, "--num-classes", "2")
    assert done.returncode == 2 and "unknown-values" in done.stdout and "--num-classes 3" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_names_that_are_not_utf8(make):
    make.pair(os.fsdecode(b"caf\xe9"), [0, 9])
    make.pair("b", [0, 1])
    done = run(make, "--num-classes", "2", "--validate", "--val-fraction", "0.5")
    assert done.returncode == 2 and "caf\\udce9.png: 9 (48 pixels)" in done.stdout
    done = run(make, "--num-classes", "2", "--json")
    assert json.loads(done.stdout)["findings"][0]["files"][0].endswith(os.fsdecode(b"caf\xe9.png: 9 (48 pixels)"))


def test_the_script_reports_mistakes_and_starts_without_torch(make, tmp_path):
    make.pair("a", [0, 1])
    done = run(make, "--label-map", str(tmp_path / "nowhere.json"))
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1 and "nowhere.json" in done.stderr
    for sheet in ("sheet.what", "nowhere/sheet.png"):
        done = run(make, "--num-classes", "2", "--preview", str(tmp_path / sheet))
        assert done.returncode == 2 and "--preview" in done.stderr.splitlines()[-1]
    probe = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--image-paths', {str(make.folder / 'images')!r}, '--mask-paths', "
        f"{str(make.folder / 'masks')!r}, '--num-classes', '3', '--strict']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 1, stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def check_here(monkeypatch, *words: object) -> int:
    """The script, in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["check_dataset.py", *map(str, words)])
    return check_dataset.main()


def test_the_script_counts_draws_and_exits_as_for_masks(tmp_path, monkeypatch, capsys):
    """The preview shows objects where the file has them: a quarter of the image, tinted, and the rest as it is."""
    make = CocoMaker(tmp_path / "train")
    for name in "abcd":
        number = make.image(f"{name}.png", (64, 64))
        make.object(number, segmentation=[square(0, 0, 32)])
    make.read()
    files = ["--task", "instance", "--coco-dir", tmp_path]
    assert check_here(monkeypatch, *files, "--json", "--preview", tmp_path / "sheet.png") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["train"]["classes"] == [{"name": "ant", "objects": 4}] and content["val"] is None
    tile = np.asarray(Image.open(tmp_path / "sheet.png")).astype(float)[16:272, :256]  # below its name
    picture = Image.open(tmp_path / "train" / "a.png").resize((256, 256), Image.Resampling.BILINEAR)
    picture = np.asarray(picture).astype(float)
    inner, outer = np.s_[8:120, 8:120], np.s_[136:, 136:]
    assert np.abs(tile[inner] - (picture[inner] + object_colors(1)[0]) / 2).max() <= 1
    assert np.array_equal(tile[outer], picture[outer])

    test = CocoMaker(tmp_path / "test")
    test.object(test.image("t.png"))
    test.read()
    (test.folder / "t.png").write_bytes(b"no image")
    assert check_here(monkeypatch, *files) == 2 and "test/t.png" in capsys.readouterr().out
    test.json_path.unlink()

    assert check_here(monkeypatch, *files, "--validate", "--val-fraction", "0.5") == 0
    assert "validation" in capsys.readouterr().out.splitlines()[0]
    make.object(1, segmentation=[square(40, 40, 64)])
    make.read()
    assert check_here(monkeypatch, *files) == 0 and check_here(monkeypatch, *files, "--strict") == 1
    (tmp_path / "train" / "b.png").write_bytes(b"no image")
    assert check_here(monkeypatch, *files) == 2
    assert "b.png" in capsys.readouterr().out
    assert check_here(monkeypatch, "--task", "instance", "--coco-dir", tmp_path / "gone") == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_the_script_takes_panoptic_sets(tmp_path, monkeypatch, capsys):
    make = PanopticMaker(tmp_path / "set")
    make.read()
    words = ["--coco-json", make.folder / "panoptic.json", "--coco-images", make.folder]
    words += ["--coco-segments", make.folder, "--preview", tmp_path / "sheet.png"]
    assert check_here(monkeypatch, "--task", "panoptic", *words, "--json") == 0
    classes = json.loads(capsys.readouterr().out)["train"]["classes"]
    assert classes == [{"name": "car", "objects": 1}, {"name": "sky", "objects": 1}]
    assert Image.open(tmp_path / "sheet.png").width >= 256
