"""--init-head: PMT's released decoders, in every wrapping that their loader takes; nothing in a file runs."""

from pathlib import Path

import pytest
import torch
from messages import naming
from safetensors.torch import save_file
from torch import Tensor
from training_helpers import SMALL, drawn, train_here

from backbones.frozen import build_backbone
from checkpoint import read_checkpoint
from data.known_classes import ADE20K, BY_NUMBER, COCO_STUFF, COCO_THINGS
from errors import UserError
from heads.build import HeadSpec
from released.sources import read_released
from segmenter import Segmenter
from training.transfer import transfer

BACKBONE = "test_vit"
OPTIONS = {"num_queries": 6, "num_blocks": 2}


def model(num_classes: int, seed: int) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(
        build_backbone(BACKBONE, "random"), HeadSpec("pmt", "auto", num_classes, 0, options=OPTIONS)
    ).eval()


def released_state(source: Segmenter) -> dict[str, Tensor]:
    """Named as Lightning's hook leaves them, at the end of training: all masks off."""
    source.head.set_progress(1.0)
    state = {f"network.{name}": tensor.clone() for name, tensor in source.head.state_dict().items()}
    num_classes = source.spec.num_classes
    extras = {
        "network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1),
        "network.encoder.pixel_std": torch.ones(1, 3, 1, 1),
    }
    return {**state, **extras, "criterion.empty_weight": torch.ones(num_classes + 1)}


def fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As PMT saves them with fuse_decoder_qkv."""
    state = dict(state)
    for query in [name for name in state if name.endswith("attention.q_proj.weight")]:
        start = query.removesuffix("q_proj.weight")
        state[f"{start}qkv_proj.weight"] = torch.cat([state.pop(f"{start}{part}_proj.weight") for part in "qkv"])
        q, v = (state.pop(f"{start}{part}_proj.bias") for part in "qv")
        state[f"{start}qkv_proj.bias"] = torch.cat((q, torch.zeros_like(q), v))
    return state


def compiled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("network.", "network._orig_mod.", 1): tensor for name, tensor in state.items()}


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix("network."): t for n, t in state.items() if n.startswith(("network.bn", "network.decoder"))}


def save_bin(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def save_wrapped(state: dict[str, Tensor], folder: Path) -> Path:
    return save_bin({"state_dict": state}, folder)


def save_folder(state: dict[str, Tensor], folder: Path) -> Path:
    return save_wrapped(state, folder).parent


def save_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize("save", [save_bin, save_wrapped, save_folder, save_safetensors])
@pytest.mark.parametrize("named", [dict, fused, compiled, plain])
def test_every_wrapping_loads(tmp_path, save, named):
    source, target = model(150, 0), model(150, 1)
    path = save(named(released_state(source)), tmp_path)
    released = read_released(str(path))
    assert released.head == "pmt" and released.adapter == "layers" and released.class_names == list(ADE20K)
    assert released.flags == "--hidden-dim 64 --num-queries 6 --num-blocks 2"
    report = transfer(released, target, list(ADE20K), keep_matching=False)
    assert not report.reset and not report.missing and len(report.loaded) == len(source.head.state_dict())
    assert all("encoder.pixel_" in name or name == "criterion.empty_weight" for name in report.unused)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = target(images), source(images)
    assert torch.equal(ours.last_masks, theirs.last_masks)
    assert torch.equal(ours.class_logits[-1], theirs.class_logits[-1])


@pytest.mark.parametrize(("number", "names"), [(80, COCO_THINGS), (133, COCO_THINGS + COCO_STUFF), (150, ADE20K)])
def test_classes_are_named_by_their_number(tmp_path, number, names):
    assert len(set(names)) == number and BY_NUMBER[number] == names
    path = save_bin(released_state(model(number, 0)), tmp_path)
    assert read_released(str(path)).class_names == list(names)
    assert read_released(str(save_bin(released_state(model(7, 0)), tmp_path))).class_names is None


def test_rows_of_classes_of_the_same_name_are_kept(tmp_path):
    source, target = model(80, 0), model(3, 1)
    path = save_bin(released_state(source), tmp_path)
    before = target.head.decoder.class_head.weight.clone()
    report = transfer(read_released(str(path)), target, ["Dog", "unicorn", "person"], keep_matching=True)
    weight, theirs = target.head.decoder.class_head.weight, source.head.decoder.class_head.weight
    dog = COCO_THINGS.index("dog")
    assert torch.equal(weight[[0, 2, 3]], theirs[[dog, 0, 80]]) and torch.equal(weight[1], before[1])
    assert report.reset == ["head.decoder.class_head.weight", "head.decoder.class_head.bias"]


def test_a_run_without_class_names_keeps_those_of_the_file(tmp_path):
    path = save_bin(released_state(model(150, 0)), tmp_path)
    report = transfer(read_released(str(path)), model(150, 1), [f"class {k}" for k in range(150)], keep_matching=False)
    assert not report.reset and any("does not name its classes" in note for note in report.notes)


def test_part_of_a_decoder_is_one_message(tmp_path):
    state = released_state(model(5, 0))
    state.pop("network.decoder.q.weight")
    with pytest.raises(UserError, match=naming("--init-head", "decoder.q.weight")):
        read_released(str(save_bin(state, tmp_path)))


@pytest.mark.slow
def test_a_run_is_initialized_and_anneals_from_its_own_start(tmp_path, capsys):
    torch.manual_seed(0)
    options = {"num_queries": 8, "num_blocks": 2}
    source = Segmenter(build_backbone(BACKBONE, "random"), HeadSpec("pmt", "auto", 5, 0, options=options))
    (tmp_path / "released").mkdir()
    save_wrapped(released_state(source), tmp_path / "released")
    init = ["--init-head", str(tmp_path / "released"), "--max-steps", "1", "--lr", "0", "--weight-decay", "0"]
    assert SMALL["pmt"][1] == "8" and train_here("pmt", tmp_path / "run", *drawn(tmp_path / "data"), *init) == 0
    out = capsys.readouterr().out
    assert "PMT's decoder" in out and "does not name its classes" in out
    (path,) = (tmp_path / "run").glob("pmt_checkpoint_*.pth")
    saved = read_checkpoint(path)
    assert saved["init_head"]["loaded"]["count"] == len(source.head.state_dict())
    kept = "head.decoder.blocks.1.attention.k_proj.weight"
    assert torch.equal(saved["model"][kept], source.head.state_dict()[kept.removeprefix("head.")])
