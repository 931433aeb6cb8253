"""Pairing images with masks by name, and splitting pairs."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import naming
from PIL import Image

from data.check.check import check_pairs
from data.labels import LabelRule
from data.sources.pairs import Pair, find_files, match_files, split_pairs
from errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def paired(images: str | list[str], masks: str | list[str]) -> dict[str, tuple[str, str]]:
    """sample_id -> the two paths, relative to where we are."""
    images, masks = ([p] if isinstance(p, str) else p for p in (images, masks))
    here = Path.cwd()
    found = match_files(images, masks)
    assert not found.lone_images and not found.lone_masks
    return {
        p.sample_id: (p.image.relative_to(here).as_posix(), p.mask.relative_to(here).as_posix()) for p in found.pairs
    }


def test_same_stems_pair_whatever_the_extension_in_natural_order(folder):
    touch("i/10.jpg", "i/2.JPG", "i/1.jpg", "m/1.png", "m/2.png", "m/10.PNG")
    assert list(paired("i/*.jpg", "m/*.png").items()) == [
        ("1", ("i/1.jpg", "m/1.png")),
        ("2", ("i/2.JPG", "m/2.png")),
        ("10", ("i/10.jpg", "m/10.PNG")),
    ]


@pytest.mark.parametrize(
    ("image_end", "mask_end"),
    [
        ("_leftImg8bit", "_gtFine_labelIds"),
        ("_image", "_mask"),
        ("_sat", "_mask"),
        ("_img", "_seg"),
        ("_rgb", "_labels"),
        ("", "_gt"),
        ("", "_labelTrainIds"),
        ("-img", "-mask"),
        ("", ".jpg"),
        ("_L", ""),
    ],
)
@pytest.mark.parametrize("stems", [("scene_1", "scene_2", "scene_3"), ("lone",), ("a", "ab", "abc"), ("x_a", "y_a")])
def test_shared_endings_are_removed(folder, image_end, mask_end, stems):
    touch(*(f"i/{s}{image_end}.png" for s in stems), *(f"m/{s}{mask_end}.png" for s in stems))
    pairs = paired("i", "m").values()
    assert set(pairs) == {(f"i/{s}{image_end}.png", f"m/{s}{mask_end}.png") for s in stems}


def test_images_and_masks_may_share_a_folder(folder):
    touch("all/a_sat.jpg", "all/a_mask.png", "all/b_sat.jpg", "all/b_mask.png")
    assert set(paired("all/*_sat.jpg", "all/*_mask.png")) == {"a", "b"}


@pytest.mark.parametrize("numbers", [("001", "002"), ("7", "8")])
def test_numbers_are_never_taken_for_endings(folder, numbers):
    touch(f"i/a_{numbers[0]}.png", f"i/b_{numbers[0]}.png", f"m/a_{numbers[1]}.png", f"m/b_{numbers[1]}.png")
    assert match_files(["i/*"], ["m/*"]).pairs == []


@pytest.mark.parametrize("layout", ["{kind}/{split}/{stem}", "{split}/{kind}/{stem}", "x/{kind}/{split}/deep/{stem}"])
def test_repeated_names_are_distinguished_by_folders(folder, layout):
    names = [("train", "a"), ("train", "b"), ("val", "a")]
    touch(*(layout.format(kind="images", split=s, stem=n) + ".jpg" for s, n in names))
    touch(*(layout.format(kind="masks", split=s, stem=n) + "_mask.png" for s, n in names))
    assert paired("**/*.jpg", "**/*.png") == {
        f"{s}/{n}": (
            layout.format(kind="images", split=s, stem=n) + ".jpg",
            layout.format(kind="masks", split=s, stem=n) + "_mask.png",
        )
        for s, n in names
    }


def test_cityscapes_layout(folder):
    stems = [f"{city}/{city}_000000_{n:06d}" for city in ("aachen", "bochum") for n in (19, 294)]
    touch(*(f"leftImg8bit/train/{s}_leftImg8bit.png" for s in stems))
    touch(*(f"gtFine/train/{s}_gtFine_{what}.png" for s in stems for what in ("labelIds", "color")))
    pairs = paired("leftImg8bit/train/*/*.png", "gtFine/train/*/*_labelIds.png")
    assert set(pairs.values()) == {
        (f"leftImg8bit/train/{s}_leftImg8bit.png", f"gtFine/train/{s}_gtFine_labelIds.png") for s in stems
    }


def test_two_files_of_one_name_are_an_error_that_names_both(folder):
    touch("i/a.jpg", "i/a.png", "m/a.png")
    with pytest.raises(ValueError, match=naming("--image-paths", "i/a.jpg", "i/a.png")):
        paired("i/*", "m/*")


@pytest.mark.parametrize("name", ["straße_日本", "with space", "br[1]ack{et}", "100%*", "dots.in.name"])
def test_odd_names_and_folders(folder, name):
    touch(f"data {name}/i/{name}.png", f"data {name}/m/{name}.png", f"data {name}/i/x.png", f"data {name}/m/x.png")
    assert set(paired(f"data {name}/i/*.png", f"data {name}/m/*.png")) == {name, "x"}  # a glob below an odd folder
    assert set(paired(f"data {name}/i", f"data {name}/m")) == {name, "x"}  # the folders
    assert set(paired(f"data {name}/i/{name}.png", f"data {name}/m/{name}.png")) == {name}  # the files


def test_composed_and_decomposed_letters_are_the_same(folder):
    touch("i/caf\u00e9.png", "m/cafe\u0301.png")
    assert len(paired("i/*", "m/*")) == 1


def test_lists_home_and_overlapping_patterns(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    touch("i/a.png", "i/b.png", "m/a.png", "m/b.png")
    assert len(paired(["i/a.png", "i/*.png", "~/i"], ["m/a.png", "m/b.png"])) == 2


def test_folders_give_their_images_only(folder):
    touch("i/a.png", "i/notes.txt", "i/.hidden.png", "m/a.png", "m/Thumbs.db")
    assert set(paired("i", "m")) == {"a"}


def test_a_pattern_without_a_match_names_its_flag(folder):
    touch("i/a.png")
    with pytest.raises(ValueError, match=naming("--mask-paths 'm/*.png'")):
        paired("i/*.png", "m/*.png")
    with pytest.raises(ValueError, match=naming("--val-image-paths")):
        match_files([], ["i/*.png"], image_flag="--val-image-paths")


def test_files_without_a_partner_are_found(folder):
    touch(*(f"i/{n}.jpg" for n in range(7)), "m/0.png", "m/other.png")
    found = match_files(["i/*.jpg"], ["m/*.png"])
    assert [pair.sample_id for pair in found.pairs] == ["0"]
    assert [path.name for path in found.lone_images] == [f"{n}.jpg" for n in range(1, 7)]
    assert [path.name for path in found.lone_masks] == ["other.png"]


def test_matching_goes_on_without_the_unpaired_files(folder):
    touch("i/2.jpg", "i/10.jpg", "i/lone_b.jpg", "i/lone_a.jpg", "m/2.png", "m/10.png", "m/other.png")
    found = match_files(["i"], ["m"])
    assert [p.sample_id for p in found.pairs] == ["2", "10"]
    assert [p.name for p in found.lone_images] == ["lone_a.jpg", "lone_b.jpg"]
    assert [p.name for p in found.lone_masks] == ["other.png"]
    assert found.how == "names"

    touch("i/deep/2.jpg", "m/deep/2.png", "m/deep/3.png")
    found = match_files(["i"], ["m"])
    assert [p.sample_id for p in found.pairs] == ["2", "10", "deep/2"]
    assert [p.relative_to(folder).as_posix() for p in found.lone_masks] == ["m/deep/3.png", "m/other.png"]
    assert "sub-folders" in found.how


def test_matching_nothing_gives_no_pairs(folder):
    touch("i/a.jpg", "m/b.png")
    found = match_files(["i"], ["m"])
    assert (found.pairs, len(found.lone_images), len(found.lone_masks)) == ([], 1, 1)


def test_one_file_on_both_sides_is_an_error(folder):
    touch("all/a.png", "all/a_mask.png")
    with pytest.raises(ValueError, match=naming("--image-paths", "--mask-paths", "a_mask.png")):
        paired("all/*.png", "all/*_mask.png")


def pairs_named(names: list[str]) -> list[Pair]:
    return [Pair(name, Path(name), Path(name)) for name in names]


@given(st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=30), st.floats(0.01, 0.99), st.integers(0, 9))
def test_split_is_fixed_by_ids_not_by_order(names, fraction, seed):
    pairs = pairs_named(sorted(names))
    train, val = split_pairs(pairs, fraction, seed)
    assert train and val and sorted(p.sample_id for p in train + val) == sorted(names)
    assert len(val) == min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)

    shuffled = random.Random(0).sample(pairs, len(pairs))
    assert {p.sample_id for p in split_pairs(shuffled, fraction, seed)[1]} == {p.sample_id for p in val}


def test_names_that_are_not_utf8_can_be_split():
    names = [os.fsdecode(b"caf\xe9"), "a", "b", "c"]
    assert len(split_pairs(pairs_named(names), 0.5, seed=0)[0]) == 2


def test_split_depends_on_the_seed_and_checks_its_input():
    pairs = pairs_named([str(n) for n in range(40)])
    assert split_pairs(pairs, 0.5, seed=0) != split_pairs(pairs, 0.5, seed=1)
    with pytest.raises(ValueError, match=naming("--val-fraction 1.5")):
        split_pairs(pairs, 1.5, seed=0)
    with pytest.raises(ValueError, match=naming("--val-fraction 0.5", "2 images")):
        split_pairs(pairs[:1], 0.5, seed=0)


# Files that are no images


def test_what_a_glob_matches_beside_images_is_skipped_and_reported(folder):
    touch("i/Thumbs.db", "i/notes.txt", "i/b.png", "m/b.png", "m/readme", "m/table.csv")
    Image.new("L", (4, 4)).save("i/plain", format="PNG")
    Image.new("L", (4, 4)).save("m/plain.mask", format="PNG")
    pairing = match_files(["i/*"], ["m/*"])
    assert [pair.sample_id for pair in pairing.pairs] == ["b", "plain"]  # b.png is empty: that is for the check to say
    assert [path.name for path in pairing.skipped] == ["Thumbs.db", "notes.txt", "readme", "table.csv"]
    assert not pairing.lone_images and not pairing.lone_masks
    report = check_pairs(pairing, None, LabelRule(2), ["a", "b"], progress=False)
    (note,) = report.of("note")
    assert note.code == "not-images" and len(note.files) == 4 and not note.per_sample


def test_a_file_that_is_named_is_not_skipped(folder):
    touch("i/a.png", "i/notes.txt", "m/a.png", "m/notes.txt")
    pairing = match_files(["i/a.png", "i/notes.txt"], ["m/*.png", "m/*.txt"])
    assert [pair.sample_id for pair in pairing.pairs] == ["a", "notes"] and not pairing.skipped


def test_a_glob_of_nothing_but_other_files_is_refused(folder):
    touch("i/notes.txt", "m/a.png")
    with pytest.raises(UserError, match=naming("--image-paths 'i/*'", "notes.txt")):
        match_files(["i/*"], ["m/*"])


@pytest.mark.parametrize("pattern", ["{}/**/*.png", "{}", "{}/**", "{}/**/sub/*.png", "{}/**/**/*.png"])
def test_each_real_folder_is_visited_once(tmp_path, pattern):
    """Also where links lead round in circles: two links to "." used to never end, one to give 123 files for 3."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    expected = [folder / "sub" / f"{k}.png" for k in range(3)]
    for path in expected:
        Image.new("RGB", (4, 4)).save(path)
    for link in ("here", "there", "sub/up"):
        (folder / link).symlink_to(folder, target_is_directory=True)
    assert find_files([pattern.format(folder)], "--image-paths") == expected


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path / "elsewhere")
    for pattern in ("images", "images/**/*.png", "images/*/*.png"):
        assert find_files([f"{tmp_path}/{pattern}"], "--image-paths") == [tmp_path / "images" / "link" / "a.png"]


def test_a_link_to_a_folder_above_brings_nothing_in_from_beside(tmp_path):
    for name in ("images/a.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    for pattern in ("images", "images/**/*.png"):
        assert find_files([f"{tmp_path}/{pattern}"], "--image-paths") == [tmp_path / "images" / "a.png"]
