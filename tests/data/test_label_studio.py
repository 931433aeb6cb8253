"""Label Studio's JSON: polygons and brush strokes as drawn, which annotation counts, images, and mistakes."""

import json
from itertools import groupby

import numpy as np
import pytest
from coco_helpers import square
from export_makers import SIZE_HW, class_maps, opened, sets_in, train_one_step, write_image, write_json
from image_files import with_orientation
from messages import names, naming
from PIL import Image
from pycocotools import mask as coco_mask

from data.formats.brush_rle import painted
from data.sources.coco_masks import SegmentationError
from demo import check_dataset
from errors import UserError, run_job

HEIGHT, WIDTH = SIZE_HW
CAT, ANT = square(2, 3, 12), square(8, 4, 10)
STROKES = np.random.default_rng(5).random(SIZE_HW) < 0.4


def packed(alpha: np.ndarray, color=(255, 255, 255), widths=(3, 4, 8, 16)) -> list[int]:
    """alpha (H, W) uint8 as a brush RLE, with `color` where it is not 0; equal bytes are repeated, others stand alone.

    After the description of the format at https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack.
    """
    words = np.where(alpha[..., None] > 0, np.dstack([np.full_like(alpha, c) for c in color] + [alpha]), 0).reshape(-1)
    bits = f"{len(words):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    largest = 1 << widths[-1]
    for word, group in groupby(words.tolist()):
        times = len(list(group))
        for count in [largest] * (times // largest) + [times % largest] * (times % largest > 0):
            kind = next(k for k, width in enumerate(widths) if count <= 1 << width)
            bits += f"{int(count > 1)}{kind:02b}{count - 1:0{widths[kind]}b}{word:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def region(kind: str, label, **value) -> dict:
    """A result; label: a name, or the list of names."""
    labels = label if isinstance(label, list) else [label]
    return {
        **{"id": f"r{kind}{label}", "type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0},
        **{"original_width": WIDTH, "original_height": HEIGHT, "value": {**value, kind: labels}},
    }


def polygon(label, corners: list[float], kind: str = "polygonlabels", size_hw=SIZE_HW) -> dict:
    points = [[100 * x / size_hw[1], 100 * y / size_hw[0]] for x, y in zip(corners[::2], corners[1::2], strict=True)]
    return region(kind, label, points=points, closed=True)


def brush(label, mask: np.ndarray) -> dict:
    return region("brushlabels", label, format="rle", rle=packed(255 * mask.astype(np.uint8)))


def task(number: int, image: str, *annotations, **more) -> dict:
    """annotations: lists of results, or whole annotations."""
    whole = [
        {"id": 10 * number + k, "was_cancelled": False, "ground_truth": False, "result": one}
        if isinstance(one, list)
        else one
        for k, one in enumerate(annotations)
    ]
    return {"id": number, "annotations": whole, "predictions": [], "data": {"image": image}, **more}


def export(folder, *results, upload: str = "/data/upload/1/0a1b2c3d-p{}.jpg"):
    """An export with a task of each list of results, and its images with the hash of uploads in images/."""
    for number in range(len(results)):
        write_image(folder / "images" / f"0a1b2c3d-p{number}.jpg", number)
    write_json(folder / "project-1.json", [task(k, upload.format(k), one) for k, one in enumerate(results)])
    return folder


def expected_map(rest: int, cat: int, ant: int) -> np.ndarray:
    classes = np.full(SIZE_HW, rest)
    classes[3:15, 2:14] = cat
    classes[4:14, 8:18] = ant
    return classes


@pytest.mark.parametrize(
    ("rle", "size_hw", "expected"),
    [
        ([0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128], (1, 2), [[False, True]]),  # four times 0, four times 255
        ([0, 0, 0, 4, 57, 27, 248, 96, 32, 64, 96, 128], (1, 1), [[True]]),  # 1 2 3 4 as they are
        ([0, 0, 0, 4, 57, 27, 248, 96, 32, 64, 96, 0], (1, 1), [[False]]),  # 1 2 3 0
    ],
)
def test_brush_strokes_written_bit_by_bit(rle, size_hw, expected):
    assert painted(rle, size_hw).tolist() == expected


@pytest.mark.parametrize("color", [(255, 255, 255), (1, 2, 3)])
def test_brush_strokes_are_unpacked_as_packed(color):
    alpha = np.random.default_rng(1).choice(np.array([0, 1, 128, 255], np.uint8), (17, 11)).repeat(5, axis=1)
    assert (painted(packed(alpha, color), alpha.shape) == (alpha > 0)).all()
    assert (painted(packed(alpha, color, (1, 2, 3, 4)), alpha.shape) == (alpha > 0)).all()
    large = np.zeros((130, 130), np.uint8)  # more words than one count holds
    assert not painted(packed(large), large.shape).any()


RLE = packed(np.full((2, 2), 255, np.uint8))


@pytest.mark.parametrize(
    "rle",
    [RLE[:-2], [], "rle", [*RLE[:3], 17, *RLE[4:]], [*RLE[:4], 0, *RLE[5:]], [*RLE, "1"], [0, 0, 0, 16, 300], [True]],
)
def test_odd_brush_strokes_are_refused(rle):
    with pytest.raises(SegmentationError) as error:
        painted(rle, (2, 2))
    assert error.value.code == "bad-rle"
    with pytest.raises(SegmentationError):
        painted(RLE, (2, 3))
    with pytest.raises(SegmentationError):
        painted([255, 255, 255, 255, *RLE[4:]], (2**15, 2**15))


def test_polygons_train_and_are_as_drawn(tmp_path):
    folder = export(tmp_path / "set", [polygon("cat", CAT), polygon("ant", ANT)], [], [polygon("ant", ANT)])
    found = opened(folder)
    assert found.name == "label-studio" and len(found.files.splits["train"].images) == 3
    for flags, values in (([], (255, 1, 0)), (["--background"], (0, 2, 1))):  # names in their order
        maps = list(class_maps(folder, *flags).values())
        assert (maps[0] == expected_map(*values)).all() and (maps[1] == values[0]).all()
    things = sets_in(folder, "--task", "instance", head="m2f").splits["train"].images[0].objects
    assert [thing.label for thing in things] == [1, 0]
    assert coco_mask.decode(things[0].rle).astype(bool)[3:15, 2:14].all() and coco_mask.area(things[0].rle) == 144
    assert train_one_step(folder) == 0


def test_brush_strokes_train_and_are_as_painted(tmp_path):
    folder = export(tmp_path / "set", [brush("grass", STROKES), brush("sky", ~STROKES)], [brush("sky", STROKES)])
    maps = list(class_maps(folder / "project-1.json").values())
    assert (maps[0] == np.where(STROKES, 0, 1)).all() and (maps[1] == np.where(STROKES, 1, 255)).all()
    assert train_one_step(folder) == 0


def test_labels_that_are_results_of_their_own(tmp_path):
    """Of the tags Polygon and Labels: a shape, and a result of the same id with the label and the shape again."""
    whole = polygon("cat", CAT, "labels")
    shape = {**whole, "type": "polygon", "value": {"points": whole["value"]["points"]}}
    choice = {"id": "c", "type": "choices", "value": {"choices": ["indoor"]}}
    folder = export(tmp_path, [shape, whole, choice, polygon("ant", ANT)])
    (found,) = class_maps(folder).values()
    assert (found == expected_map(255, 1, 0)).all()


def test_which_annotation_counts(tmp_path):
    cat, ant = [polygon("cat", CAT)], [polygon("ant", ANT)]
    cancelled = {"was_cancelled": True, "result": ant}
    tasks = [
        task(0, "p0.jpg", cancelled, cat, ant),
        task(1, "p1.jpg", ant, {"was_cancelled": False, "ground_truth": True, "result": cat}),
        task(2, "p2.jpg", cancelled),
        task(3, "p3.jpg"),
        task(4, "p4.jpg", ant),
    ]
    for number in range(5):
        write_image(tmp_path / f"p{number}.jpg", number)
    write_json(tmp_path / "set.json", tasks)
    found = opened(tmp_path)
    names_of = found.files.splits["train"].class_names
    labels = {image.sample_id: [names_of[thing.label] for thing in image.objects] for image in _images(tmp_path)}
    assert labels == {"p0.jpg": ["cat"], "p1.jpg": ["cat"], "p4.jpg": ["ant"]}
    assert names(found.about, "skipped: 2", "not used: 2")


def _images(folder):
    return opened(folder).files.splits["train"].images


@pytest.mark.parametrize(
    ("word", "file"),
    [
        ("/data/upload/1/0a1b2c3d-cat.jpg", "0a1b2c3d-cat.jpg"),
        ("/data/upload/1/0a1b2c3d-cat.jpg", "images/cat.jpg"),
        ("/data/local-files/?d=shoot%201/cat.jpg", "shoot 1/cat.jpg"),
        ("http://host:8080/media/my%20cat.jpg?token=1", "my cat.jpg"),
        ("s3://bucket/day/cat.jpg", "day/cat.jpg"),
        ("C:\\images\\cat.jpg", "cat.jpg"),
        ("cat #1?.jpg", "cat #1?.jpg"),
    ],
)
def test_images_are_found_by_what_the_task_names(tmp_path, word, file):
    write_image(tmp_path / file, 1)
    write_image(tmp_path / "other" / "dog.jpg", 2)
    write_json(tmp_path / "set.json", [task(0, word, [polygon("cat", CAT)])])
    (image,) = _images(tmp_path)
    assert image.path == tmp_path / file and image.sample_id == file and len(image.objects) == 1


def test_the_folder_tells_equal_names_apart(tmp_path):
    for folder in ("a", "b"):
        write_image(tmp_path / folder / "1.jpg", ord(folder))
    write_json(tmp_path / "set.json", [task(0, "s3://x/b/1.jpg", []), task(1, "s3://x/a/1.jpg", [])])
    assert [image.sample_id for image in _images(tmp_path)] == ["b/1.jpg", "a/1.jpg"]
    write_json(tmp_path / "set.json", [task(0, "1.jpg", [])])
    with pytest.raises(UserError, match=naming("tasks[0]", "a/1.jpg", "b/1.jpg")):
        opened(tmp_path)
    write_json(tmp_path / "set.json", [task(0, "a/1.jpg", []), task(1, "x/a/1.jpg", [])])
    with pytest.raises(UserError, match=naming("tasks[1]", "a/1.jpg")):
        opened(tmp_path)


def test_nothing_outside_of_the_folder_is_read(tmp_path):
    write_image(tmp_path / "secret.jpg", 1)
    for word in (
        "../secret.jpg",
        "/data/local-files/?d=../../secret.jpg",
        "//x/../secret.jpg",
        "C:\\secret.jpg",
        str(tmp_path / "secret.jpg"),
    ):
        write_json(tmp_path / "set" / "set.json", [task(0, word, [polygon("cat", CAT)])])
        (image,) = _images(tmp_path / "set")
        assert image.path.is_relative_to(tmp_path / "set") and ".." not in image.path.parts
        assert image.path.name == "secret.jpg" and not image.objects


def test_regions_are_of_the_upright_image(tmp_path):
    folder = export(tmp_path, [polygon("cat", CAT), polygon("ant", ANT)])
    image = Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8))
    image.save(folder / "images/0a1b2c3d-p0.jpg", exif=with_orientation(6))
    assert (class_maps(folder)["images/0a1b2c3d-p0.jpg"] == expected_map(255, 1, 0)).all()


