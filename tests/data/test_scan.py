"""Facts of files, their memory, and the bound on what is decoded at a time."""

import json
import math
import os
import threading

import numpy as np
import pytest
from check_helpers import Maker, Spy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data.check import scan as facts
from data.check import scan as scan_memory
from data.check.scan import VALUES_KEPT, PixelBudget, cache_folder, count_values, image_facts, mask_facts, scan
from data.sources.pairs import match_files

ALL = ["images/train/a.png", "images/train/b.png", "masks/train/a.png", "masks/train/b.png"]


@pytest.fixture
def make(tmp_path, monkeypatch) -> Maker:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    maker = Maker(tmp_path / "set")
    maker.pair("a", [0, 1, 2])
    maker.pair("b", [0, 255])
    return maker


def look(make: Maker, as_colors: bool = False, max_pixels: int = 10**6):
    return scan(match_files(*make.flags()).pairs, as_colors, max_pixels, progress=False)


@given(
    arrays.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 200)),
    st.sampled_from([np.uint8, np.uint16, np.int32]),
    st.integers(1, 20),
)
def test_values_are_counted_whatever_their_type_and_the_strip(values, dtype, strip):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "STRIP_PIXELS", strip)
        found = count_values(values.astype(dtype))
    assert found == {value: int((values == value).sum()) for value in np.unique(values).tolist()}


def test_a_digest_tells_images_apart_by_their_pixels_and_shape_alone(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    changed = pixels.copy()
    changed[0, 0, 0] ^= 1
    for name, array in {"a.png": pixels, "b.bmp": pixels, "c.png": changed, "d.png": pixels[:3].repeat(2, 1)}.items():
        Image.fromarray(array).save(tmp_path / name)
    Image.fromarray(np.zeros((2, 6, 3), np.uint8)).save(tmp_path / "wide.png")
    Image.fromarray(np.zeros((6, 2, 3), np.uint8)).save(tmp_path / "high.png")
    digest = {path.stem: image_facts(path, 1000).digest for path in tmp_path.iterdir()}
    assert digest["a"] == digest["b"]
    assert len(set(digest.values())) == 5


def test_the_most_frequent_values_are_kept(tmp_path):
    values = np.arange(60 * 60, dtype=np.uint16).reshape(60, 60)
    values[:10] = 7
    Image.fromarray(values).save(tmp_path / "m.png")
    found = mask_facts(tmp_path / "m.png", 10**6, as_colors=False)
    assert len(found.counts) == VALUES_KEPT and found.num_values == 3001
    assert found.counts[7] == 600


def test_facts_of_a_file(make):
    found = look(make)
    image, mask = (next(iter(files.values())) for files in (found.images, found.masks))
    assert (image.size_wh, image.mode, image.orientation) == ((12, 8), "RGB", 1)
    assert (mask.size_wh, mask.mode, mask.counts, mask.num_values) == ((12, 8), "L", {0: 32, 1: 32, 2: 32}, 3)


def test_what_is_known_is_not_read_again_and_is_the_same(make, monkeypatch):
    spy = Spy(monkeypatch)
    first = look(make)
    assert spy.since() == ALL
    assert look(make) == first
    assert spy.since() == []


def test_a_changed_file_is_read_again(make, monkeypatch):
    look(make)
    spy = Spy(monkeypatch)
    path = make.path("masks", "train", "b.png")
    old = path.stat()
    make.mask("b", [0, 255, 255])
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    found = look(make)
    assert spy.since() == ["masks/train/b.png"]
    assert found.masks[path].counts == {0: 32, 255: 64}


def test_a_replacement_of_the_same_size_and_time_is_read_again(make, monkeypatch):
    """As rsync --times or an archive leaves them: only inode and ctime tell."""
    look(make)
    spy = Spy(monkeypatch)
    path = make.path("masks", "train", "b.png")
    old = path.stat()
    make.mask("b", [2, 1, 0])
    new = path.read_bytes()
    path.write_bytes(new.ljust(old.st_size, b"\0"))  # what follows the image's end counts for nothing
    assert path.stat().st_size == old.st_size
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    look(make)
    assert spy.since() == ["masks/train/b.png"]


def test_masks_as_colours_are_other_facts_and_images_the_same(make, monkeypatch):
    ids = look(make)
    spy = Spy(monkeypatch)
    colors = look(make, as_colors=True)
    assert spy.since() == ["masks/train/a.png", "masks/train/b.png"]
    path = make.path("masks", "train", "b.png")
    assert colors.masks[path].is_color and colors.masks[path].counts == {0: 48, 0xFFFFFF: 48}
    assert look(make) == ids and look(make, as_colors=True) == colors
    assert spy.since() == []


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"version": 0}', '{"version": 1, "image": 3}', "\0\0", "[" * 100_000],
)
def test_a_broken_memory_is_as_none(make, monkeypatch, content):
    first = look(make)
    (memory,) = cache_folder().iterdir()
    memory.write_text(content)
    spy = Spy(monkeypatch)
    assert look(make) == first
    assert spy.since() == ALL
    assert look(make) == first
    assert spy.since() == []


