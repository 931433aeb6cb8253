"""Blocks that wait elsewhere: the same features bit for bit, one block ahead, and never all of them in memory."""

import json
import sys
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from forked import start_forked
from golden_rule import standard_normal
from messages import naming
from paths import ROOT
from training_helpers import assert_same_state, drawn, train_here

from backbones.frozen import FrozenBackbone, build_backbone
from backbones.offload import CopiedBlocks, MappedFile, Offload
from errors import UserError

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def features(backbone: FrozenBackbone) -> list[torch.Tensor]:
    return backbone(torch.from_numpy(standard_normal("image", (1, 3, 32, 32)))).maps


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("dinov3_vits16plus", torch.bfloat16),
        ("dinov3_vits16plus", torch.int8),
        ("vit_tiny_patch16_224", torch.float32),
    ],
)
def test_features_and_digest_are_those_of_weights_in_memory(name, dtype, tmp_path):
    usual = build_backbone(name, "random", dtype)
    offload = Offload("disk", CPU)
    found = build_backbone(name, "random", dtype, offload.keep).stream_blocks(offload)
    assert all(torch.equal(a, b) for a, b in zip(features(usual), features(found), strict=True))
    assert (found.fingerprint, found.digest()) == (usual.fingerprint, usual.digest())
    assert found.outputs() == usual.outputs()
    assert not [path for path in (tmp_path / "torch").rglob("*") if path.is_file()]  # nothing that could stay behind


def test_blocks_stay_where_they_wait_and_the_next_one_is_sent_for(monkeypatch):
    offload = Offload("disk", CPU)
    backbone = build_backbone("vit_tiny_patch16_224", "random").stream_blocks(offload)
    blocks = backbone.model.blocks
    number = {p.data_ptr(): i for i, block in enumerate(blocks) for p in block.parameters()}
    seen = []
    for kind in ("send_for", "drop"):
        own = getattr(MappedFile, kind)
        spy = lambda self, t, own=own, kind=kind: (seen.append((kind, number[t.data_ptr()])), own(self, t))  # noqa: E731
        monkeypatch.setattr(MappedFile, kind, spy)
    features(backbone)
    order = list(dict.fromkeys(seen))
    expected = [(kind, i) for i in range(12) for kind, i in (("send_for", i + 1), ("drop", i)) if i < 12]
    assert order == expected
    backbone.to("meta")
    assert backbone.model.norm.weight.is_meta and not any(p.is_meta for p in blocks.parameters())


class Event:
    """As those of CUDA, on a device that computes at once."""

    made: ClassVar[list["Event"]] = []

    def __init__(self) -> None:
        self.is_recorded = False
        Event.made.append(self)

    def record(self, stream: object) -> None:
        self.is_recorded = True

    def synchronize(self) -> None:
        assert self.is_recorded


def test_copied_blocks_are_the_same_and_wait_for_the_memory_of_the_one_before(monkeypatch):
    """The path of GPUs, with streams and events in the place of CUDA's."""
    for name, replacement in (
        ("Stream", lambda device: object()),
        ("Event", Event),
        ("stream", lambda stream: nullcontext()),
        ("device", lambda device: nullcontext()),
        ("current_stream", lambda device: type("Current", (), {"wait_event": lambda self, e: e.synchronize()})()),
    ):
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    usual, found = (build_backbone("vit_tiny_patch16_224", "random") for _ in range(2))
    waits = []
    own = CopiedBlocks._fetch

    def fetch(self, number, last_done):
        waits.append((number, Event.made.index(last_done) if last_done else None))
        return own(self, number, last_done)

    monkeypatch.setattr(CopiedBlocks, "_fetch", fetch)
    found.stream_blocks(Offload("cpu", torch.device("cuda")))
    for block in found.model.blocks:
        block.stream.device = CPU
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(features(usual), features(found), strict=True))
    assert [number for number, _ in waits] == [*range(12)] * 2
    assert waits[0][1] is None and waits[1][1] is None  # two blocks are there at a time
    assert all(later is not None for _, later in waits[2:])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_model_is_never_whole_in_memory():
    code = """
import ctypes, json, re, torch
from pathlib import Path
from backbones.frozen import build_backbone
from backbones.offload import Offload

def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is freed goes back to the system at once
small = build_backbone("vit_tiny_patch16_224", "random", torch.bfloat16)
small(torch.zeros(1, 3, 32, 32))  # what any first pass allocates
before = megabytes("VmRSS")
offload = Offload("disk", torch.device("cpu"))
backbone = build_backbone("dinov3_vitb16", "random", torch.bfloat16, offload.keep).stream_blocks(offload)
backbone(torch.zeros(1, 3, 32, 32))
backbone.digest()
peak = megabytes("VmHWM") - before
print(json.dumps([peak, sum(p.numel() * p.element_size() for p in backbone.parameters()) / 1e6]))
"""
    process = start_forked(code, ["program"], ROOT)
    out, err = process.communicate(60)
    assert process.returncode == 0, err
    peak_mb, weights_mb = json.loads(out)
    assert weights_mb > 170 and peak_mb < 0.8 * weights_mb, (peak_mb, weights_mb)


def test_a_training_is_the_same(tmp_path):
    data = [*drawn(tmp_path / "data"), "--max-steps", "2"]
    for name in ("none", "disk"):
        assert train_here("linear", tmp_path / name, *data, "--backbone-offload", name) == 0
    assert_same_state(*[tmp_path / name / "linear_checkpoint_epoch_1.pth" for name in ("none", "disk")])


def test_what_cannot_be_streamed_is_refused(tmp_path):
    with pytest.raises(UserError, match=naming("--backbone-offload cpu")):
        Offload("cpu", CPU)
    with pytest.raises(UserError, match=naming("--backbone-offload", "convnext_atto")):
        build_backbone("convnext_atto", "random").stream_blocks(Offload("disk", CPU))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=naming("--backbone-offload disk", "TORCH_HOME")):
        MappedFile(tmp_path / "file")
