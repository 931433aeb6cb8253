"""The files that say what stored values mean: palettes and label maps."""

import json
from pathlib import Path

import pytest
from messages import naming

from data.label_files import read_class_names, read_label_map, read_palette
from errors import UserError


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


# The palette


def test_all_forms_of_a_palette_say_the_same(tmp_path):
    expected = [("Animal", 0x408040), ("Archway", 0xC00080), ("Void", 0)]
    commented = "\ufeff# made by hand\n\n64, 128, 64, Animal\n192 0 128 Archway\n#000000 Void\n"
    for content in (
        "64 128 64\tAnimal\n192 0 128\tArchway\n0 0 0\tVoid",
        commented,
        "# label:color_rgb:parts:actions\nAnimal:64,128,64::\nArchway:192,0,128:left,right:opens\nVoid:0,0,0::\n",
        {"Animal": [64, 128, 64], "Archway": "#C00080", "Void": [0, 0, 0]},
    ):
        assert read_palette(written(tmp_path / "palette", content)) == expected
    unnamed = [(f"class {k}", color) for k, (_, color) in enumerate(expected)]
    for content in ([[64, 128, 64], "#c00080", [0, 0, 0]], "64 128 64\n#c00080\n0,0,0\n"):
        assert read_palette(written(tmp_path / "palette", content)) == unnamed
    assert read_palette(written(tmp_path / "palette", "1 2 3 Lane markings, solid")) == [
        ("Lane markings, solid", 0x010203)
    ]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["0 colours", "255"]),
        ("{}", ["0 colours"]),
        ([f"#{k:06x}" for k in range(256)], ["256 colours"]),
        ("r g b name\n1 2 3 a", ["line 1", "'r g b name'", "R G B"]),
        ("1 2 " + "9" * 5000, ["line 1", "R G B"]),
        ("a:1,2," + "9" * 5000 + "::", ["line 1", "R G B"]),
        ("# ok\n1 2 256 a", ["line 2", "0 to 255"]),
        ("1 2 3 a\n#010203 b", ["line 2", "#010203", "line 1", "--label-map"]),
        ("1 2 3 a\n1 2 4 a", ["line 2", "'a'"]),
        ({"a": [1, 2]}, ["'a': [1, 2]"]),
        ({"a": [1, 2, True]}, ["'a': [1, 2, True]"]),
        ([[1, 2, 3], "red"], ["entry 1", "'red'"]),
        ('{"a": "#000000", "a": "#000001"}', ["'a'"]),
        ('{"a": ', ["JSON"]),
    ],
)
def test_mistakes_in_a_palette_are_named(tmp_path, content, parts):
    with pytest.raises(ValueError, match=naming("--palette", "p.txt", *parts)):
        read_palette(written(tmp_path / "p.txt", content))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=naming("--palette", "none.txt", "No such file")):
        read_palette(tmp_path / "none.txt")
    with pytest.raises(ValueError, match=naming("--label-map", "Is a directory")):
        read_label_map(tmp_path, None)
    (tmp_path / "utf16.txt").write_bytes("1 2 3 a".encode("utf-16"))
    with pytest.raises(ValueError, match=naming("utf16.txt", "UTF-8")):
        read_palette(tmp_path / "utf16.txt")


# The label map


def test_a_label_map_merges_renames_orders_and_drops(tmp_path):
    content = {"classes": {"person": 11, "road": [0, 1]}, "ignore": [30, 31]}
    found = read_label_map(written(tmp_path / "map.json", content), None)
    assert (found.names, found.ids) == (["person", "road"], ((11,), (0, 1)))
    assert (found.dropped, found.drop_rest) == ((30, 31), False)
    content = {"classes": {"all": ["Animal", 2]}, "ignore": "rest"}
    found = read_label_map(written(tmp_path / "map.json", content), ["Void", "Animal", "Archway"])
    assert (found.ids, found.dropped, found.drop_rest) == (((1, 2),), (), True)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("road: 1", ["JSON"]),
        ([1], ['"classes"']),
        ({"ignore": []}, ['"classes"']),
        ({"classes": {}}, ["0 classes", "255"]),
        ({"classes": {str(k): k for k in range(256)}}, ["256 classes"]),
        ({"classes": {"a": 1}, "ignored": [2]}, ["'ignored'"]),
        ({"classes": {" ": 1}}, ["name"]),
        ({"classes": {"a": []}}, ["'a'", "ids"]),
        ('{"classes": {"a": 1, "a": 2}}', ["'a'"]),
        ({"classes": {"a": [1, 1]}}, ["id 1 ", "'a' and in 'a'"]),
        ({"classes": {"a": 1, "b": [2, 1]}}, ["id 1 ", "'a'", "'b'"]),
        ({"classes": {"a": 1}, "ignore": 1}, ["id 1 ", "'a'", "'ignore'"]),
        ({"classes": {"a": True}}, ["'a': True"]),
        ({"classes": {"a": 1.0}}, ["'a': 1.0"]),
        ({"classes": {"a": -1}}, ["'a': -1"]),
        ({"classes": {"a": 65536}}, ["'a': 65536", "0 to 65535"]),
        ({"classes": {"a": None}}, ["'a': None"]),
        ({"classes": {"a": "Void"}}, ["'Void'", "ids"]),
    ],
)
def test_mistakes_in_a_label_map_are_named(tmp_path, content, parts):
    with pytest.raises(ValueError, match=naming("--label-map", "map.json", *parts)):
        read_label_map(written(tmp_path / "map.json", content), None)


def test_names_and_ids_that_the_palette_lacks_are_refused(tmp_path):
    path = written(tmp_path / "map.json", {"classes": {"a": "Anmial"}})
    with pytest.raises(ValueError, match=naming("'Anmial'", "--palette", "'Animal'")):
        read_label_map(path, ["Void", "Animal"])
    path = written(tmp_path / "map.json", {"classes": {"a": 0}, "ignore": [2]})
    with pytest.raises(ValueError, match=naming('"ignore"', "--palette", "id 2", "0 to 1")):
        read_label_map(path, ["Void", "Animal"])


@pytest.mark.parametrize("name", ["n" * 5000, "a/" * 3000 + "b", "a\0b", "~nobody-of-that-name/x"])
def test_names_too_long_or_strange_for_a_file(name):
    with pytest.raises(UserError, match="--class-names"):
        read_class_names([name], 3)
    for read in (read_palette, lambda path: read_label_map(path, None)):
        with pytest.raises(UserError):
            read(name)


@pytest.mark.parametrize("content", ['{"classes": {"a": ' + "1" * 5000 + "}}", "[" * 100_000, '{"a":' * 100_000])
def test_json_that_breaks_the_reader(tmp_path, content):
    path = tmp_path / "map.json"
    path.write_text(content)
    for read in (read_palette, lambda path: read_label_map(path, None)):
        with pytest.raises(UserError, match="map"):
            read(path)
