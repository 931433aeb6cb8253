"""Every finding of the dataset check on a data set made for it; the report as text, JSON and message."""

import json

import numpy as np
import pytest
from check_helpers import Maker, codes, only
from PIL import Image

from data.check.report import WIDTH, as_json, as_text, error_message
from data.labels import LabelRule, label_options
from evaluation.drawing import class_colors
from evaluation.visualize import mask_overlay, preview

RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (7, 7, 7)


@pytest.fixture
def make(tmp_path, monkeypatch) -> Maker:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Maker(tmp_path / "set")


def test_a_clean_set_has_its_numbers_and_no_finding(make):
    make.pair("a", [0, 1, 2, 255])
    make.pair("b", [1, 2], size_wh=(20, 10))
    make.pair("v", [0, 1, 2], "val")
    report = make.check(3, val="val")
    assert report.findings == []
    assert (report.exit_code(strict=True), error_message(report)) == (0, "")
    train = report.train
    assert (train.pairs, train.usable, train.sizes_wh) == (2, 2, {(12, 8): 1, (20, 10): 1})
    assert (train.class_pixels, train.class_pictures) == ([24, 124, 124], [1, 2, 2])
    assert train.ignored_pixels == 24 and train.ignored_share == pytest.approx(24 / 296)
    assert report.val.class_pixels == [32, 32, 32]


class TestFiles:
    def test_unpaired(self, make):
        make.pair("a", [0, 1])
        make.image("lone")
        make.mask("other", [0])
        make.mask("third", [0])
        finding = only(make.check(2), "unpaired")
        assert finding.message.startswith("There is 1 image without a mask and 2 masks without an image")
        assert [line.rsplit("/", 1)[-1] for line in finding.files] == [
            "lone.png: no mask",
            "other.png: no image",
            "third.png: no image",
        ]

    def test_broken_files_of_all_kinds(self, make):
        for name in ("good", "empty", "half", "lossy", "float"):
            make.pair(name, [0, 1], size_wh=(40, 30))
        make.path("masks", "train", "empty.png").write_bytes(b"")
        half = make.path("images", "train", "half.png")
        half.write_bytes(half.read_bytes()[:1000])
        make.path("masks", "train", "lossy.png").unlink()
        Image.new("L", (40, 30)).save(make.path("masks", "train", "lossy.jpg"))
        make.path("masks", "train", "float.png").unlink()
        Image.new("F", (40, 30)).save(make.path("masks", "train", "float.tif"))
        report = make.check(2)
        assert codes(report) == ["damaged-file", "lossy-mask", "unsuitable-file"]
        assert [len(finding.files) for finding in report.findings] == [2, 1, 1]
        assert "empty.png" in only(report, "damaged-file").files[0]
        assert "PNG" in only(report, "lossy-mask").remedy
        assert report.bad_sample_ids == {"train": ["empty", "float", "half", "lossy"], "val": []}

    def test_no_pairs_at_all(self, make):
        make.image("a")
        make.mask("b", [0])
        report = make.check(2)
        assert codes(report) == ["unpaired"] and not report.can_skip
        assert "1 image without a mask and 1 mask without an image" in as_text(report).replace("\n  ", " ")

    def test_too_large(self, make):
        make.pair("a", [0, 1], size_wh=(20, 20))
        make.pair("b", [0, 1])
        finding = only(make.check(2, max_pixels=200), "too-large")
        assert len(finding.files) == 2 and "--max-megapixels" in finding.remedy

    def test_size_mismatch(self, make):
        make.pair("a", [0, 1])
        make.image("b", size_wh=(13, 8))
        make.mask("b", [0, 1])
        report = make.check(2)
        finding = only(report, "size-mismatch")
        assert "12 x 8" in finding.files[0] and "13 x 8" in finding.files[0] and "EXIF" not in finding.remedy
        assert report.bad_sample_ids["train"] == ["b"]

    def test_size_mismatch_that_exif_explains(self, make):
        make.image("a", orientation=6)
        make.mask("a", [0, 1])
        finding = only(make.check(2), "size-mismatch")
        assert "EXIF" in finding.remedy and "orientation 6" in finding.files[0]

    @pytest.mark.parametrize(
        ("size_wh", "orientation", "told"),
        [((12, 8), 3, False), ((12, 8), 2, False), ((9, 9), 6, False), ((12, 8), 1, True), ((9, 9), 1, True)],
    )
    def test_masks_that_may_be_turned(self, make, size_wh, orientation, told):
        make.image("a", size_wh=size_wh, orientation=orientation)
        make.mask("a", [0, 1], size_wh=size_wh)
        assert codes(make.check(2)) == ([] if told else ["maybe-turned"])

    def test_a_mask_drawn_on_the_upright_image_is_right(self, make):
        make.image("a", size_wh=(12, 8), orientation=6)
        make.mask("a", [0, 1], size_wh=(8, 12))
        assert codes(make.check(2)) == []


