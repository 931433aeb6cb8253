"""Class maps of objects: against a reference drawn pixel by pixel, their check, and a training on them."""

import json

import numpy as np
import pytest
from coco_helpers import SIZE_HW, CocoMaker, square
from export_makers import class_maps, sets_in, train_one_step
from messages import names, naming
from pycocotools import mask as coco_mask

from checkpoint import read_checkpoint
from data.class_maps import class_map
from demo import check_dataset, evaluate
from errors import UserError, run_job
from run_lengths import runs_of_part
from training.evaluate.config import parse_evaluate_arguments


@pytest.fixture
def made(tmp_path) -> CocoMaker:
    """Images a with a cat (7) over an ant (3), both squares, and b with an ant and a crowd of cats."""
    maker = CocoMaker(tmp_path / "set" / "train")
    a, b = maker.image("a.png"), maker.image("b.png")
    maker.object(a, 3, segmentation=[square(2, 3, 10)])
    maker.object(a, 7, segmentation=[square(8, 9, 6)])
    maker.object(b, 3, segmentation=[square(0, 0, 4)])
    crowd = {"size": list(SIZE_HW), "counts": [20 * 25, 20 * 5]}
    maker.object(b, 7, segmentation=crowd, iscrowd=1)
    maker.read()
    return maker


def expected_maps(rest: int, ant: int, cat: int) -> dict[str, np.ndarray]:
    a, b = np.full(SIZE_HW, rest), np.full(SIZE_HW, rest)
    for row in range(SIZE_HW[0]):
        for column in range(SIZE_HW[1]):
            if 3 <= row < 13 and 2 <= column < 12:
                a[row, column] = ant
            if 9 <= row < 15 and 8 <= column < 14:  # the later object
                a[row, column] = cat
            if row < 4 and column < 4:
                b[row, column] = ant
            if column >= 25:
                b[row, column] = cat
    return {"a.png": a, "b.png": b}


@pytest.mark.parametrize(("flags", "values"), [([], (255, 0, 1)), (["--background"], (0, 1, 2))])
def test_later_objects_lie_above_earlier_ones(made, flags, values):
    found, expected = class_maps(made.folder.parent, *flags), expected_maps(*values)
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in found)


def test_maps_of_random_masks_are_those_of_pycocotools(tmp_path):
    maker, random = CocoMaker(tmp_path), np.random.default_rng(0)
    image = maker.image("a.png")
    masks = [random.random(SIZE_HW) < share for share in (0.9, 0.5, 1.0, 0.1, 0.3)]
    for number, mask in enumerate(masks):
        runs = runs_of_part(mask, 0, 0, SIZE_HW).tolist()
        maker.object(image, (3, 7)[number % 2], segmentation={"size": list(SIZE_HW), "counts": runs})
    (sample,) = maker.read().images
    expected, covered = np.full(SIZE_HW, 255), 0
    for thing in sample.objects:
        mask = coco_mask.decode(thing.rle).astype(bool)
        covered += int((mask & (expected != 255) & (expected != thing.label)).sum())
        expected[mask] = thing.label
    classes, hidden = class_map(sample, has_background=False)
    assert (classes == expected).all() and hidden == covered > 0


def test_the_check_counts_pixels_and_overlaps(made, tmp_path, capsys):
    preview = tmp_path / "preview.png"
    made.image("empty.png")
    made.read()
    words = ["--data", str(made.folder.parent), "--json", "--preview", str(preview)]
    assert run_job(lambda: check_dataset.check(check_dataset.parse_arguments(words))) == 0
    report = json.loads(capsys.readouterr().out)
    train, codes = report["train"], {finding["code"]: finding for finding in report["findings"]}
    assert [one["pixels"] for one in train["classes"]] == [100 + 16 - 16, 36 + 100]
    assert [one["objects"] for one in train["classes"]] == [2, 1]
    assert (train["covered_pixels"], train["ignored_pixels"]) == (16, 3 * 600 - 236)
    assert codes.keys() == {"overlaps", "unlabelled-pictures"} and preview.is_file()
    assert codes["overlaps"]["files"] == ["a.png: 16 pixels"]
    words += ["--background"]
    assert run_job(lambda: check_dataset.check(check_dataset.parse_arguments(words))) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in report["train"]["classes"]] == ["background", "ant", "cat"]
    assert report["train"]["ignored_pixels"] == 0


def test_objects_train_as_class_maps_and_are_evaluated(made, tmp_path):
    folder = made.folder.parent
    assert train_one_step(folder, "--background", "--class-weights", "auto") == 0
    run = tmp_path / "set_linear_run"
    state = read_checkpoint(next(run.glob("linear_checkpoint*.pth")))
    assert state["class_names"] == ["background", "ant", "cat"] and state["labels"]["num_classes"] == 3
    words = ["-m", str(run), "--data", str(folder), "--split", "train", "--num-workers", "0", "--worst", "0"]
    words += ["--json", str(tmp_path / "found.json")]
    for flags, pixels in (([], 1200), (["--no-background", "--output-dir", str(tmp_path / "objects")], 236)):
        config = parse_evaluate_arguments([*words, "--output-dir", str(tmp_path / "maps"), *flags])
        assert run_job(lambda config=config: evaluate.evaluate(config)) == 0
        assert np.sum(json.loads((tmp_path / "found.json").read_text())["confusion"]) == pixels


def test_one_class_alone_needs_the_background(tmp_path):
    maker = CocoMaker(tmp_path / "set" / "train")
    maker.object(maker.image("a.png"))
    maker.read()
    with pytest.raises(UserError, match=naming("ant", "--background")):
        sets_in(tmp_path / "set")
    assert sets_in(tmp_path / "set", "--background").class_names == ["background", "ant"]
    maker.content["categories"][1]["name"] = "background"
    maker.read()
    with pytest.raises(UserError, match=naming("background", "--background")):
        sets_in(tmp_path / "set", "--background")


@pytest.mark.parametrize(
    "flags",
    [
        ["--image-paths", "a", "--mask-paths", "b"],
        ["--task", "instance", "--data", "d"],
        ["--task", "instance", "--coco-dir", "d"],
    ],
)
def test_the_background_goes_with_maps_of_objects(flags, capsys):
    config = check_dataset.parse_arguments(["--background", *flags])
    assert run_job(lambda: check_dataset.check(config)) == 2
    assert names(capsys.readouterr().err, "--background", "--task semantic", "--data")


def test_objects_name_their_classes_themselves(made):
    with pytest.raises(UserError, match=naming("--class-names", made.folder.parent)):
        sets_in(made.folder.parent, "--class-names", "a", "b")