@pytest.mark.parametrize(
    ("wrong", "code", "named"),
    [
        (region("rectanglelabels", "cat", x=1, y=1, width=20, height=20, rotation=0), "no-mask", "box"),
        (region("ellipselabels", "cat", x=1, y=1, radiusX=20, radiusY=20), "no-mask", "annotation 2"),
        (region("polygonlabels", "cat", points=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]), "bad-polygon", "annotation 2"),
        (region("polygonlabels", "cat", points=[[1, float("nan")], [4, 5], [7, 8]]), "bad-polygon", "annotation 2"),
        (region("polygonlabels", "cat", points=[[1, 10**400], [4, 5], [7, 8]]), "bad-polygon", "annotation 2"),
        (region("polygonlabels", "cat", points="M 1 2"), "bad-polygon", "annotation 2"),
        (region("polygonlabels", "cat", points=[[900, 900], [950, 900], [950, 950]]), "far-outside", "annotation 2"),
        (region("polygonlabels", ["cat", "ant"], points=[[1, 2], [40, 5], [7, 80]]), "not-one-label", "region 2"),
        (region("polygonlabels", [], points=[[1, 2], [40, 5], [7, 80]]), "not-one-label", "region 2"),
        ({"id": "x", "type": "brush", "value": {"rle": RLE}}, "not-one-label", "region 2"),
        (region("brushlabels", "cat", format="rle", rle=RLE), "bad-rle", f"{4 * HEIGHT * WIDTH:,}"),
        (polygon("cat", CAT) | {"image_rotation": 90}, "turned", "region 2"),
    ],
)
def test_mistakes_of_a_region_are_one_finding(tmp_path, wrong, code, named, capsys):
    folder = export(tmp_path / "set", [polygon("ant", ANT)], [polygon("cat", CAT), wrong])
    config = check_dataset.parse_arguments(["--data", str(folder), "--json"])
    assert run_job(lambda: check_dataset.check(config)) == 2
    (error,) = (one for one in json.loads(capsys.readouterr().out)["findings"] if one["severity"] == "error")
    assert error["code"] == code and "p1.jpg" in error["files"][0] and named in error["files"][0]


