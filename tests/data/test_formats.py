"""--data: which layout lies at a path, and what folders of masks and COCO's layouts give."""

import shutil
from itertools import combinations_with_replacement

import numpy as np
import pytest
from coco_helpers import CocoMaker
from export_makers import class_maps, counts, opened, random_map, train_one_step, write_image, write_json, write_mask
from messages import names, naming

from data.formats.found import MaskFiles
from data.formats.table import FORMATS, open_data
from demo import check_dataset, evaluate
from errors import UserError, run_job
from training.config import FORMAT_NAMES, parse_training_arguments
from training.evaluate.config import parse_evaluate_arguments


def folders(path, order: str = "{kind}/{split}", splits=("train", "val")):
    """images/ and masks/ of three images a split, with the classes 0 to 2; returns the maps by split and name."""
    maps = {}
    for number, split in enumerate(splits):
        for index in range(3):
            inside = {kind: path / order.format(kind=kind, split=split) for kind in ("images", "masks")}
            seed = 10 * number + index
            write_image(inside["images"] / f"p{index}.jpg", seed)
            maps[split, f"p{index}"] = write_mask(inside["masks"] / f"p{index}.png", random_map(seed, (0, 1, 2, 255)))
    (path / "classes.txt").write_text("sky\nroad\n\ncar\n")
    return maps


def test_every_format_can_be_named():
    assert tuple(FORMATS) == FORMAT_NAMES


@pytest.mark.parametrize("order", ["{kind}/{split}", "{split}/{kind}"])
def test_folders_train_with_their_classes(tmp_path, order):
    maps = folders(tmp_path / "set", order, ("train", "valid", "test"))
    assert counts(opened(tmp_path / "set").files) == {"train": 3, "val": 3, "test": 3}
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        found = class_maps(tmp_path / "set", split=split)
        assert len(found) == 3 and all((found[name] == maps[folder, name]).all() for name in found)
    assert train_one_step(tmp_path / "set", "--best-metric", "miou") == 0


def test_folders_without_splits_hold_some_out(tmp_path, capsys):
    folders(tmp_path, "{kind}", ("all",))
    config = check_dataset.parse_arguments(["--data", str(tmp_path), "--validate", "--json"])
    assert run_job(lambda: check_dataset.check(config)) == 0
    said = capsys.readouterr()
    assert '"pairs": 2' in said.out and '"pairs": 1' in said.out and '"name": "road"' in said.out
    assert names(said.err, "--data-format folders", tmp_path)


def test_flags_of_labels_win_over_classes_txt(tmp_path):
    maps = folders(tmp_path / "set")
    label_map = write_json(tmp_path / "map.json", {"classes": {"ground": [0, 1], "car": 2}})
    found = class_maps(tmp_path / "set", "--label-map", str(label_map))
    expected = np.array([0, 0, 1, *[255] * 253], np.uint8)
    assert all((found[name] == expected[maps["train", name]]).all() for name in found)


def test_what_a_folder_lacks_is_one_message(tmp_path):
    folders(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "masks" / "val")
    with pytest.raises(UserError, match=naming(tmp_path / "set", "images/", "masks/", "val")):
        opened(tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "images" / "val")
    shutil.move(tmp_path / "set" / "images" / "train", tmp_path / "set" / "images" / "test")
    shutil.move(tmp_path / "set" / "masks" / "train", tmp_path / "set" / "masks" / "test")
    with pytest.raises(UserError, match=naming(tmp_path / "set", "train")):
        opened(tmp_path / "set")


def coco(folder):
    """A set of two images with an object each."""
    made = CocoMaker(folder)
    for number in range(2):
        made.object(made.image(f"{number}.png"), (7, 3)[number])
    made.read()
    return made


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("train/_annotations.coco.json", "train"),
        ("annotations/instances_default.json", "images"),
        ("annotations/instances_Train.json", "images/Train"),
        ("annotations/instances_train2017.json", "train2017"),
        ("result.json", "images"),
        ("result.json", ""),
    ],
)
def test_layouts_of_coco(tmp_path, annotations, images):
    made = coco(tmp_path / "made")
    export = tmp_path / "export"
    (export / images).mkdir(parents=True)
    (export / annotations).parent.mkdir(exist_ok=True)
    for name in ("0.png", "1.png"):
        shutil.copy(made.folder / name, export / images / name)
    shutil.copy(made.json_path, export / annotations)
    found = opened(export)
    assert found.name == "coco" and list(found.files.splits) == ["train"]
    assert all(image.path.is_file() for image in found.files.splits["train"].images)
    if annotations == "result.json":
        assert opened(export / annotations).files.splits["train"].images == found.files.splits["train"].images


def test_two_layouts_are_a_question_and_none_is_an_answer(tmp_path, capsys):
    folders(tmp_path / "set")
    coco(tmp_path / "set" / "train")
    with pytest.raises(UserError, match=naming(tmp_path / "set", "--data-format folders", "--data-format coco")):
        opened(tmp_path / "set")
    assert isinstance(opened(tmp_path / "set", "folders").files, MaskFiles)
    assert train_one_step(tmp_path / "set") == 2
    assert names(capsys.readouterr().err, "--data-format folders", "--data-format coco")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=naming(tmp_path / "empty", *FORMATS, "masks/", "_annotations.coco.json")):
        opened(tmp_path / "empty")
    with pytest.raises(UserError, match=naming("--data-format coco", "_annotations.coco.json")):
        opened(tmp_path / "empty", "coco")
    with pytest.raises(UserError, match=naming("--data", "gone")):
        open_data(str(tmp_path / "gone"))


