"""Pre-annotations, read back: pixel by pixel what was predicted, in every format."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from messages import naming
from PIL import Image
from pycocotools import mask as coco_mask

from data.class_maps import class_map
from data.formats.brush_rle import painted
from data.formats.table import open_data
from data.labels import LabelRule
from errors import UserError
from labelling.annotations import CocoFolder, MaskFolder, PreAnnotated, regions
from labelling.label_studio import LabelStudioFolder, brush_code
from labelling.pool import PoolImage, Ranked, find_pool, least_sure_first
from prediction.results import FoundObject, InstanceResult, SemanticResult

NAMES = ["background", 'a "b" & <c>', "line"]
SIZE_HW = (7, 11)


@pytest.fixture
def predicted(tmp_path) -> list[PreAnnotated]:
    """Three class maps, of images in two sub-folders, in which all classes occur."""
    made = []
    for number, name in enumerate(["x/a.png", "x/b c.png", "y/a.png"]):
        path = tmp_path / "pool" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE_HW[::-1], (number, 0, 0)).save(path)
        classes = np.random.default_rng(number).integers(0, 3, SIZE_HW).astype(np.uint8)
        result = SemanticResult(classes, NAMES, LabelRule(3, colors=(0x0000FF, 0x00FF00, 0x102030)))
        made.append(PreAnnotated(Ranked(PoolImage(path, name), 0.25 * number), result))
    return made


def saved(folder, predicted: list[PreAnnotated]):
    for one in predicted:
        folder.add(one)
    folder.save()
    return folder.folder


def test_coco_gives_every_pixel_back(tmp_path, predicted):
    folder = saved(CocoFolder(tmp_path / "coco", NAMES, [1, 2, 3]), predicted)
    opened = open_data(str(folder))
    assert opened.name == "coco"
    coco_set = opened.files.splits["train"]
    assert coco_set.class_names == NAMES and [image.sample_id for image in coco_set.images] == [
        one.ranked.image.name for one in predicted
    ]
    for image, one in zip(coco_set.images, predicted, strict=True):
        assert not image.mistakes and image.path.read_bytes() == one.ranked.image.path.read_bytes()
        assert np.array_equal(class_map(image, has_background=False)[0], one.result.classes)
    content = json.loads((folder / "annotations/instances_default.json").read_text())
    for annotation in content["annotations"]:
        rle = coco_mask.frPyObjects(annotation["segmentation"], *SIZE_HW)
        assert annotation["area"] == coco_mask.area(rle) and annotation["bbox"] == coco_mask.toBbox(rle).tolist()


def test_masks_give_every_pixel_back(tmp_path, predicted):
    folder = saved(MaskFolder(tmp_path / "masks", NAMES, LabelRule(3)), predicted)
    files = open_data(str(folder)).files
    assert files.labels == {"num_classes": 3, "class_names": NAMES}
    pairs = files.splits["train"].pairs
    assert len(pairs) == 3
    for pair, one in zip(pairs, predicted, strict=True):
        assert np.array_equal(np.array(Image.open(pair.mask)), one.result.classes)

    other_ids = LabelRule(3, reduce_zero_label=True)
    folder = saved(MaskFolder(tmp_path / "other", NAMES, other_ids), [])
    assert not (folder / "classes.txt").exists()  # its lines would be the wrong ids
    twin = PreAnnotated(Ranked(PoolImage(Path("a.jpg"), "x/a.jpg"), 0), predicted[0].result)
    with pytest.raises(UserError, match=naming("a.jpg", "x/a.png")):
        MaskFolder(tmp_path / "masks", NAMES, LabelRule(3)).add(twin)


def test_label_studio_gives_every_pixel_back(tmp_path, predicted):
    """As it exports the tasks when a person has submitted each prediction as it is."""
    folder = saved(LabelStudioFolder(tmp_path / "studio", NAMES, "linear run.pth"), predicted)
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [task["predictions"][0]["score"] for task in tasks] == [1, 0.75, 0.5]
    assert {task["predictions"][0]["model_version"] for task in tasks} == {"linear run.pth"}
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=images/x/b%20c.png"
    exported = [{"data": task["data"], "annotations": task["predictions"]} for task in tasks]
    (folder / "tasks.json").write_text(json.dumps(exported))
    opened = open_data(str(folder))
    assert opened.name == "label-studio"
    coco_set = opened.files.splits["train"]
    assert coco_set.class_names == sorted(NAMES)
    for image, one in zip(coco_set.images, predicted, strict=True):
        assert not image.mistakes
        by_name = np.array([NAMES.index(name) for name in coco_set.class_names])
        assert np.array_equal(by_name[class_map(image, has_background=False)[0]], one.result.classes)
    labels = ElementTree.fromstring((folder / "interface.xml").read_text()).findall(".//Label")
    assert [label.get("value") for label in labels] == NAMES
    overlay = ["#{:02x}{:02x}{:02x}".format(*color) for color in predicted[0].result.colors().tolist()]
    assert [label.get("background") for label in labels] == overlay == ["#0000ff", "#00ff00", "#102030"]


@pytest.mark.parametrize("size_hw", [(1, 1), (3, 5), (200, 170)])
@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_brush_strokes_are_unpacked_as_they_were(size_hw, share):
    mask = np.random.default_rng(0).random(size_hw) < share  # of 34,000 pixels runs are longer than one count
    assert np.array_equal(painted(list(brush_code(mask)), size_hw), mask)


def test_a_brush_stroke_bit_by_bit():
    head = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"  # 8 words of 8 bits; counts of 3, 4, 8, 16 bits
    runs = "1" + "00" + "011" + "1" * 8 + "1" + "00" + "011" + "0" * 8  # four words of 255, four of 0
    bits = head + runs
    assert brush_code(np.array([[True, False]])) == int(bits + "0" * (-len(bits) % 8), 2).to_bytes(-(-len(bits) // 8))


def test_objects_that_lie_on_top_come_last():
    def found(label: int, columns: slice) -> FoundObject:
        mask = np.zeros(SIZE_HW, np.uint8, order="F")
        mask[:, columns] = 1
        return FoundObject(label, NAMES[label], label + 1, 0.9, coco_mask.encode(mask))

    objects = [found(1, slice(0, 3)), found(2, slice(0, 5)), found(0, slice(0, 0))]  # best first; an empty one
    assert [(label, mask.sum()) for label, mask in regions(InstanceResult(objects, NAMES, SIZE_HW))] == [
        (2, 5 * 7),
        (1, 3 * 7),
    ]


def test_labelled_images_are_skipped_by_their_names(tmp_path):
    for name in ("pool/a.png", "pool/b.png", "done/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (1, 1)).save(tmp_path / name)
    images, num_skipped = find_pool([f"{tmp_path}/pool/*"], [f"{tmp_path}/done"])
    assert [image.name for image in images] == ["a.png"] and num_skipped == 1
    with pytest.raises(UserError, match=naming("--labelled")):
        find_pool([f"{tmp_path}/pool/*"], [f"{tmp_path}/pool"])


def test_equal_images_are_in_the_order_of_their_names():
    ranked = [Ranked(PoolImage(Path(name), name), value) for name, value in (("b", 0.5), ("c", 0.9), ("a", 0.5))]
    assert [one.image.name for one in least_sure_first(ranked)] == ["c", "a", "b"]