@pytest.mark.parametrize("entry", [None, 3, [], {}, [1, 2, 3], [[1], {"size_wh": [1]}], "same-but-broken", "infinite"])
def test_a_broken_entry_is_as_none(make, monkeypatch, entry):
    first = look(make)
    (memory,) = cache_folder().iterdir()
    content = json.loads(memory.read_text())
    name = str(make.path("masks", "train", "a.png"))
    stamp, facts = content["ids"][name]
    whole = {"same-but-broken": [stamp, {"mode": 1}], "infinite": [stamp, {**facts, "num_values": math.inf}]}
    content["ids"][name] = whole.get(entry, entry) if isinstance(entry, str) else entry
    memory.write_text(json.dumps(content))
    spy = Spy(monkeypatch)
    assert look(make) == first
    assert spy.since() == ["masks/train/a.png"]


def test_another_version_of_the_facts_is_not_taken(make, monkeypatch):
    look(make)
    spy = Spy(monkeypatch)
    monkeypatch.setattr(scan_memory, "VERSION", scan_memory.VERSION + 1)
    look(make)
    assert spy.since() == ALL


def test_a_cache_that_cannot_be_written_to_does_not_disturb(make, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way of the folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(look(make).images) == 2

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    assert len(look(make).images) == 2
    assert list(cache_folder().iterdir()) == []  # nothing half written stays


def test_failures_are_remembered_unless_they_may_pass(make, monkeypatch):
    make.path("masks", "train", "a.png").write_bytes(b"")
    assert look(make).masks[make.path("masks", "train", "a.png")].failure.kind == "damaged"
    spy = Spy(monkeypatch)
    found = look(make, max_pixels=50)
    assert spy.since() == [name for name in ALL if name != "masks/train/a.png"]  # known, yet larger than allowed now
    assert {f.failure.kind for f in found.images.values()} == {"too large"}
    look(make, max_pixels=50)
    assert spy.since() == [name for name in ALL if name != "masks/train/a.png"]
    assert {f.failure for f in look(make).images.values()} == {None}


def test_a_missing_file_is_a_failure_until_it_is_back(make):
    pairs = match_files(*make.flags()).pairs
    pairs[0].mask.rename(pairs[0].mask.with_suffix(".away"))
    assert scan(pairs, False, 10**6, progress=False).masks[pairs[0].mask].failure.kind == "missing"
    pairs[0].mask.with_suffix(".away").rename(pairs[0].mask)
    assert scan(pairs, False, 10**6, progress=False).masks[pairs[0].mask].failure is None


def test_what_was_read_until_an_interrupt_is_remembered(make, monkeypatch):
    monkeypatch.setattr("data.check.scan.FILES_AT_A_TIME", 1)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("data.check.scan.mask_facts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            look(make)
    spy = Spy(monkeypatch)
    look(make)
    assert spy.since() == ["masks/train/a.png", "masks/train/b.png"]


def test_files_that_are_gone_are_forgotten_and_others_are_kept(make):
    look(make)
    make.path("masks", "train", "a.png").unlink()
    make.path("images", "train", "a.png").unlink()
    make.pair("c", [1])
    look(make)
    (memory,) = cache_folder().iterdir()
    assert [name.rsplit("/", 1)[-1] for name in json.loads(memory.read_text())["ids"]] == ["b.png", "c.png"]


def test_the_memories_of_old_data_sets_are_removed(make, monkeypatch):
    monkeypatch.setattr(scan_memory, "DATA_SETS_KEPT", 2)
    cache_folder().mkdir(parents=True)
    for age in range(3):
        old = cache_folder() / f"scan_{age}.json"
        old.write_text("{}")
        os.utime(old, (1000 - age, 1000 - age))
    look(make)
    left = {path.name for path in cache_folder().iterdir()}
    assert len(left) == 2 and "scan_0.json" in left


def test_large_images_wait_for_one_another():
    budget = PixelBudget(100)
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        with budget.taken(60):
            order.append("second")

    with budget.taken(60):
        with budget.taken(40):  # small enough to join
            inside.set()
        other = threading.Thread(target=second)
        other.start()
        other.join(0.05)
        assert other.is_alive()
        order.append("first")
    other.join(5)
    assert inside.is_set() and order == ["first", "second"]
    with budget.taken(10**9):  # larger than the budget: alone
        pass
    assert budget.held == 0
