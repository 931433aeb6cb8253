"""Pascal VOC's layout: VOC's indices, CVAT's colours, and the lists of splits."""

import json

import numpy as np
import pytest
from export_makers import class_maps, counts, opened, random_map, sets_in, train_one_step, write_image
from messages import names, naming
from PIL import Image

from data.known_classes import VOC
from demo import check_dataset
from errors import UserError, run_job

COLORS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nant:0,128,0::\ncat:128,0,0::\n"
"""The order of the classes is not that of COLORS."""


def export(folder, lists: dict[str, str], values=(0, 1, 2, 255), as_rgb: bool = False) -> dict[str, np.ndarray]:
    """An image and a mask of each name in the lists; returns the indices of the masks by name."""
    maps = {}
    for split, text in lists.items():
        path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for name in (line.strip('"') for line in text.splitlines()):
            write_image(folder / "JPEGImages" / f"{name}.jpg", seed := len(maps))
            maps[name] = random_map(seed, values)
            mask = Image.fromarray(COLORS[maps[name]] if as_rgb else maps[name])
            if not as_rgb:
                mask.putpalette(COLORS.tobytes().ljust(3 * 256, b"\1"))
            path = folder / "SegmentationClass" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)
    return maps


def list_classes(folder) -> None:
    """The lists of images of each class, as VOC itself has them."""
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for name in VOC[1:]:
        (folder / "ImageSets" / "Main" / f"{name}_trainval.txt").write_text("2007_000032  1\n")


def test_voc_trains_with_its_names_and_borders_are_ignored(tmp_path):
    folder = tmp_path / "VOC2012"
    maps = export(folder, {"train": "2007_000032\n2007_000039\n", "val": "2007_000033\n"}, (0, 1, 15, 20, 255))
    (folder / "ImageSets/Segmentation/trainval.txt").write_text("2007_000032\n2007_000039\n2007_000033\n")
    (folder / "ImageSets/Segmentation/test.txt").write_text("2008_000001\n")
    list_classes(folder)
    found = opened(folder)
    assert found.name == "voc" and counts(found.files) == {"train": 2, "val": 1} and "test" in found.about
    for split in ("train", "val"):
        for name, classes in class_maps(folder, split=split).items():
            assert (classes == maps[name]).all()
    sets = sets_in(folder)
    assert sets.class_names == list(VOC) and sets.class_names[15] == "person" and len(VOC) == 21
    assert train_one_step(folder, "--validate") == 0


def test_a_set_in_the_layout_of_voc_has_names_of_its_own(tmp_path):
    maps = export(tmp_path, {"trainval": "a\nb\n"})
    assert (class_maps(tmp_path, "--num-classes", "3")["a"] == maps["a"]).all()
    assert sets_in(tmp_path, "--num-classes", "3").class_names == ["class 0", "class 1", "class 2"]
    (tmp_path / "classes.txt").write_text("floor\nwall\ndoor\n")
    assert sets_in(tmp_path).class_names == ["floor", "wall", "door"]


@pytest.mark.parametrize("as_rgb", [False, True])
def test_cvat_trains_with_the_colours_of_its_labelmap(tmp_path, as_rgb):
    folder = tmp_path / "set"
    maps = export(folder, {"default": 'a\n"b c"\nd/e\n'}, (0, 1, 2), as_rgb)
    (folder / "labelmap.txt").write_text(LABELMAP)
    found = opened(folder)
    assert found.name == "cvat" and counts(found.files) == {"train": 3}
    classes = class_maps(folder)
    assert classes.keys() == maps.keys() == {"a", "b c", "d/e"}
    assert all((classes[name] == np.array([0, 2, 1])[maps[name]]).all() for name in maps)
    sets = sets_in(folder)
    assert sets.class_names == ["background", "ant", "cat"] and sets.labels.class_palette == [0, 0x008000, 0x800000]
    if as_rgb:
        assert train_one_step(folder) == 0


def test_subsets_of_cvat(tmp_path):
    export(tmp_path, {"Train": "a\nb\n", "Validation": "c\n"}, (0, 1, 2))
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    assert counts(opened(tmp_path).files) == {"train": 2, "val": 1}
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("c\n")
    with pytest.raises(UserError, match=naming("Validation", "val", tmp_path)):
        opened(tmp_path)


def findings(folder, capsys) -> list[dict]:
    config = check_dataset.parse_arguments(["--data", str(folder), "--json"])
    assert run_job(lambda: check_dataset.check(config)) == 2
    return [one for one in json.loads(capsys.readouterr().out)["findings"] if one["severity"] == "error"]


def test_what_a_list_names_and_is_not_there_is_one_finding(tmp_path, capsys):
    folder = tmp_path / "set"
    export(folder, {"train": "a\nb\nc\nd\n"}, (0, 1, 2))
    (folder / "labelmap.txt").write_text(LABELMAP)
    (folder / "JPEGImages/a.jpg").unlink()
    (folder / "SegmentationClass/b.png").unlink()
    (error,) = findings(folder, capsys)
    assert error["code"] == "missing-file" and names(" ".join(error["files"]), "JPEGImages/a.jpg", "b.png")
    assert train_one_step(folder, "--on-bad-sample", "skip", "--batch-size", "1") == 0


def test_an_index_outside_of_the_classes_and_a_colour_outside_of_the_labelmap(tmp_path, capsys):
    export(tmp_path, {"train": "a\nb\n"}, (0, 1, 2))
    (tmp_path / "classes.txt").write_text("floor\nwall\n")
    (error,) = findings(tmp_path, capsys)
    assert "a.png" in error["files"][0] and "2" in error["message"]
    (tmp_path / "labelmap.txt").write_text(LABELMAP.replace("128,0,0", "0,0,128"))
    (error,) = findings(tmp_path, capsys)
    assert "a.png" in error["files"][0] and "#800000" in " ".join(map(str, error.values()))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "C:\\x"])
def test_a_list_that_leads_out_is_refused(tmp_path, name):
    export(tmp_path, {"train": "a\n"})
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(f"a\n{name}\n")
    with pytest.raises(UserError, match=naming("train.txt", repr(name))):
        opened(tmp_path)


def test_what_the_layout_lacks_is_one_message(tmp_path):
    export(tmp_path, {"val": "a\n"})
    with pytest.raises(UserError, match=naming("ImageSets/Segmentation", "train")):
        opened(tmp_path)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("\n")
    with pytest.raises(UserError, match=naming("train.txt")):
        opened(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    with pytest.raises(UserError, match=naming("JPEGImages/", tmp_path)):
        opened(tmp_path)
