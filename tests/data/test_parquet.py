"""Hugging Face's parquet: rows become files once, splits by names, and mistakes; pyarrow is optional."""

import sys
from io import BytesIO

import numpy as np
import pytest
from export_makers import class_maps, counts, opened, random_map, sets_in, train_one_step
from messages import names, naming
from PIL import Image

from data.formats.parquet import cache_folder
from errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "segmentation-data"


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")


def file_bytes(values: np.ndarray, kind: str = "PNG") -> bytes:
    stream = BytesIO()
    Image.fromarray(values).save(stream, kind)
    return stream.getvalue()


def rows(count: int, first: int = 0) -> tuple[list[bytes], list[np.ndarray]]:
    """Images as JPEG files, and maps."""
    images = [np.random.default_rng(first + k).integers(0, 256, (24, 32, 3), np.uint8) for k in range(count)]
    return [file_bytes(one, "JPEG") for one in images], [random_map(first + k, (0, 1, 2, 255)) for k in range(count)]


def write(path, columns: dict[str, list], as_struct: bool = True) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {
        name: [{"bytes": one, "path": None} for one in column] if as_struct else column
        for name, column in columns.items()
    }
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]) if as_struct else pyarrow.binary()
    table = pyarrow.table({name: pyarrow.array(column, kind) for name, column in cells.items()})
    write_table(table.append_column("id", pyarrow.array(range(table.num_rows))), path, row_group_size=2)


def export(folder, image: str = "image", mask: str = "label", as_struct: bool = True) -> dict[str, list[np.ndarray]]:
    """Five rows in two files to train on, two to validate on, and one to test on without a mask."""
    maps = {}
    for split, first, count, name in [
        ("train", 0, 3, "train-00000-of-00002.parquet"),
        ("train", 3, 2, "train-00001-of-00002.parquet"),
        ("val", 5, 2, "validation-00000-of-00001-0a1b2c.parquet"),
    ]:
        files, found = rows(count, first)
        maps.setdefault(split, []).extend(found)
        write(folder / "data" / name, {image: files, mask: [file_bytes(one) for one in found]}, as_struct)
    write(folder / "data" / "test-00000-of-00001.parquet", {image: rows(1, 9)[0], mask: [None]}, as_struct)
    return maps


@pytest.mark.parametrize(
    ("image", "mask", "as_struct"), [("image", "label", True), ("pixel_values", "Segmentation_Mask", False)]
)
def test_rows_train_with_their_masks(tmp_path, parquet, cache, capsys, image, mask, as_struct):
    folder = tmp_path / "set"
    maps = export(folder, image, mask, as_struct)
    (folder / "classes.txt").write_text("sky\nroad\ncar\n")
    found = opened(folder)
    assert found.name == "parquet" and counts(found.files) == {"train": 5, "val": 2}
    assert names(found.about, "test", cache) and names(capsys.readouterr().err, "unpacking", cache)
    for split in ("train", "val"):
        classes = class_maps(folder, split=split)
        assert [(a == b).all() for a, b in zip(classes.values(), maps[split], strict=True)] == [True] * len(maps[split])
    assert not capsys.readouterr().err and len([one for one in cache.iterdir() if one.is_dir()]) == 1
    assert sets_in(folder).class_names == ["sky", "road", "car"]
    pair = found.files.splits["train"].pairs[4]
    assert pair.image.suffix == ".jpg" and pair.image.read_bytes() == rows(2, 3)[0][1]
    if as_struct:
        assert train_one_step(folder, "--validate") == 0


def test_other_places_of_the_files(tmp_path, parquet):
    images, maps = rows(2)
    columns = {"image": images, "mask": [file_bytes(one) for one in maps]}
    write(tmp_path / "a" / "crops.parquet", columns)
    write(tmp_path / "b" / "train" / "0000.parquet", columns)
    write(tmp_path / "b" / "test" / "0000.parquet", columns)
    assert (
        counts(opened(tmp_path / "a").files) == counts(opened(tmp_path / "a" / "crops.parquet").files) == {"train": 2}
    )
    assert counts(opened(tmp_path / "b").files) == {"train": 2, "test": 2}


def test_changed_files_are_unpacked_again_and_failures_leave_nothing(tmp_path, parquet, cache):
    file = tmp_path / "set" / "train.parquet"
    images, maps = rows(2)
    write(file, {"image": images})
    with pytest.raises(UserError, match=naming(file, "masks", "segmentation_mask")):
        opened(file)
    assert cache == cache_folder() and not [one for one in cache.iterdir() if one.is_dir()]
    for count in (1, 2):
        write(file, {"image": images[:count], "mask": [file_bytes(one) for one in maps[:count]]})
        assert counts(opened(file).files) == {"train": count}


def test_mistakes_of_a_file_are_one_message(tmp_path, parquet):
    images, maps = rows(2)
    masks = [file_bytes(one) for one in maps]
    write(tmp_path / "two" / "train.parquet", {"image": images, "mask": masks, "label": masks})
    write(tmp_path / "paths" / "train.parquet", {"image": [None, None], "mask": masks})
    write(tmp_path / "lacks" / "train-00001-of-00003.parquet", {"image": images, "mask": masks})
    write(tmp_path / "untrained" / "test.parquet", {"image": images, "mask": masks})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes((tmp_path / "two" / "train.parquet").read_bytes()[:-40])
    for name, named in [
        ("two", "mask and label"),
        ("paths", "images"),
        ("lacks", "3"),
        ("untrained", "train"),
        ("damaged", "train.parquet"),
    ]:
        with pytest.raises(UserError, match=naming(tmp_path / name, named)):
            opened(tmp_path / name)


def test_rows_that_cannot_be_used_are_findings(tmp_path, parquet, capsys):
    images, maps = rows(4)
    masks = [file_bytes(maps[0]), None, b"no image", file_bytes(maps[3][:4])]
    write(tmp_path / "set" / "train.parquet", {"image": images, "mask": masks})
    assert train_one_step(tmp_path / "set", "--num-classes", "3") == 2
    err = capsys.readouterr().err
    assert names(err, "images/0000001.jpg", "masks/0000002.png", "0000003") and "0000000" not in err
    skip = ("--on-bad-sample", "skip", "--batch-size", "1", "--num-classes", "3")
    assert train_one_step(tmp_path / "set", *skip) == 0


def test_without_pyarrow_the_message_names_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=naming(tmp_path, "pip install pyarrow")):
        opened(tmp_path)
    assert not capsys.readouterr().err


def test_too_small_a_disk_and_a_folder_that_cannot_be_written(tmp_path, parquet, cache, monkeypatch):
    export(tmp_path / "set")
    with monkeypatch.context() as context:
        context.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
        with pytest.raises(UserError, match=naming(tmp_path / "set", "XDG_CACHE_HOME")):
            opened(tmp_path / "set")
    with monkeypatch.context() as context:
        context.setattr("data.formats.parquet.MOST_UNFOLDED", 0)
        with pytest.raises(UserError, match=naming(tmp_path / "set", "unfolds")):
            opened(tmp_path / "set")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=naming(tmp_path / "set", "XDG_CACHE_HOME")):
        opened(tmp_path / "set")
