"""The check of COCO sets: what it finds, what it counts, and what can be skipped."""

import json
from dataclasses import replace

import pytest
from coco_helpers import CocoMaker, PanopticMaker, square

from data.check.check import check_coco
from data.check.finding import Finding, Report
from data.check.report import WIDTH, as_json, as_text, error_message
from data.sources.coco_tables import CocoSet, common_classes


@pytest.fixture
def make(tmp_path, monkeypatch) -> CocoMaker:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return CocoMaker(tmp_path / "train")


def check(*sets: CocoSet, max_pixels: int = 10**6) -> Report:
    train, val, test, *_ = [*common_classes(sets), None, None]
    return check_coco(train, val, max_pixels, progress=False, test=test)


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings]


def only(report: Report, code: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.code == code)
    return finding


def test_a_clean_set_has_its_numbers_and_no_finding(make, tmp_path):
    a, b = make.image("a.png"), make.image("b.png", (10, 40))
    for _ in range(3):
        make.object(a)
    make.object(b, 7, bbox=[2, 3, 6, 6])
    val = CocoMaker(tmp_path / "val")
    for category in (3, 7):
        val.object(val.image(f"v{category}.png"), category)
    report = check(make.read(), val.read())
    assert report.findings == [] and error_message(report) == "" and report.exit_code(strict=True) == 0
    train = report.train
    assert (train.pictures, train.usable, train.objects, train.class_objects) == (2, 2, 4, [3, 1])
    assert (train.most_objects, train.crowds, train.sizes_wh) == (3, 0, {(30, 20): 1, (40, 10): 1})
    assert report.val.class_objects == [1, 1] and report.class_names == ["ant", "cat"]


def test_unreadable_images_can_be_skipped(make):
    for name in ("good", "gone", "damaged", "large"):
        make.object(make.image(f"{name}.png", (60, 60) if name == "large" else (20, 30)))
    (make.folder / "gone.png").unlink()
    (make.folder / "damaged.png").write_bytes(b"no image")
    report = check(make.read(), max_pixels=3000)
    assert {"missing-file", "damaged-file", "too-large"} == {finding.code for finding in report.of("error")}
    assert report.bad_sample_ids == {"train": ["gone.png", "damaged.png", "large.png"], "val": [], "test": []}
    assert report.can_skip and report.train.objects == 1 and report.exit_code(strict=False) == 2
    message = error_message(report)
    assert "found 3 errors" in message and "pass --on-bad-sample skip to train without 3 samples" in message
    assert str(make.folder / "gone.png") in message


def test_nothing_is_left_to_skip_to_where_no_image_can_be_used(make):
    make.object(make.image("a.png"))
    (make.folder / "a.png").unlink()
    report = check(make.read())
    assert codes(report) == ["missing-file"] and report.train.usable == 0 and not report.can_skip


def test_another_size_than_in_the_file(make):
    make.object(make.image("a.png", (20, 30), file_hw=(40, 60)))
    make.object(make.image("b.png"))
    report = check(make.read())
    (line,) = only(report, "size-mismatch").files
    assert line.endswith("a.png: 60 x 40, in the file 30 x 20")
    assert report.bad_sample_ids["train"] == ["a.png"]


def test_exif_is_a_question_only_where_the_size_does_not_answer_it(make):
    make.object(make.image("stored.png", (20, 30), orientation=6))
    make.object(make.image("upright.png", (30, 20), file_hw=(20, 30), orientation=6))
    make.object(make.image("square.png", (20, 20), orientation=6))
    make.object(make.image("half_turn.png", (20, 30), orientation=3))
    report = check(make.read())
    names = [line.rsplit("/", 1)[1] for line in only(report, "maybe-turned").files]
    assert names == ["square.png: orientation 6", "half_turn.png: orientation 3"]
    assert report.of("error") == []


def test_categories_matched_by_name_are_noted(make, tmp_path):
    make.object(make.image("a.png"), 3)
    other = CocoMaker(tmp_path / "other")
    other.content["categories"] = [{"id": 5, "name": "ant"}]
    other.object(other.image("b.png"), 5)
    finding = only(check(make.read(), other.read()), "matched-by-name")
    assert finding.severity == "note" and finding.files == [f"{other.json_path}: ant"]


@pytest.mark.parametrize(
    ("stored", "upright", "frame", "is_told"),
    [(0, 0, "upright", False), (2, 0, "stored", False), (0, 2, "upright", False), (1, 2, "upright", True)],
)
def test_the_frame_is_that_of_most_images_with_an_orientation(make, stored, upright, frame, is_told):
    make.object(make.image("plain.png"))
    for number in range(stored + upright):
        size_hw = (20, 30) if number < stored else (30, 20)
        make.object(make.image(f"{number}.png", size_hw, (20, 30), orientation=6))
    report = check(make.read())
    assert report.train.frame == frame and ("mixed-frames" in codes(report)) == is_told
    if is_told:
        assert len(only(report, "mixed-frames").files) == 1


def test_mistakes_are_reported_with_file_and_annotation(make):
    a, b = make.image("a.png"), make.image("b.png")
    make.object(a)
    make.object(b, segmentation=None, bbox=[1, 1, 4, 4])
    make.object(b, segmentation=None, bbox=[5, 5, 4, 4])
    make.object(a, segmentation=[[1, 1, 2, 2]])
    make.object(77)
    report = check(make.read())
    boxes = only(report, "no-mask")
    assert (boxes.severity, boxes.per_sample) == ("error", True)
    assert boxes.message == "2 annotations without a segmentation: a box or keypoints are no mask."
    assert boxes.files[1] == f"{make.folder / 'b.png'}: annotation 3 has a box but no segmentation"
    assert only(report, "no-area").severity == only(report, "unknown-image").severity == "warning"
    assert report.bad_sample_ids["train"] == ["b.png"] and report.can_skip


