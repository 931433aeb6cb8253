"""Reading COCO files: classes and objects of good ones, and one message for each that is not of the format."""

import json
import math
from pathlib import Path

import pytest
from coco_helpers import CocoMaker, PanopticMaker, square
from messages import naming
from pycocotools import mask as coco_mask

from data.sources.coco import find_splits, read_coco
from data.sources.coco_tables import common_classes
from data.sources.panoptic import read_panoptic
from errors import UserError


@pytest.fixture
def make(tmp_path) -> CocoMaker:
    return CocoMaker(tmp_path / "train")


def mistakes(coco_set) -> list[str]:
    return [mistake.code for image in coco_set.images for mistake in image.mistakes]


# What is right


def test_images_objects_and_classes_in_ascending_order_of_their_ids(make):
    first = make.image("sub/b.png")
    make.image("a.png")
    make.object(first, 7, area=35.5, bbox=[2, 3, 6, 6])
    make.object(first, 3, iscrowd=1)
    coco_set = make.read()
    assert (coco_set.class_names, coco_set.category_ids) == (["ant", "cat"], [3, 7])
    assert [image.sample_id for image in coco_set.images] == ["sub/b.png", "a.png"]
    assert [len(image.objects) for image in coco_set.images] == [2, 0]  # images without objects stay
    cat, ant = coco_set.images[0].objects
    assert (cat.label, cat.area, cat.box, cat.is_crowd) == (1, 35.5, (2, 3, 6, 6), False)
    assert (ant.label, ant.area, ant.box, ant.is_crowd) == (0, None, None, True)
    assert coco_set.images[0].path == make.folder / "sub/b.png" and coco_set.images[0].size_hw == (20, 30)
    mask = coco_mask.decode(cat.rle)
    assert mask.sum() == 36 and mask[3:9, 2:8].all()


def test_a_byte_order_mark_and_numbers_in_strings_are_accepted(make):
    make.image("a.png", id="12")
    make.object("12", "3")
    for category in make.content["categories"]:
        category["id"] = str(category["id"])
    make.json_path.write_text("\ufeff" + json.dumps(make.content), encoding="utf-8")
    (image,) = read_coco(make.json_path, make.folder).images
    assert image.image_id == 12 and image.objects[0].label == 0


def test_huge_ids_are_ids(make):
    make.image("a.png", id=10**30)
    make.object(10**30)
    assert len(make.read().images[0].objects) == 1


def test_uncompressed_run_lengths(make):
    make.object(make.image("a.png"), segmentation={"size": [20, 30], "counts": [20, 40, 540]})
    mask = coco_mask.decode(make.read().images[0].objects[0].rle)
    assert mask.sum() == 40 and mask[:, 1:3].all()  # column by column


def test_polygons_are_cut_at_the_border_and_short_ones_skipped(make):
    image = make.image("a.png")
    make.object(image, segmentation=[square(25, 15, 20), [1, 1, 5, 5]])
    coco_set = make.read()
    mask = coco_mask.decode(coco_set.images[0].objects[0].rle)
    assert mask.sum() == 25 and mask[15:, 25:].all() and not mask[:15].any()
    assert mistakes(coco_set) == ["outside"]


# Classes of several files


def split(folder: Path, category_ids: list[int], categories: list[tuple[int, str]]):
    make = CocoMaker(folder)
    make.content["categories"] = [{"id": k, "name": name} for k, name in categories]
    image = make.image("a.png")
    for category_id in category_ids:
        make.object(image, category_id)
    return make.read()


def test_splits_share_the_classes_that_any_of_them_uses(tmp_path):
    categories = [(9, "dog"), (0, "dog"), (4, "cow"), (5, "unused"), (2, "hen")]
    train = split(tmp_path / "train", [9, 2], categories)
    val = split(tmp_path / "val", [4, 9], categories[::-1])
    train, val = common_classes([train, val])
    assert train.class_names == val.class_names == ["hen", "cow", "dog"]
    assert train.category_ids == val.category_ids == [2, 4, 9]
    assert [o.label for o in train.images[0].objects] == [2, 0]
    assert [o.label for o in val.images[0].objects] == [1, 2]
    assert (train.used_labels, val.used_labels) == ({0, 2}, {1, 2})