MARKS = {
    "folders": {"images/a.jpg": "", "masks/a.png": ""},
    "coco": {"train/_annotations.coco.json": "{}"},
    "yolo": {"data.yaml": "names: [cat]\ntrain: images"},
    "cvat": {"SegmentationClass/a.png": "", "ImageSets/Segmentation/default.txt": "a", "labelmap.txt": ""},
    "voc": {"SegmentationClass/a.png": "", "ImageSets/Segmentation/train.txt": "a"},
    "cityscapes": {"leftImg8bit/train/ulm/a_leftImg8bit.png": "", "gtFine/train/ulm/a_gtFine_labelIds.png": ""},
    "ade20k": {"images/training/ADE_train_1.jpg": "", "annotations/training/ADE_train_1.png": ""},
    "label-studio": {"project.json": '[{"id": 1, "annotations": []}]'},
    "parquet": {"data/train-00000-of-00001.parquet": ""},
}
"""Of each layout the files by which it is recognized, with the text in them."""


def put(folder, *names_of_formats: str):
    for name in names_of_formats:
        for file, text in MARKS[name].items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
    return folder


def test_every_layout_is_recognized_alone_and_two_are_a_question(tmp_path):
    assert MARKS.keys() == FORMATS.keys()
    for a, b in combinations_with_replacement(MARKS, 2):
        folder = put(tmp_path / f"{a}+{b}", a, b)
        fitting = [name for name, one in FORMATS.items() if one.is_here(folder)]
        assert fitting == (["cvat"] if (a, b) == ("cvat", "voc") else list(dict.fromkeys((a, b)))), (a, b)
        if len(fitting) > 1:
            with pytest.raises(UserError, match=naming(folder, f"--data-format {a}", f"--data-format {b}")):
                opened(folder)
    for name in MARKS:
        folder = put(tmp_path / "other", "coco") if name != "coco" else put(tmp_path / "none", "yolo")
        with pytest.raises(UserError, match=naming(f"--data-format {name}")):
            opened(folder, name)


def test_other_json_and_other_folders_are_none_of_them(tmp_path):
    (tmp_path / "min.json").write_text('[{"image": "a.jpg", "annotation_id": 3, "label": []}]')
    (tmp_path / "images" / "training").mkdir(parents=True)
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    (tmp_path / "annotations" / "training" / "21_training.png").touch()
    with pytest.raises(UserError, match=naming(tmp_path, *FORMATS)):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--data", "d", "--image-paths", "a"], "--image-paths"),
        (["--data", "d", "--coco-dir", "c"], "--coco-dir"),
        (["--data", "d", "--val-image-paths", "a", "--val-mask-paths", "b"], "--val-image-paths"),
        (["--data-format", "coco", "--image-paths", "a", "--mask-paths", "b"], "--data"),
        (["--data", "d", "--task", "panoptic"], "--coco-segments"),
        (["--data", "d", "--data-format", "paper"], "folders"),
    ],
)
def test_data_and_other_names_of_files_exclude_each_other(flags, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_training_arguments("m2f", flags)
    assert stop.value.code == 2 and named in capsys.readouterr().err


def test_a_task_needs_data_of_its_kind(tmp_path, capsys):
    folders(tmp_path / "masks")
    assert train_one_step(tmp_path / "masks", "--task", "instance", head="m2f") == 2
    assert names(capsys.readouterr().err, "--task instance", tmp_path / "masks")


def test_the_command_line_wins_over_the_data_of_a_recipe(tmp_path):
    recipe = write_json(tmp_path / "r.json", {"image_paths": ["a"], "mask_paths": ["b"]})
    config = parse_training_arguments("linear", ["--config", str(recipe), "--data", "d"])
    assert (config.data, config.image_paths, config.mask_paths) == ("d", None, None)


def test_a_checkpoint_is_evaluated_on_a_split(tmp_path, capsys):
    folders(tmp_path / "set", splits=("train", "test"))
    assert train_one_step(tmp_path / "set") == 0
    words = ["-m", str(tmp_path / "set_linear_run"), "--data", str(tmp_path / "set"), "--num-workers", "0"]
    out = ["--output-dir", str(tmp_path / "out"), "--worst", "0"]
    assert run_job(lambda: evaluate.evaluate(parse_evaluate_arguments([*words, *out, "--split", "test"]))) == 0
    assert "3 images" in capsys.readouterr().out
    (tmp_path / "set" / "classes.txt").write_text("sky\ncar\nroad\n")
    for more, named in (([], "--split val"), (["--split", "test"], "--label-map")):
        assert run_job(lambda more=more: evaluate.evaluate(parse_evaluate_arguments([*words, *out, *more]))) == 2
        assert named in capsys.readouterr().err
