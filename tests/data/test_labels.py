"""What stored values mean: the rule, and the flags that make it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from messages import naming
from paths import ROOT

from data.labels import DEFAULT_NUM_CLASSES, STRANGE, LabelRule, label_options
from errors import UserError
from training.config import parse_training_arguments

NOWHERE = Path("mask.png")
CAMVID = ("64 128 64\tAnimal", "192 0 128\tArchway", "0 0 0\tVoid")


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@st.composite
def rules(draw) -> LabelRule:
    """Any rule: plain, with a label map, with a palette, or with both."""
    stored = draw(st.lists(st.integers(0, 40), min_size=2, max_size=12, unique=True))
    codes = draw(st.lists(st.integers(0, 0xFFFFFF), min_size=46, max_size=46, unique=True))
    ignore_index = draw(st.sampled_from([0, 3, 255]))
    if draw(st.booleans()):
        cut = draw(st.integers(1, len(stored) - 1))
        label_map = ((stored[0],), *(tuple(stored[k : k + 2]) for k in range(1, cut, 2)))
        named = {k for ids in label_map for k in ids}
        dropped = tuple(k for k in stored if k not in named)
        palette = tuple(codes) if draw(st.booleans()) else ()
        return LabelRule(len(label_map), ignore_index, False, palette, label_map, dropped, draw(st.booleans()))
    reduce_zero_label = draw(st.booleans())
    palette = tuple(codes[: len(stored) + reduce_zero_label]) if draw(st.booleans()) else ()
    return LabelRule(len(stored), ignore_index, reduce_zero_label, palette)


def meaning(rule: LabelRule, stored: int) -> int | None:
    """What the docstring of LabelRule says of one id; None where it is an error."""
    for class_id, ids in enumerate(rule.label_map):
        if stored in ids:
            return class_id
    if stored == rule.ignore_index or stored in rule.dropped or rule.drop_rest:
        return 255
    if rule.label_map:
        return None
    if rule.reduce_zero_label and stored == 0:
        return 255
    class_id = stored - rule.reduce_zero_label
    return class_id if 0 <= class_id < rule.num_classes else None


# The rule


@given(rules(), hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.int32]), (3, 4), elements=st.integers(0, 45)))
def test_labels_follow_the_rule_pixel_by_pixel(rule, ids):
    expected = [meaning(rule, stored) for stored in ids.flat]
    assert rule.table[ids].flatten().tolist() == [STRANGE if k is None else k for k in expected]
    if None in expected:
        with pytest.raises(ValueError, match=naming("mask.png", "ids")):
            rule.apply(ids, NOWHERE)
    else:
        classes = rule.apply(ids, NOWHERE)
        assert classes.dtype == np.uint8 and classes.flatten().tolist() == expected


@given(rules())
def test_a_rule_survives_json(rule):
    assert LabelRule.from_dict(json.loads(json.dumps(rule.as_dict()))) == rule


def test_colors_of_classes_are_kept_and_older_rules_have_none():
    rule, _ = label_options(3, None, 255, False, None, None, colors=(0xFF0000, 0, 1))
    assert LabelRule.from_dict(json.loads(json.dumps(rule.as_dict()))) == rule and rule.class_palette == [
        0xFF0000,
        0,
        1,
    ]
    plain, _ = label_options(4, None, 255, False, None, None, colors=(0xFF0000, 0, 1))
    assert "colors" not in plain.as_dict() and LabelRule.from_dict(plain.as_dict()) == plain == LabelRule(4)


@given(rules())
def test_the_stored_value_of_a_class_means_that_class(rule):
    for class_id in range(rule.num_classes):
        stored = rule.stored_value(class_id)
        assert rule.table[stored] == class_id or (stored == rule.ignore_index and not rule.label_map)


@given(rules(), st.data())
def test_colours_become_the_positions_in_the_palette(rule, data):
    if rule.palette:
        ids = data.draw(hnp.arrays(np.int64, (3, 4), elements=st.integers(0, len(rule.palette) - 1)))
        colours = np.array(rule.palette, np.int32)[ids]
        assert (rule.ids_of_colors(colours, NOWHERE) == ids).all()


def test_ade20k_masks():
    stored = np.array([[0, 1, 150, 255]], np.uint8)
    assert LabelRule(150, reduce_zero_label=True).apply(stored, NOWHERE).tolist() == [[255, 0, 149, 255]]


def test_ids_out_of_range_are_named_with_the_remedy():
    def fails_with(match: str, rule: LabelRule, *ids: int) -> None:
        with pytest.raises(UserError, match=match):
            rule.apply(np.array([ids], np.int32), NOWHERE)

    fails_with(naming("mask.png", "ids 5, 7,", "--num-classes to 8"), LabelRule(5), 0, 5, 7, 255)
    fails_with(naming("ids 11,", "--ignore-index 11"), LabelRule(11), 0, 11)
    fails_with(naming("ids 150,", "--reduce-zero-label"), LabelRule(150), 0, 150)
    reduced = LabelRule(3, ignore_index=0, reduce_zero_label=True)
    fails_with(naming("ids -4, 40,", "1 to 3"), reduced, 40, -4, 3)
    fails_with("ids 70000, ((?!-classes to|--ignore|--reduce).)*$", LabelRule(11), 70000)  # no flag would help
    mapped = LabelRule(1, label_map=((3,),))
    fails_with(naming("ids -1, 4,", "--label-map", '"ignore": "rest"'), mapped, 3, 4, -1)
    fails_with(naming("ids 70000,"), LabelRule(1, label_map=((3,),), drop_rest=True), 70000)
    fails_with(naming("ids 1 (#0000ff),"), LabelRule(1, palette=(0, 255), label_map=((0,),)), 0, 1)


def test_colours_that_the_palette_lacks_are_named_the_most_frequent_first():
    rule = LabelRule(2, palette=(0x000000, 0xFF0000))
    colours = np.array([[0, 0x112233, 0x000001, 0x112233, 0xFF0000, 0xFFFFFF]], np.int32)
    shown = r"#112233 \(2 pixels\), #000001 \(1 pixels\), #ffffff \(1 pixels\).*--palette"
    with pytest.raises(UserError, match=rf"mask\.png .*{shown}"):
        rule.ids_of_colors(colours, NOWHERE)
    with pytest.raises(ValueError, match=naming("92 more")):
        rule.ids_of_colors(np.arange(1, 101, dtype=np.int32)[None], NOWHERE)


@pytest.mark.parametrize("count", [0, 256])
def test_number_of_classes_is_checked(count):
    with pytest.raises(ValueError, match=f"--num-classes {count}"):
        LabelRule(count)


def test_an_ignore_index_that_no_mask_can_hold_is_refused():
    for ignore_index in (-1, 65536):
        with pytest.raises(ValueError, match=naming(f"--ignore-index {ignore_index}:", 65535)):
            LabelRule(3, ignore_index)


def test_descriptions():
    assert LabelRule(11).describe(["x"] * 11) == ["ids 0 to 10, 255 ignored"]
    assert LabelRule(150, 255, True).describe(["x"] * 150) == ["ids 1 to 150, 0 and 255 ignored"]
    assert LabelRule(3, 0, True).describe(["x"] * 3) == ["ids 1 to 3, 0 ignored"]
    mapped = LabelRule(2, label_map=((0, 1), (11,)), dropped=(30,))
    assert mapped.describe(["road", "person"]) == ["road <- 0, 1", "person <- 11", "ignored: 30, 255"]
    rest = LabelRule(2, palette=(0, 255), label_map=((1,), (0,)), drop_rest=True)
    assert rest.describe(["a", "b"]) == ["a <- #0000ff", "b <- #000000", "ignored: everything else"]
    colours = LabelRule(13, reduce_zero_label=True, palette=tuple(range(14)))
    lines = colours.describe([f"class {k}" for k in range(13)])
    assert lines[0] == "class 0 <- #000001" and lines[12:] == ["and 1 more", "ignored: #000000"]


# The flags


def test_labels_and_decoding_need_no_torch():
    """The dataset check uses them, and must not wait seconds for torch."""
    probe = "import sys, data.labels, data.decode; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, timeout=60)


def test_flags_alone_give_the_plain_rule():
    assert label_options(3, None, 255, True, None, None) == (LabelRule(3, 255, True), ["class 0", "class 1", "class 2"])
    assert label_options(2, ["a", "b"], 0, False, None, None) == (LabelRule(2, 0), ["a", "b"])
    args = parse_training_arguments("linear", ["--image-paths", "i", "--mask-paths", "m"])
    assert args.num_classes == DEFAULT_NUM_CLASSES


def test_palette_and_label_map_decide_the_classes(tmp_path):
    palette = written(tmp_path / "palette.txt", "\n".join(CAMVID))
    codes = (0x408040, 0xC00080, 0)
    rule, names = label_options(DEFAULT_NUM_CLASSES, None, 255, False, None, palette)
    assert (rule, names) == (LabelRule(3, palette=codes), ["Animal", "Archway", "Void"])
    rule, names = label_options(2, None, 255, True, None, palette)
    assert (rule, names) == (LabelRule(2, 255, True, codes), ["Archway", "Void"])
    assert rule.table[:4].tolist() == [255, 0, 1, STRANGE]
    assert label_options(3, ["a", "b", "c"], 255, False, None, palette)[1] == ["a", "b", "c"]

    label_map = written(tmp_path / "map.json", {"classes": {"built": "Archway", "free": 2}, "ignore": "Animal"})
    rule, names = label_options(DEFAULT_NUM_CLASSES, None, 255, False, label_map, palette)
    assert (rule, names) == (LabelRule(2, palette=codes, label_map=((1,), (2,)), dropped=(0,)), ["built", "free"])
    foreground = written(tmp_path / "map.json", {"classes": {"background": 0, "foreground": 255}})
    rule, _ = label_options(2, None, 255, False, foreground, None)
    assert rule.apply(np.array([[0, 255]], np.uint8), NOWHERE).tolist() == [[0, 1]]


def test_flags_that_contradict_one_another_are_refused(tmp_path):
    palette = written(tmp_path / "palette.txt", "\n".join(CAMVID))
    single = written(tmp_path / "single.txt", "0 0 0")
    label_map = written(tmp_path / "map.json", {"classes": {"a": 0, "b": 1}, "ignore": "rest"})
    for match, arguments in (
        (naming("--num-classes 4", "--palette", "3 colours"), (4, None, 255, False, None, palette)),
        (naming("--num-classes 3", "--label-map", "2 classes"), (3, None, 255, False, label_map, palette)),
        (naming("--class-names", "--label-map"), (150, ["a"], 255, False, label_map, None)),
        (naming("--reduce-zero-label", "--label-map"), (150, None, 255, True, label_map, None)),
        (naming("--class-names", "2 names", "3 classes"), (150, ["a", "b"], 255, False, None, palette)),
        (naming("--class-names", " a "), (150, ["a", "a", "b"], 255, False, None, palette)),
        (naming("--palette", "--reduce-zero-label"), (150, None, 255, True, None, single)),
    ):
        with pytest.raises(UserError, match=match):
            label_options(*arguments)


def test_one_class_teaches_nothing_and_is_refused_with_the_two_class_way(tmp_path):
    """Every pixel would be that class: a loss of 0 and an mIoU of 1 from the first step."""
    single = written(tmp_path / "single.txt", "0 0 0 thing\n9 9 9 other")
    label_map = written(tmp_path / "map.json", {"classes": {"thing": 255}, "ignore": "rest"})
    for source, arguments in (
        ("--num-classes 1", (1, None, 255, False, None, None)),
        ("--num-classes 1", (1, ["thing"], 255, False, None, None)),
        ("--label-map", (150, None, 255, False, label_map, None)),
        ("--palette", (150, None, 255, True, None, single)),
    ):
        with pytest.raises(UserError, match=source) as refused:
            label_options(*arguments)
        if source == "--num-classes 1":
            assert "--num-classes 2" in str(refused.value)
            proposed = re.search(r"\{.*\}", str(refused.value))[0]
            rule, _ = label_options(150, None, 255, False, written(tmp_path / "two.json", json.loads(proposed)), None)
            assert rule.apply(np.array([[0, 255]], np.uint8), NOWHERE).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "reduce_zero_label"),
    [(255, 255, True), (255, 254, False), (20, 3, False), (9, 9, True)],
)
def test_a_class_that_is_stored_as_the_ignore_index_is_refused(num_classes, ignore_index, reduce_zero_label):
    with pytest.raises(UserError, match=f"--ignore-index {ignore_index} "):
        label_options(num_classes, None, ignore_index, reduce_zero_label, None, None)


def test_all_255_classes_can_be_stored_from_one():
    rule, _ = label_options(255, None, 0, True, None, None)
    assert sorted(rule.table[1:256].tolist()) == list(range(255))
    assert label_options(3, None, 0, False, None, None)[0] == LabelRule(3, 0)  # PyTorch's way to ignore class 0


def test_names_from_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=naming("--class-names", "clases.txt")):
        label_options(3, [str(tmp_path / "clases.txt")], 255, False, None, None)