@pytest.mark.parametrize(
    ("val_categories", "category"),
    [
        ([(1, "ant"), (2, "bee")], "category 2 is 'bee'"),
        ([(1, "Ant"), (2, "x")], "category 1 is 'Ant'"),
    ],
)
def test_a_category_that_train_lacks_is_an_error(tmp_path, val_categories, category):
    train = split(tmp_path / "train", [1], [(1, "ant")])
    val = split(tmp_path / "val", [1, 2], val_categories)
    with pytest.raises(UserError, match=naming(category, train.json_path)):
        common_classes([train, val])


def test_categories_with_other_ids_are_matched_by_name(tmp_path):
    train = split(tmp_path / "train", [3, 7], [(3, "ant"), (7, "cat"), (8, "cow")])
    val = split(tmp_path / "val", [1, 3, 8], [(1, "ant"), (3, "cat"), (8, "cow")])
    train, val = common_classes([train, val])
    assert val.class_names == train.class_names == ["ant", "cat", "cow"] and val.category_ids == [3, 7, 8]
    assert [o.label for o in val.images[0].objects] == [0, 1, 2] and [o.label for o in train.images[0].objects] == [
        0,
        1,
    ]
    assert (train.by_name, val.by_name) == ([], ["ant", "cat"])
    doubtful = split(tmp_path / "doubtful", [1], [(1, "x"), (5, "x")])
    with pytest.raises(UserError, match=naming("'x'", doubtful.json_path)):
        common_classes([split(tmp_path / "other", [3], [(3, "x"), (7, "x")]), doubtful])


def test_one_name_for_two_used_categories_and_no_annotation_at_all(tmp_path):
    twice = split(tmp_path / "twice", [1, 4], [(1, "ant"), (4, "ant")])
    with pytest.raises(ValueError, match=naming("1 and 4", "'ant'")):
        common_classes([twice])
    with pytest.raises(ValueError, match="has no annotation"):
        common_classes([split(tmp_path / "none", [], [(1, "ant")])])


# Files that are not of the format: (what is done to the content, what the message names)


def change(table: str, key: str, value):
    def changed(content):
        content[table][0][key] = value

    return changed


def drop(table: str, key: str):
    return lambda content: content[table][0].pop(key)


def repeat(table: str, **fields):
    return lambda content: content[table].append({**content[table][0], **fields})