def test_a_file_of_which_a_part_is_held_out_is_reported_once(make):
    for name in ("a.png", "b.png"):
        make.object(make.image(name))
    make.object(77)
    whole = make.read()
    report = check(*(replace(whole, images=[image]) for image in whole.images))
    assert len(only(report, "unknown-image").files) == 1


def test_a_set_of_boxes_cannot_be_trained_on(make):
    make.object(make.image("a.png"), segmentation=None, bbox=[1, 1, 4, 4])
    make.image("empty.png")
    report = check(make.read())
    assert codes(report)[:2] == ["no-mask", "no-objects"] and not report.can_skip
    assert "--on-bad-sample skip" not in error_message(report)


def test_boxes_that_lie_elsewhere_than_the_masks(make):
    image = make.image("a.png")
    make.object(image, segmentation=[square(2, 3, 12)], bbox=[2.5, 3.5, 11, 12])
    make.object(image, segmentation=[square(2, 3, 12)], bbox=[1, 1.5, 6, 6])
    make.object(image, bbox="none")
    (line,) = only(check(make.read()), "box-differs").files
    assert line.endswith("a.png: annotation 2")


def test_images_without_objects_crowds_and_missing_classes(make, tmp_path):
    a, _ = make.image("a.png"), make.image("empty.png")
    make.object(a)
    make.object(a, 7, iscrowd=1)
    val = CocoMaker(tmp_path / "val")
    val.object(val.image("v.png"), 7)
    report = check(make.read(), val.read())
    assert report.train.class_objects == [1, 0] and report.train.crowds == 1
    assert report.train.pictures_without_objects == ["empty.png"]
    assert {finding.code for finding in report.of("note")} == {"pictures-without-objects", "crowds"}
    assert only(report, "class-missing-train").message.endswith("training set: cat.")
    assert only(report, "class-missing-val").message.endswith("validation set: ant.")
    assert report.exit_code(strict=True) == 1


def test_the_same_image_in_both_sets(make, tmp_path):
    make.object(make.image("a.png"))
    val = CocoMaker(tmp_path / "val")
    val.object(val.image("v.png"))
    (val.folder / "v.png").write_bytes((make.folder / "a.png").read_bytes())
    assert codes(check(make.read(), val.read())) == ["train-pictures-in-val"]


def test_the_test_split_is_checked_and_compared_with_both_others(make, tmp_path):
    val, test = CocoMaker(tmp_path / "val"), CocoMaker(tmp_path / "test")
    for some, names in ((make, "abc"), (val, "de"), (test, "abdfg")):
        for name in names:
            for category in (3, 7):
                some.object(some.image(f"{name}{category}.png"), category)
    for name in ("a3", "b7"):
        (test.folder / f"{name}.png").write_bytes((make.folder / f"{name}.png").read_bytes())
    (test.folder / "d3.png").write_bytes((val.folder / "d3.png").read_bytes())
    (test.folder / "g3.png").write_bytes(b"no image")
    report = check(make.read(), val.read(), test.read())
    assert codes(report) == ["damaged-file", "train-pictures-in-test", "val-pictures-in-test"]
    assert len(only(report, "train-pictures-in-test").files) == 2
    assert report.bad_sample_ids == {"train": [], "val": [], "test": ["g3.png"]} and report.can_skip
    content = as_json(report)
    assert content["test"]["pictures"] == 10 and content["test"]["classes"][0] == {"name": "ant", "objects": 4}
    assert "test" in as_text(report).splitlines()[0]


def test_a_test_split_without_annotations_stops_nothing(make, tmp_path):
    make.object(make.image("a.png"))
    test = CocoMaker(tmp_path / "test")
    test.image("t.png")
    report = check(make.read(), make.read(), test.read())
    assert only(report, "no-objects-test").severity == "warning" and not report.of("error")
    assert "pictures-without-objects" not in codes(report)


def test_panoptic_segments_are_compared_with_their_png(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make = PanopticMaker(tmp_path / "set")
    assert check(make.read()).findings == []
    make.ids[3, 5] = 256 * 256 * 3 + 256 * 2 + 1
    make.content["annotations"][0]["segments_info"].append({"id": 9, "category_id": 1})
    report = check(make.read())
    assert only(report, "unlisted-segments").files == [f"{tmp_path / 'set' / 'a_segments.png'}: {0x030201}"]
    assert only(report, "unseen-segments").files[0].endswith(": 9")
    make.ids = make.ids[:, :5]
    assert "size-mismatch" in codes(check(make.read()))


def test_text_and_json(make):
    for number in range(30):
        make.object(make.image(f"{number}.png"), segmentation=[[1, 1, float("inf"), 1, 2, 2]])
    make.object(make.image("good.png"))
    report = check(make.read())
    text = as_text(report)
    assert all(len(line) <= WIDTH or str(make.folder) in line for line in text.splitlines())
    assert "and 10 more" in text and text.endswith("30 samples cannot be used.")
    content = json.loads(json.dumps(as_json(report)))
    assert len(content["findings"][0]["files"]) == 30 and content["can_skip"]
    assert content["train"]["classes"] == [{"name": "ant", "objects": 1}]
