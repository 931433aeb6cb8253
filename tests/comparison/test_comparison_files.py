"""comparison.json: every number comes back, and a file of another kind is said to be one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from comparison_helpers import made_comparison

from comparison.files import read_comparison, write_comparison
from comparison.verdict import decide
from errors import UserError


@pytest.fixture(scope="module")
def made():
    return made_comparison({"m2f": 0.7, "linear": 0.6}, images=25, classes=5, seeds=2, gallery=1)


def test_every_number_comes_back(made, tmp_path):
    path = tmp_path / "comparison.json"
    write_comparison(path, made)
    again = read_comparison(path)
    assert again.gallery == [] and decide(again) == decide(made)
    for name in vars(made).keys() - {"results", "gallery"}:
        assert getattr(again, name) == getattr(made, name)
    for ours, theirs in zip(made.results, again.results, strict=True):
        assert np.array_equal(ours.confusion, theirs.confusion) and theirs.confusion.dtype == np.int64
        assert np.array_equal(ours.per_image.areas, theirs.per_image.areas)
        bare = {"confusion": None, "per_image": None}
        assert replace(ours, **bare) == replace(theirs, **bare)


def test_values_that_are_not_known_are_null(made, tmp_path):
    run = replace(made.results[0], metrics={"mIoU": math.nan}, per_class=[None, 0.5, 0, 0, 0], confusion=None)
    write_comparison(tmp_path / "c.json", replace(made, results=[run]))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads((tmp_path / "c.json").read_text(), parse_constant=refuse)
    assert content["results"][0]["metrics"] == {"mIoU": None} and "gallery" not in content
    (again,) = read_comparison(tmp_path / "c.json").results
    assert math.isnan(again.metrics["mIoU"]) and again.per_class[0] is None and again.confusion is None


def test_equal_comparisons_give_equal_files(made, tmp_path):
    for name in ("a.json", "b.json"):
        write_comparison(tmp_path / name, made)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_names_of_files_that_are_no_text_are_written(made, tmp_path):
    write_comparison(tmp_path / "c.json", replace(made, sample_ids=["caf\udce9.png", *made.sample_ids[1:]]))
    assert read_comparison(tmp_path / "c.json").sample_ids[0] == "caf\udce9.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "no comparison of format"),
        ('{"format": 99}', "no comparison of format"),
        ('{"format": 1, "task": "semantic"}', "is missing or of another kind"),
        (None, "cannot be read"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "comparison.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_comparison(path)


def test_a_damaged_part_is_refused(made, tmp_path):
    path = tmp_path / "comparison.json"
    write_comparison(path, made)
    whole = json.loads(path.read_text())
    for damage in ({"kind": "other"}, {"kind": "semantic", "shape": [1, 1], "rows": [[5, 0, 1, 1, 1]]}, None, []):
        whole["results"][0]["per_image"] = damage
        path.write_text(json.dumps(whole))
        with pytest.raises(UserError, match="make the comparison again"):
            read_comparison(path)
