"""The checkpoint file: what is altered, cut off or made to harm is refused in one message, and resuming goes back."""

import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import naming
from training_helpers import (
    drawn,
    train_here,
)

from checkpoint import open_checkpoint, read_checkpoint, sealed
from errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of two steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("run")
    data = [*drawn(folder / "data"), "--max-steps", "2", "--checkpointing-steps", "1"]
    assert train_here("linear", folder / "run", *data) == 0
    return folder / "run", data


def cyclic(state: dict[str, Any]) -> None:
    state["labels"]["self"] = state["labels"]


def bomb(state: dict[str, Any]) -> None:
    value: list = ["x"]
    for _ in range(30):
        value = [value, value]
    state["labels"]["bomb"] = value


def deep(state: dict[str, Any]) -> None:
    value: list = []
    for _ in range(400):
        value = [value]
    state["labels"]["deep"] = value


HOSTILE = {
    "a cycle": cyclic,
    "doubled lists": bomb,
    "deep lists": deep,
    "a sparse tensor": lambda s: s["model"].update(a=torch.sparse_coo_tensor([[0], [0]], [1.0], (2**20, 2**20))),
    "a meta tensor": lambda s: s["model"].update(a=torch.empty(2**40, device="meta")),
    "an expanded tensor": lambda s: s["model"].update(a=torch.zeros(1).expand(2**31)),
    "a conjugate view": lambda s: s["model"].update(a=torch.ones(2, dtype=torch.complex64).conj()),
    "a nested tensor": lambda s: s["model"].update(a=torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "a tensor for the format": lambda s: s.update(format=torch.ones(2)),
    "no progress": lambda s: s.pop("progress"),
    "no step": lambda s: s["progress"].pop("step"),
    "another key": lambda s: s.update({"mode\x6d": s.pop("model")}),
    "a text for a number": lambda s: s["progress"].update(epoch="2"),
    "no dictionary": lambda s: s.update(model=[1, 2]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_checkpoint_of_ours_is_refused_and_resuming_goes_back(run, tmp_path, name, capsys):
    folder, data = run
    state = torch.load(folder / "linear_checkpoint_step_1.pth", weights_only=True)
    HOSTILE[name](state)
    path = tmp_path / "run" / "linear_checkpoint_step_9.pth"
    path.parent.mkdir()
    torch.save(state, path)
    for read in (read_checkpoint, open_checkpoint):
        with pytest.raises(UserError, match="linear_checkpoint_step_9"):
            read(path)
    (path.parent / "linear_checkpoint_step_1.pth").write_bytes((folder / "linear_checkpoint_step_1.pth").read_bytes())
    capsys.readouterr()
    assert train_here("linear", path.parent, *data, "--resume-checkpoint", "auto") == 0
    captured = capsys.readouterr()
    assert "linear_checkpoint_step_1.pth: 0 epochs, 1 steps done" in captured.out and path.name in captured.err


def test_a_compressed_file_is_refused_by_what_it_would_become(run, tmp_path):
    folder, _ = run
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(folder / "linear_checkpoint_step_1.pth") as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            kind = zipfile.ZIP_DEFLATED if len(content) > 1000 else zipfile.ZIP_STORED
            target.writestr(entry.filename, bytes(2**24) if kind == zipfile.ZIP_DEFLATED else content, kind)
    assert path.stat().st_size < 2**22
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"a text file", b"PK\x03\x04 half a file", b"\x80\x02}q\x00."])
def test_a_file_of_another_kind_is_named_as_such(tmp_path, content):
    path = tmp_path / "notes.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert ("(105)" not in str(caught.value) and "torch.save" in str(caught.value)) or content.startswith(b"PK")


def test_every_flip_of_a_bit_is_a_message_or_changes_nothing(run, tmp_path):
    """Anywhere in the file; open_checkpoint, which skips the checksum, may not end in another error either."""
    folder, _ = run
    content = (folder / "linear_checkpoint_step_1.pth").read_bytes()
    expected = torch.load(folder / "linear_checkpoint_step_1.pth", weights_only=True)["checksum"]
    path, draw = tmp_path / "flipped.pth", random.Random(0)
    for _ in range(300):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        for read in (open_checkpoint, read_checkpoint):
            try:
                state = read(path)
            except UserError:
                continue
            assert read is open_checkpoint or state["checksum"] == expected
            assert isinstance(state["progress"]["step"], int)


def test_older_checkpoints_of_the_format_are_read(run, tmp_path):
    """They lack what came later."""
    folder, _ = run
    state = torch.load(folder / "linear_checkpoint_step_1.pth", weights_only=True)
    for name in ("format", "checksum", "line", "init_head", "task"):
        del state[name]
    del state["backbone"]["is_trained"]
    torch.save(sealed(state), tmp_path / "old.pth")
    assert read_checkpoint(tmp_path / "old.pth")["progress"]["step"] == 1


@pytest.mark.slow
def test_whatever_is_altered_or_cut_is_noticed(tmp_path):
    """Any byte of the tensors, and any length."""
    assert train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), "--max-steps", "1") == 0
    path: Path = tmp_path / "run" / "linear_checkpoint_step_1.pth"
    content = path.read_bytes()
    weights = read_checkpoint(path)["model"]["head.classifier.weight"].numpy().tobytes()
    at = content.index(weights)
    draw = random.Random(0)
    for _ in range(10):
        altered = bytearray(content)
        altered[at + draw.randrange(len(weights))] ^= 1 << draw.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(UserError, match=naming(path)):
            read_checkpoint(path)
        path.write_bytes(content[: draw.randrange(len(content))])
        with pytest.raises(UserError, match=naming(path)):
            read_checkpoint(path)
