"""Cityscapes and ADE20K as they are unpacked: their ids, classes and splits."""

import numpy as np
import pytest
from export_makers import (
    class_maps,
    counts,
    opened,
    random_map,
    sets_in,
    train_one_step,
    write_image,
    write_json,
    write_mask,
)
from messages import names, naming

from checkpoint import read_checkpoint
from data.known_classes import ADE20K
from data.labels import LabelRule
from demo import evaluate
from errors import UserError, run_job
from training.evaluate.config import parse_evaluate_arguments

CITYSCAPES = {
    **{7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13},
    **{27: 14, 28: 15, 31: 16, 32: 17, 33: 18},
}
"""The train id of each id that has one, by the table of cityscapesScripts."""


def cityscapes(folder, ending: str, values, splits=("train", "val", "test")) -> dict[tuple[str, str], np.ndarray]:
    """Two images a split in two cities; the masks by split and sample id."""
    maps = {}
    for split in splits:
        for city in ("aachen", "ulm"):
            name = f"{city}/{city}_{len(maps):06d}_000019"
            write_image(folder / "leftImg8bit" / split / f"{name}_leftImg8bit.png", len(maps))
            values_here = [0] if split == "test" else values
            mask = folder / "gtFine" / split / f"{name}_gtFine_{ending}.png"
            maps[split, name] = write_mask(mask, random_map(len(maps), values_here))
            write_mask(mask.with_name(mask.name.replace(ending, "color")), np.zeros((4, 4, 3), np.uint8))
    return maps


@pytest.mark.parametrize("ending", ["labelIds", "labelTrainIds"])
def test_cityscapes_trains_with_its_19_classes(tmp_path, ending):
    folder, is_ids = tmp_path / "cityscapes", ending == "labelIds"
    maps = cityscapes(folder, ending, range(34) if is_ids else [*range(19), 255])
    found = opened(folder)
    assert found.name == "cityscapes" and counts(found.files) == {"train": 2, "val": 2} and "test" in found.about
    table = np.full(256, 255) if is_ids else np.arange(256)
    if is_ids:
        table[list(CITYSCAPES)] = list(CITYSCAPES.values())
    for split in ("train", "val"):
        classes = class_maps(folder, split=split)
        assert len(classes) == 2 and all((classes[name] == table[maps[split, name]]).all() for name in classes)
    sets = sets_in(folder)
    assert len(sets.class_names) == 19 and sets.class_names[::9] == ["road", "terrain", "bicycle"]
    road, car = 0x804080, 0x00008E
    assert sets.labels.class_palette[::13] == [road, car]
    if is_ids:
        assert train_one_step(folder, "--validate") == 0
        stored = read_checkpoint(tmp_path / "cityscapes_linear_run" / "linear_checkpoint_epoch_1.pth")
        assert LabelRule.from_dict(stored["labels"]) == sets.labels
        words = ["-m", str(tmp_path / "cityscapes_linear_run"), "--data", str(folder), "--num-workers", "0"]
        words += ["--split", "val", "--output-dir", str(tmp_path / "out"), "--worst", "0"]
        assert run_job(lambda: evaluate.evaluate(parse_evaluate_arguments(words))) == 0
        label_map = write_json(tmp_path / "map.json", {"classes": {"road": 7, "rest": [8, 11]}, "ignore": "rest"})
        assert not sets_in(folder, "--label-map", str(label_map)).labels.class_palette


def test_an_image_of_cityscapes_without_its_mask_is_one_message(tmp_path, capsys):
    folder = tmp_path / "cityscapes"
    cityscapes(folder, "labelIds", range(34), ("train",))
    mask = next(folder.glob("gtFine/train/ulm/*labelIds.png"))
    mask.rename(mask.with_name("renamed.png"))
    assert train_one_step(folder) == 2
    err = capsys.readouterr().err
    assert names(err, "ulm_000001_000019_leftImg8bit.png") and "aachen_000000" not in err
    for mask in folder.glob("gtFine/train/*/*labelIds.png"):
        mask.unlink()
    with pytest.raises(UserError, match=naming(folder, "gtFine/train", "_gtFine_labelIds.png")):
        opened(folder)


def ade20k(folder, splits=("training", "validation")) -> dict[str, np.ndarray]:
    maps = {}
    for split in splits:
        for _ in range(2):
            name = f"ADE_{split[: {'training': 5}.get(split, 3)]}_{len(maps) + 1:08d}"
            write_image(folder / "images" / split / f"{name}.jpg", len(maps))
            maps[name] = write_mask(
                folder / "annotations" / split / f"{name}.png", random_map(len(maps), (0, 1, 2, 13, 150))
            )
    return maps


def test_ade20k_trains_with_its_150_classes(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    maps = ade20k(folder)
    write_image(folder / "images/testing/ADE_test_00000001.jpg", 9)
    found = opened(folder)
    assert found.name == "ade20k" and counts(found.files) == {"train": 2, "val": 2} and "test" in found.about
    for split in ("train", "val"):
        for name, classes in class_maps(folder, split=split).items():
            assert (classes == np.where(maps[name] == 0, 255, maps[name].astype(int) - 1)).all()
    assert sets_in(folder).class_names == list(ADE20K) and ADE20K[12] == "person" and ADE20K[149] == "flag"
    assert train_one_step(folder, "--validate") == 0


def test_mistakes_of_ade20k_are_one_message(tmp_path, capsys):
    folder = tmp_path / "ade"
    ade20k(folder, ("training",))
    write_mask(folder / "annotations/training/ADE_train_00000001.png", random_map(3, (0, 1, 151)))
    assert train_one_step(folder) == 2
    assert names(capsys.readouterr().err, "ADE_train_00000001.png", "151")
    (folder / "images/validation").mkdir()
    with pytest.raises(UserError, match=naming(folder, "images/", "annotations/", "val")):
        opened(folder)