class TestValues:
    def test_values_out_of_range(self, make):
        make.pair("a", [0, 1, 2])
        make.pair("b", [0, 1, 2, 9, 9])
        make.pair("c", [5, 9])
        report = make.check(3)
        finding = only(report, "unknown-values")
        assert finding.message.startswith("2 masks hold values that are neither a class nor unlabelled: 9 (86 pixels)")
        assert [line.rsplit("/", 1)[-1] for line in finding.files] == [
            "b.png: 9 (38 pixels)",
            "c.png: 5 (48 pixels), 9 (48 pixels)",
        ]
        assert "--num-classes 10" in finding.remedy and "--reduce-zero-label" not in finding.remedy
        assert report.train.class_pixels == [32, 32, 32]  # of the one good mask

    @pytest.mark.parametrize(
        ("values", "rule", "remedy"),
        [
            ([0, 1, 2, 3], LabelRule(3), "Pass --reduce-zero-label --num-classes 3, if 0 marks"),
            ([0, 1, 2, 3], LabelRule(3), "or pass --num-classes 4 if"),
            ([1, 2, 3], LabelRule(3), "Pass --reduce-zero-label --num-classes 3, for 0 never occurs"),
            ([0, 1, 2, 3, 4], LabelRule(3, reduce_zero_label=True), "Pass --num-classes 4 if"),
            ([0, 1, 2, 254], LabelRule(3), "Pass --ignore-index 254 if"),
            ([0, 9], LabelRule(3), '{"classes": {"background": 0, "foreground": 9}}'),
            ([0, 255], LabelRule(3, ignore_index=9), '{"classes": {"background": 0, "foreground": 255}}'),
            ([0, 1, 8], LabelRule(2, label_map=((0,), (1,))), '"ignore": "rest"'),
        ],
    )
    def test_remedies_for_values(self, make, values, rule, remedy):
        make.pair("a", values)
        assert remedy in only(make.check(rule), "unknown-values").remedy

    @pytest.mark.parametrize(("value", "remedy"), [(-1, "0 to 65535"), (70_000, "0 to 65535"), (65_535, "--ignore")])
    def test_values_beyond_16_bits_and_at_their_end(self, make, value, remedy):
        make.image("a")
        pixels = np.resize(np.array([0, 1, value], np.int32), (8, 12))
        Image.fromarray(pixels).save(make.path("masks", "train", "a.tif"))
        finding = only(make.check(2), "unknown-values")
        assert f"{value} (32 pixels)" in finding.message and remedy in finding.remedy

    def test_following_a_remedy_mends_it(self, make, tmp_path):
        make.pair("a", [0, 255])
        finding = only(make.check(150), "foreground-ignored")
        (tmp_path / "map.json").write_text(finding.remedy.split(": ", 1)[1])
        rule, names = label_options(150, None, 255, False, str(tmp_path / "map.json"), None)
        assert names == ["background", "foreground"]
        report = make.check(rule)
        assert report.findings == [] and report.train.class_pixels == [48, 48]

    def test_foreground_is_not_ignored_where_there_are_more_values(self, make):
        make.pair("a", [0, 255])
        make.pair("b", [0, 1])
        assert "foreground-ignored" not in codes(make.check(2))

    def test_colours_without_a_palette_give_lines_to_paste(self, make, tmp_path):
        make.pair("a", [RED, RED, GREEN])
        make.pair("b", [GREY, GREY])  # its channels are equal: alone it would be taken for ids
        report = make.check(150)
        finding = only(report, "color-masks")
        assert len(finding.files) == 1 and finding.files[0].endswith("a.png: 2 colours")
        lines = finding.remedy.splitlines()[1:]
        assert lines == ["7 7 7 class_0", "255 0 0 class_1", "0 255 0 class_2"]
        (tmp_path / "palette.txt").write_text("\n".join(lines))
        rule, names = label_options(150, None, 255, False, None, str(tmp_path / "palette.txt"))
        assert names == ["class_0", "class_1", "class_2"]
        report = make.check(rule)
        assert report.findings == [] and report.train.class_pixels == [96, 64, 32]

    def test_colours_outside_the_palette(self, make):
        make.pair("a", [RED, GREEN, (1, 2, 3)])
        report = make.check(LabelRule(2, palette=(0xFF0000, 0x00FF00)))
        finding = only(report, "unknown-colors")
        assert "#010203 (32 pixels)" in finding.message and "anti-aliasing" in finding.remedy
        assert report.bad_sample_ids["train"] == ["a"]

    def test_ids_where_colours_were_announced(self, make):
        make.pair("a", [0, 1])
        finding = only(make.check(LabelRule(2, palette=(0xFF0000, 0x00FF00))), "unknown-colors")
        assert "leave --palette out" in finding.remedy

    def test_very_many_values(self, make):
        make.image("a", size_wh=(50, 50))
        make.mask("a", np.arange(2500), size_wh=(50, 50), dtype=np.uint16)
        rule = LabelRule(1, label_map=((0,),), drop_rest=True)
        assert "2,500 values" in only(make.check(rule), "many-values").files[0]