BROKEN = {
    "no annotations": (lambda c: c.pop("annotations"), ["'annotations'"]),
    "images is no list": (lambda c: c.update(images={}), ["'images'", "object", "list"]),
    "no images": (lambda c: c.update(images=[]), ["'images'", "empty"]),
    "an entry is no object": (lambda c: c["images"].append(3), ["images[1]"]),
    "image without id": (drop("images", "id"), ["images[0]", "'id'"]),
    "image without size": (drop("images", "height"), ["images[0]", "'height'"]),
    "annotation without image": (drop("annotations", "image_id"), ["annotations[0]", "'image_id'"]),
    "category without name": (drop("categories", "name"), ["categories[0]", "'name'", "None"]),
    "id true": (change("images", "id", True), ["images[0]", "'id'", "True"]),
    "id a fraction": (change("annotations", "category_id", 3.5), ["'category_id'", "3.5"]),
    "id a word": (change("categories", "id", "seven"), ["'id'", "'seven'"]),
    "ids partly text": (change("categories", "id", "7"), ["'id'", "number", "text"]),
    "size zero": (change("images", "width", 0), ["images[0]", "0 x 20"]),
    "a side beyond all bounds": (change("images", "width", 1_000_001), ["images[0]", "1,000,000"]),
    "size beyond all bounds": (change("images", "width", 10**9), ["images[0]", "2 gigapixels"]),
    "image twice": (repeat("images", file_name="b.png"), ["images[0]", "images[1]", "'id' 1"]),
    "category twice": (repeat("categories", name="other"), ["categories", "'id' 7"]),
    "file twice": (repeat("images", id=2, file_name="./a.png"), ["images[0]", "images[1]", "'file_name'"]),
    "path upwards": (change("images", "file_name", "x/../../a.png"), ["images[0]", "'file_name'"]),
    "path upwards in Windows": (change("images", "file_name", "x\\..\\..\\a.png"), ["images[0]", "'file_name'"]),
    "absolute path": (change("images", "file_name", "/etc/passwd"), ["images[0]", "'file_name'"]),
    "drive": (change("images", "file_name", "C:\\a.png"), ["images[0]", "'file_name'"]),
    "null byte": (change("images", "file_name", "a\0.png"), ["images[0]", "'file_name'"]),
    "half a surrogate": (change("images", "file_name", "a\ud800.png"), ["images[0]", "'file_name'"]),
    "empty name": (change("images", "file_name", ""), ["images[0]", "'file_name'", "''"]),
    "panoptic": (change("annotations", "segments_info", []), ["panoptic"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_one_message_names_file_and_entry(make, case):
    make.object(make.image("a.png"))
    spoil, parts = BROKEN[case]
    spoil(make.content)
    with pytest.raises(UserError, match=naming(*parts)) as error:
        make.read()
    assert str(error.value).startswith(str(make.json_path))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"images": [', "JSON"),
        (b"[]", "list"),
        (b"null", "null"),
        (b"\xff\xfe\x00", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "JSON"),
    ],
)
def test_files_that_are_no_coco_object(tmp_path, content, part):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=naming(path, part)):
        read_coco(path, tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=naming("none.json", "No such file")):
        read_coco(tmp_path / "none.json", tmp_path)


# Mistakes of single annotations: the image, or the annotation alone, is skipped

NAN, INF = math.nan, math.inf
FATAL = {
    "box only": ({"segmentation": None, "bbox": [1, 1, 5, 5]}, "no-mask"),
    "keypoints only": ({"segmentation": [], "keypoints": [1, 2, 2]}, "no-mask"),
    "NaN": ({"segmentation": [[NAN, 1, 5, 1, 5, 5]]}, "bad-polygon"),
    "infinite": ({"segmentation": [[1, 1, INF, 1, 5, 5]]}, "bad-polygon"),
    "odd": ({"segmentation": [[1, 1, 5, 1, 5, 5, 9]]}, "bad-polygon"),
    "flat": ({"segmentation": [1, 1, 5, 1, 5, 5]}, "bad-polygon"),
    "pairs": ({"segmentation": [[[1, 1], [5, 1], [5, 5]]]}, "bad-polygon"),
    "text": ({"segmentation": [["1", "1", "5", "1", "5", "5"]]}, "bad-polygon"),
    "booleans": ({"segmentation": [[True] * 6]}, "bad-polygon"),
    "no polygon": ({"segmentation": "polygon"}, "bad-polygon"),
    "far outside": ({"segmentation": [square(2, 2, 1e9)]}, "far-outside"),
    "RLE of another size": ({"segmentation": {"size": [30, 20], "counts": [600]}}, "bad-rle"),
    "RLE too long": ({"segmentation": {"size": [20, 30], "counts": [0, 601]}}, "bad-rle"),
    "RLE too short": ({"segmentation": {"size": [20, 30], "counts": [300, 299]}}, "bad-rle"),
    "RLE of too many runs": ({"segmentation": {"size": [20, 30], "counts": [300, 299, 2]}}, "bad-rle"),
    "RLE negative": ({"segmentation": {"size": [20, 30], "counts": [-1, 601]}}, "bad-rle"),
    "RLE without counts": ({"segmentation": {"size": [20, 30]}}, "bad-rle"),
    "RLE text cut off": ({"segmentation": {"size": [20, 30], "counts": "o"}}, "bad-rle"),
    "RLE text of other letters": ({"segmentation": {"size": [20, 30], "counts": "é\0"}}, "bad-rle"),
    "RLE text empty": ({"segmentation": {"size": [20, 30], "counts": ""}}, "bad-rle"),
    "crowd 2": ({"iscrowd": 2}, "bad-crowd"),
    "unknown category": ({"category_id": 99}, "unknown-category"),
}


@pytest.mark.parametrize("case", FATAL)
def test_a_mistake_of_one_annotation_makes_its_image_unusable(make, case):
    fields, code = FATAL[case]
    image = make.image("a.png")
    make.object(image)
    make.object(image, **fields)
    (mistake,) = make.read().images[0].fatal_mistakes
    assert mistake.code == code and mistake.annotation_id == 2
    assert mistake.detail.startswith("annotation 2")


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 1, 5, 5]],  # to pycocotools four numbers are a box
        [[1, 1]],
        [[], []],
        [[3, 3, 9, 3, 15, 3]],
        [square(-15, -15, 9)],
        [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]],
        {"size": [20, 30], "counts": [600]},
    ],
)
def test_an_object_without_a_pixel_is_skipped_alone(make, segmentation):
    make.object(make.image("a.png"), segmentation=segmentation)
    coco_set = make.read()
    assert coco_set.images[0].objects == [] and coco_set.images[0].fatal_mistakes == []
    assert "no-area" in mistakes(coco_set)