@pytest.mark.parametrize("size_hw", [(48, 64), (10**9, 10**9)])
def test_an_image_that_is_missing_or_of_another_size_is_one_finding(tmp_path, size_hw, capsys):
    other = polygon("cat", CAT) | {"original_height": size_hw[0], "original_width": size_hw[1]}
    folder = export(tmp_path / "set", [polygon("ant", ANT), polygon("cat", CAT)], [other], [polygon("cat", CAT)])
    (folder / "images/0a1b2c3d-p2.jpg").unlink()
    config = check_dataset.parse_arguments(["--data", str(folder), "--json"])
    assert run_job(lambda: check_dataset.check(config)) == 2
    errors = [one for one in json.loads(capsys.readouterr().out)["findings"] if one["severity"] == "error"]
    assert [one["code"] for one in errors] == ["missing-file", "size-mismatch"]
    assert ["p2.jpg" in errors[0]["files"][0], "p1.jpg" in errors[1]["files"][0]] == [True, True]
    assert train_one_step(folder, "--on-bad-sample", "skip", "--batch-size", "1") == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[{"annotations": [{"result"', "JSON"),
        ('[{"annotations": 3, "data": {"image": "a.jpg"}}]', "tasks[0]"),
        ('[{"annotations": [{"result": [3]}], "data": {"image": "a.jpg"}}]', "tasks[0]"),
        ('[{"annotations": [{"result": []}], "data": {"text": "a"}}]', "tasks[0]"),
        ('[{"annotations": [{"result": []}], "data": {"image": "http://["}}]', "tasks[0]"),
        ('[{"annotations": [{"result": []}], "data": {"image": "a\\u0000.jpg"}}]', "tasks[0]"),
        ('[{"annotations": [{"result": []}], "data": {"image": "a\\ud800.jpg"}}]', "tasks[0]"),
        ('[{"annotations": [{"result": []}], "data": {"a": "a.jpg", "b": "b.jpg"}}]', "'image'"),
        ('[{"annotations": [], "data": {"image": "a.jpg"}}]', "annotation"),
        ('[{"annotations": [{"result": []}], "data": {"image": "a.jpg"}}, 7]', "set.json"),
    ],
)
def test_mistakes_of_the_file_are_one_message(tmp_path, text, named):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(UserError, match=naming("set.json", named)):
        opened(tmp_path)