class TestSets:
    def test_nothing_labelled(self, make):
        make.pair("a", [255])
        report = make.check(2)
        assert codes(report) == ["nothing-labelled"]
        assert not report.can_skip

    def test_some_images_without_a_label(self, make):
        make.pair("a", [255])
        make.pair("b", [0, 1])
        report = make.check(2)
        assert codes(report) == ["unlabelled-pictures"]
        assert len(only(report, "unlabelled-pictures").files) == 1
        assert report.train.unlabelled_pictures == ["a"]

    def test_classes_that_never_occur(self, make):
        make.pair("a", [0, 1, 4])
        make.pair("v", [0, 2], "val")
        report = make.check(5, val="val")
        assert codes(report) == ["class-missing-train", "class-missing-val"]
        assert "2 of 5 classes never occur in the training set: class 2, class 3." in report.findings[0].message
        assert "2 of 5 classes never occur in the validation set: class 1, class 4." in report.findings[1].message

    def test_too_many_classes_asked_for(self, make):
        make.pair("a", [0, 1, 2])
        assert "--num-classes 3" in only(make.check(150), "class-missing-train").remedy

    def test_ids_from_one(self, make):
        make.pair("a", [1, 2, 3])
        report = make.check(4)
        assert codes(report) == ["ids-from-one"]
        assert "--reduce-zero-label --num-classes 3" in report.findings[0].remedy
        assert make.check(LabelRule(3, reduce_zero_label=True)).findings == []

    def test_the_same_image_in_both_sets(self, make):
        make.image("a", seed=5)
        make.mask("a", [0, 1])
        make.image("other_name", "val", seed=5)
        make.mask("other_name", [0, 1], "val")
        finding = only(make.check(2, val="val"), "train-pictures-in-val")
        assert finding.severity == "warning"
        (line,) = finding.files
        assert line == f"{make.path('images', 'val', 'other_name.png')} is {make.path('images', 'train', 'a.png')}"

    def test_the_same_files_in_both_sets_are_one_warning(self, make):
        make.pair("a", [0, 1])
        make.pair("b", [0, 1])
        report = make.check(2, val="train")
        assert codes(report) == ["same-files"]
        assert len(report.findings[0].files) == 2

    def test_repeated_images(self, make):
        for name in ("a", "b", "c"):
            make.image(name, seed=1)
            make.mask(name, [0, 1])
        make.pair("d", [0, 1])
        finding = only(make.check(2), "repeated-pictures")
        assert finding.severity == "note" and finding.message.startswith("2 training images repeat")
        assert finding.files[0].count(" = ") == 2

    def test_mixed_modes(self, make):
        make.pair("a", [0, 1])
        make.pair("b", [0, 1])
        make.image("c")
        make.mask("c", [0, 1], dtype=np.uint16)
        finding = only(make.check(2), "mixed-mask-modes")
        assert "2 as L, 1 as I;16" in finding.message and len(finding.files) == 1

    @pytest.mark.parametrize(("values", "found"), [([0, 1, 255, 255], False), ([0, 1, 255, 255, 255], True)])
    def test_more_than_half_ignored(self, make, values, found):
        make.pair("a", values)
        assert codes(make.check(2)) == (["mostly-ignored"] if found else [])

    @pytest.mark.parametrize(("rare", "found"), [(1, True), (2, False)])
    def test_classes_with_less_than_one_in_a_hundred_pixels(self, make, rare, found):
        make.pair("a", [0] * (96 - rare) + [1] * rare)
        make.pair("b", [0])
        report = make.check(2)
        assert codes(report) == (["rare-classes"] if found else [])
        assert not found or (report.findings[0].severity == "note" and "--class-weights" in report.findings[0].remedy)