def test_repeated_annotation_ids_and_annotations_of_no_image(make):
    make.object(make.image("a.png"))
    make.object(1, id=1)
    make.object(5)
    coco_set = make.read()
    assert len(coco_set.images[0].objects) == 2 and mistakes(coco_set) == ["repeated-annotation-id"]
    assert [stray.code for stray in coco_set.strays] == ["unknown-image"]


# Panoptic files, and folders


def test_panoptic_segments(tmp_path):
    coco_set = PanopticMaker(tmp_path / "set").read()
    assert (coco_set.class_names, coco_set.is_thing) == (["car", "sky"], [True, False])
    (image,) = coco_set.images
    assert image.segments_path == tmp_path / "set" / "a_segments.png"
    assert [(segment.annotation_id, segment.label) for segment in image.objects] == [(5, 1), (70000, 0)]


def test_panoptic_mistakes(tmp_path):
    make = PanopticMaker(tmp_path / "set")
    segments = make.content["annotations"][0]["segments_info"]
    segments += [
        {"id": 2**24, "category_id": 1},
        {"id": 8, "category_id": 6},
        {"id": 9, "category_id": 1, "iscrowd": "0"},
    ]
    assert mistakes(make.read()) == ["bad-segment-id", "unknown-category", "bad-crowd"]


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda c: c["categories"][0].pop("isthing"), ["'isthing'", "None"]),
        (lambda c: c["annotations"][0].pop("segments_info"), ["'segments_info'"]),
        (lambda c: c["annotations"].clear(), ["1 of 1", "a.png"]),
        (lambda c: c["annotations"].append(c["annotations"][0]), ["annotations[0]", "annotations[1]", "'image_id'"]),
        (lambda c: c["annotations"][0].update(file_name="../a.png"), ["annotations[0]", "'file_name'"]),
        (lambda c: c["annotations"][0]["segments_info"].append({"id": 5, "category_id": 1}), ["'id' 5"]),
    ],
)
def test_panoptic_files_not_of_the_format(tmp_path, spoil, parts):
    make = PanopticMaker(tmp_path / "set")
    spoil(make.content)
    with pytest.raises(UserError, match=naming("panoptic.json", *parts)):
        make.read()


def test_an_instance_file_is_not_taken_for_a_panoptic_one(make):
    make.object(make.image("a.png"))
    make.read()
    with pytest.raises(ValueError, match=naming(make.json_path, "instances")):
        read_panoptic(make.json_path, make.folder, make.folder)


@pytest.mark.parametrize("val", ["valid", "val"])
def test_splits_of_a_folder(tmp_path, val):
    for name in ("train", val):
        CocoMaker(tmp_path / name).json_path.write_text("{}")
    (tmp_path / "test").mkdir()
    found = find_splits(tmp_path)
    assert list(found) == ["train", "val"]
    assert found["val"] == (tmp_path / val / "_annotations.coco.json", tmp_path / val)


def test_a_folder_without_train_or_with_two_validation_splits(tmp_path):
    for name in ("valid", "val"):
        CocoMaker(tmp_path / name).json_path.write_text("{}")
    with pytest.raises(ValueError, match=naming("valid", "val")):
        find_splits(tmp_path)
    (tmp_path / "val" / "_annotations.coco.json").unlink()
    with pytest.raises(ValueError, match=naming("train/_annotations.coco.json")):
        find_splits(tmp_path)


def test_many_categories_take_no_quadratic_time(tmp_path):
    """20,000 names once were compared with one another: minutes."""
    count, outline = 20_000, [[1, 1, 5, 1, 5, 5]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(count)],
        "annotations": [{"id": k, "image_id": 1, "category_id": k, "segmentation": outline} for k in range(count)],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    read = read_coco(tmp_path / "a.json", tmp_path)
    assert [len(one.class_names) for one in common_classes([read, read])] == [count, count]
