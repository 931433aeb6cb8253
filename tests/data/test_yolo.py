"""YOLO's polygons: objects and class maps as drawn, the layouts of data.yaml, and mistakes in it."""

import json

import numpy as np
import pytest
from coco_helpers import square
from export_makers import SIZE_HW, class_maps, opened, sets_in, train_one_step, write_image
from image_files import with_orientation
from messages import naming
from PIL import Image
from pycocotools import mask as coco_mask

from demo import check_dataset
from errors import UserError, run_job

HEIGHT, WIDTH = SIZE_HW
CAT, ANT = square(2, 3, 12), square(8, 4, 10)


def line(number: int, polygon: list[float]) -> str:
    return " ".join([str(number), *(f"{c / (HEIGHT if k % 2 else WIDTH):.6f}" for k, c in enumerate(polygon))])


def export(folder, order: str = "{kind}/{split}", splits=("train", "val"), yaml: str | None = None):
    """Two images a split, the first with an ant (number 1) over a cat (number 0), the second empty."""
    for number, split in enumerate(splits):
        images, labels = (folder / order.format(kind=kind, split=split) for kind in ("images", "labels"))
        for index in range(2):
            write_image(images / f"p{index}.jpg", 10 * number + index)
        labels.mkdir(parents=True)
        (labels / "p0.txt").write_text(line(0, CAT) + "\n\n" + line(1, ANT) + "\n")
    if yaml is not None:
        (folder / "data.yaml").write_text(yaml)
    return folder


def expected_map(rest: int, cat: int, ant: int) -> np.ndarray:
    classes = np.full(SIZE_HW, rest)
    classes[3:15, 2:14] = cat
    classes[4:14, 8:18] = ant
    return classes


YAMLS = {
    "ultralytics": ("{kind}/{split}", "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: ant\n"),
    "roboflow": (
        "{split}/{kind}",
        "train: ../train/images\nval: ../val/images\ntest: ../gone\nnames: [cat, ant]\nnc: 2",
    ),
    "elsewhere": ("{kind}/{split}", "path: /gone\ntrain: [images/train]\nval: images/val\nnames: ['cat', 'ant']"),
}


@pytest.mark.parametrize("tool", YAMLS)
def test_objects_and_maps_are_as_drawn(tmp_path, tool):
    folder = export(tmp_path / "set", YAMLS[tool][0], yaml=YAMLS[tool][1])
    found = opened(folder)
    assert found.name == "yolo" and {k: len(one.images) for k, one in found.files.splits.items()} == {
        "train": 2,
        "val": 2,
    }
    for flags, values in (([], (255, 0, 1)), (["--background"], (0, 1, 2))):
        for split in ("train", "val"):
            maps = list(class_maps(folder, *flags, split=split).values())
            assert (maps[0] == expected_map(*values)).all() and (maps[1] == values[0]).all()
    sets = sets_in(folder, "--task", "instance", head="m2f")
    things = sets.splits["train"].images[0].objects
    assert sets.class_names == ["cat", "ant"] and [thing.label for thing in things] == [0, 1]
    squares = [coco_mask.decode(thing.rle).astype(bool) for thing in things]
    assert squares[0].sum() == 144 and squares[0][3:15, 2:14].all() and squares[1][4:14, 8:18].sum() == 100


def test_polygons_train(tmp_path):
    folder = export(tmp_path / "set", yaml=YAMLS["ultralytics"][1])
    assert train_one_step(folder) == 0
    assert train_one_step(folder, "--task", "instance", "--image-size", "64", head="m2f") == 0


def test_a_list_of_images_and_a_yaml_of_another_name(tmp_path):
    folder = export(tmp_path, splits=("train",))
    (folder / "train.txt").write_text("images/train/p0.jpg\n./images/train/p1.jpg\n")
    (folder / "crops.yaml").write_text("train: train.txt\nnames: {0: cat, 1: ant}\n")
    for path in (folder, folder / "crops.yaml"):
        images = opened(path).files.splits["train"].images
        assert [(image.path.is_file(), len(image.objects)) for image in images] == [(True, 2), (True, 0)]


@pytest.mark.parametrize(
    ("order", "names_file", "expected"),
    [
        ("{kind}", False, ["class 0", "class 1"]),
        ("{kind}/{split}", True, ["cat", "ant"]),
        ("{split}/{kind}", True, ["cat", "ant"]),
    ],
)
def test_without_a_yaml(tmp_path, order, names_file, expected):
    export(tmp_path, order, splits=("train",))
    if names_file:
        (tmp_path / "classes.txt").write_text("cat\nant\n")
    assert opened(tmp_path).name == "yolo" and sets_in(tmp_path).class_names == expected
    assert (next(iter(class_maps(tmp_path).values())) == expected_map(255, 0, 1)).all()


def test_polygons_are_of_the_upright_image(tmp_path):
    folder = export(tmp_path, "{kind}", splits=("train",))
    Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8)).save(folder / "images/p0.jpg", exif=with_orientation(6))
    assert (class_maps(folder)["images/p0.jpg"] == expected_map(255, 0, 1)).all()


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        (line(2, CAT), "unknown-category", "class 2"),
        ("-1 0 0 1 0 1 1", "unknown-category", "class -1"),
        ("nan 0 0 1 0 1 1", "unknown-category", "class nan"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1", "bad-polygon", "7 numbers"),
        ("0 0.1 0.1 0.5 0.1 nan 0.5", "bad-polygon", "NaN"),
        ("0 a b c d e f", "bad-polygon", "line 1"),
        ("0 0.5 0.5 0.2 0.2", "no-mask", "box"),
        ("0 10 10 20 10 20 20", "far-outside", "outside"),
    ],
)
def test_mistakes_of_a_line_are_one_finding(tmp_path, text, code, named, capsys):
    folder = export(tmp_path / "set", yaml=YAMLS["ultralytics"][1])
    (folder / "labels/train/p1.txt").write_text(text)
    config = check_dataset.parse_arguments(["--data", str(folder), "--json"])
    assert run_job(lambda: check_dataset.check(config)) == 2
    (error,) = (one for one in json.loads(capsys.readouterr().out)["findings"] if one["severity"] == "error")
    assert error["code"] == code and "p1.jpg" in error["files"][0] and named in error["files"][0]


def test_labels_without_an_image_are_one_finding(tmp_path, capsys):
    folder = export(tmp_path / "set", yaml=YAMLS["ultralytics"][1])
    (folder / "images/train/p0.jpg").unlink()
    (folder / "labels/train/p1.txt").write_text(line(0, CAT) + "\n" + line(1, ANT))
    assert train_one_step(folder) == 2
    err = capsys.readouterr().err
    assert "missing-file" in err and str(folder / "images/train/p0.jpg") in err
    assert train_one_step(folder, "--on-bad-sample", "skip", "--batch-size", "1") == 0


@pytest.mark.parametrize(
    ("yaml", "named"),
    [
        ("train: images/gone\nnames: [cat]", "images/gone"),
        ("train: images/train\nnames: [yes, no]", "quotes"),
        ("train: images/train\nnames: 3", "names"),
        ("train: [images\nnames", "YAML"),
        ("train:\nval: images/val\nnames: [cat, ant]", "train"),
    ],
)
def test_mistakes_of_the_yaml_are_one_message(tmp_path, yaml, named):
    with pytest.raises(UserError, match=naming(tmp_path, named)):
        opened(export(tmp_path, yaml=yaml))