class TestReport:
    def messy(self, make: Maker):
        """45 bad masks, an unpaired image, a class missing, a repeated image."""
        make.pair("good", [0, 1])
        for number in range(45):
            make.pair(f"bad{number:02d}", [0, 9])
        make.image("lone")
        for name in ("twin_x", "twin_y"):
            make.image(name, seed=1)
            make.mask(name, [0])
        return make.check(3)

    def test_findings_stand_in_order_of_weight(self, make):
        report = self.messy(make)
        assert codes(report) == ["unpaired", "unknown-values", "class-missing-train", "repeated-pictures"]
        assert [f.severity for f in report.findings] == ["error", "error", "warning", "note"]
        assert report.exit_code(strict=False) == 2

    def test_text_names_twenty_files_and_counts_the_rest(self, make):
        text = as_text(self.messy(make))
        assert "bad19.png: 9 (48 pixels)" in text and "bad20.png" not in text and "and 25 more" in text
        assert text.endswith("2 errors, 1 warning, 1 note; 45 samples cannot be used.")
        own = [line for line in text.splitlines() if str(make.folder) not in line]
        assert max(map(len, own)) <= WIDTH

    def test_json_holds_all_files_and_the_numbers_of_the_text(self, make):
        report = self.messy(make)
        content = json.loads(json.dumps(as_json(report)))
        assert [len(finding["files"]) for finding in content["findings"]] == [1, 45, 0, 1]
        assert len(content["train"]["bad_sample_ids"]) == 45
        assert content["val"] is None
        rows = {line.split()[0]: line.split()[3:] for line in as_text(report).splitlines() if " class " in line}
        total = sum(entry["pixels"] for entry in content["train"]["classes"])
        for k, entry in enumerate(content["train"]["classes"]):
            assert rows[str(k)] == [f"{100 * entry['pixels'] / total:.2f}", str(entry["pictures"])]

    def test_the_message_for_training(self, make):
        message = error_message(self.messy(make))
        assert message.startswith("the dataset check found 2 errors:")
        assert "bad19.png" in message and "bad20.png" not in message and "and 25 more" in message
        assert "repeated-pictures" not in message
        assert "--on-bad-sample skip to train without 45 samples and 1 file without a partner" in message

    def test_skipping_is_offered_only_where_it_helps(self, make):
        make.pair("a", [0, 9])
        report = make.check(2)  # nothing would be left
        assert not report.can_skip and "--on-bad-sample" not in error_message(report)
        make.pair("b", [0, 1])
        make.pair("v", [0, 9], "val")
        assert make.check(2).can_skip
        assert not make.check(2, val="val").can_skip

    def test_exit_codes(self, make):
        make.pair("a", [0, 1])
        report = make.check(3)  # a class is missing: a warning
        assert (report.exit_code(strict=False), report.exit_code(strict=True)) == (0, 1)


class TestPreview:
    def test_masks_are_drawn_over_images(self):
        image = np.full((8, 8, 3), 100, np.uint8)
        classes = np.zeros((8, 8), np.int64)
        classes[:, 4:] = 1
        classes[:, 6:] = 255
        drawn = np.asarray(mask_overlay(image, classes, class_colors(2)))
        assert drawn[0, 0].tolist() == [80, 80, 80]  # half of 100, half of the 60 of class 0
        assert drawn[:, 3].max() == 0 and drawn[:, 5].max() == 0  # the outlines
        assert {tuple(pixel) for pixel in drawn[:, 6:].reshape(-1, 3)} == {(100, 100, 100), (255, 255, 255)}

    def test_a_sheet_has_at_most_sixteen_images_whatever_their_sizes(self):
        rng = np.random.default_rng(0)
        samples = [
            (rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 3, (h, w)), "a/long/" * 9 + "name")
            for h, w in [(10, 30), (300, 20), (1, 1), (400, 400), (9, 9)] * 4
        ]
        assert preview(samples, ["x", "y", "z"]).size == preview(samples[:16], ["x", "y", "z"]).size
        assert preview(samples[:1], ["x", "y", "z"]).size[1] < preview(samples[:5], ["x", "y", "z"]).size[1]
