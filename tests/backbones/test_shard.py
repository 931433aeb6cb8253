"""A backbone whose weights processes share: the same features bit for bit, from a part of the bytes in each of them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from messages import naming
from training_helpers import run_ranks

from backbones.frozen import build_backbone
from backbones.shard import share_of_rows
from comparison.config import parse_compare_arguments
from errors import UserError
from training.config import parse_training_arguments
from training.setup import num_shards

PATHS = ["--image-paths", "a", "--mask-paths", "b"]


@pytest.mark.slow
def test_features_are_the_same_from_half_of_the_bytes(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(build_backbone("dinov3_vits16", "random").model.state_dict(), file)
    code = f"""
        import json, torch
        from accelerate import Accelerator
        from backbones.frozen import build_backbone
        from backbones.shard import Shards
        from training.processes import host_group
        rank = Accelerator(cpu=True).process_index
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        found = []
        for name, weights, dtype in (
            ("test_vit", "random", torch.float32),
            ("dinov3_vits16", "random", torch.bfloat16),
            ("dinov3_vits16", {str(file)!r}, torch.int8),
        ):
            usual, shards = build_backbone(name, weights, dtype), Shards(images.device, host_group(), 64)
            sharded = build_backbone(name, weights, dtype, shards.keep).shard(shards)
            is_same = []
            def compare():
                is_same.append(all(torch.equal(a, b) for a, b in zip(usual(images).maps, sharded(images).maps)))
            with torch.inference_mode():
                compare()
            with sharded.uneven_calls():
                for _ in range(3 * rank):
                    with sharded.uneven_calls():
                        compare()
            compare()
            own = sum(parameter.to_local().nbytes for parameter in sharded.model.parameters())
            is_same += [sharded.fingerprint == usual.fingerprint, sharded.digest() == usual.digest()]
            block = sum(parameter.nbytes for parameter in usual.model.blocks[0].parameters())
            found.append([is_same, own, usual.device_bytes(), sharded.device_bytes(), block])
        print(json.dumps(found))
    """
    done = run_ranks([code, code])
    assert [d.returncode for d in done] == [0, 0], done[1].stderr
    of_ranks = [json.loads(d.stdout) for d in done]
    for (first, own, whole, estimate, block), (second, other, *_) in zip(*of_ranks, strict=True):
        assert first == [True] * 4 and second == [True] * 7
        assert own + other == whole and own == pytest.approx(whole / 2, rel=0.08)
        assert own < estimate < whole / 2 + 4 * block  # two blocks, and less than two outside of them


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
def test_a_share_of_rows_takes_the_memory_of_these_rows():
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    tensor = torch.ones(5000, 8192, dtype=torch.bfloat16)  # 82 MB
    before = resident_bytes()
    shares = [share_of_rows(tensor, rank, 4) for rank in (0, 3)]
    assert resident_bytes() - before < 0.6 * tensor.nbytes
    for share, rows in zip(shares, (slice(0, 1250), slice(3750, 5000)), strict=True):
        expected = torch.zeros_like(tensor)
        expected[rows] = 1
        assert torch.equal(share, expected)


@pytest.mark.parametrize(
    "flags", [["--unfreeze-backbone"], ["--backbone-offload", "disk"], ["--backbone-offload", "cpu"]]
)
def test_flags_that_exclude_each_other(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_training_arguments("linear", [*PATHS, "--backbone-shard", *flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "--backbone-shard" in said and flags[0] in said


def test_a_comparison_refuses_it(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_compare_arguments([*PATHS, "--validate", "--backbone-shard"])
    assert stop.value.code == 2 and "--backbone-shard" in capsys.readouterr().err


class TwoProcesses:
    """Of an Accelerator what num_shards asks for."""

    num_processes = 2


def test_whole_numbers_need_a_torch_that_shards_them(monkeypatch):
    config = parse_training_arguments("linear", [*PATHS, "--backbone-shard", "--backbone-dtype", "int8"])
    assert num_shards(config, TwoProcesses()) == 2
    monkeypatch.setattr("training.setup.SHARDS_INT8", False)
    with pytest.raises(UserError, match=naming("--backbone-shard", "--backbone-dtype int8", torch.__version__)):
        num_shards(config, TwoProcesses())
