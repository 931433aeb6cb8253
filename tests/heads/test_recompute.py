"""Recomputation and --gradient-checkpointing: the same numbers, and less is kept for the backward pass."""

import pytest
import torch
from torch import nn
from training_helpers import drawn, train_here

from heads.build import BackboneFacts, HeadSpec, build_adapter, build_head
from heads.recompute import Checkpointable, checkpoint_gradients, recomputed
from structures import Features, Layer

WIDTH, SIZE = 64, 64
FACTS = BackboneFacts([WIDTH] * 4, [16] * 4, [0, 1, 2, 3])
SPECS = {
    "m2f": HeadSpec("m2f", "dinov3", 3, 32, 0.3, {"m2f_size": "paper", "num_queries": 5}),
    "upernet": HeadSpec("upernet", "dinov3", 3, 32, 0.3),
    "dpt": HeadSpec("dpt", "layers", 3, 32),
    "pmt": HeadSpec("pmt", "layers", 3, 32, options={"num_blocks": 2, "num_queries": 5}),
}


class Parts(nn.Module):
    def __init__(self, spec: HeadSpec):
        super().__init__()
        self.adapter = build_adapter(spec, FACTS)
        self.head = build_head(spec, self.adapter.out_channels)

    def loss(self) -> torch.Tensor:
        """Of every number that the head returns; from given images and features."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, SIZE, SIZE, generator=generator)
        maps = [torch.randn(2, WIDTH, SIZE // 16, SIZE // 16, generator=generator) for _ in range(4)]
        layers = {i: Layer(m, torch.randn(2, 1, WIDTH, generator=generator)) for i, m in enumerate(maps)}
        torch.manual_seed(1)  # of stochastic depth
        outputs = self.head(self.adapter(images, Features(maps, layers=layers)))
        if isinstance(outputs, torch.Tensor):
            return outputs.square().mean()
        return sum(t.square().mean() for part in vars(outputs).values() for t in part)


def kept_bytes(loss) -> tuple[torch.Tensor, int]:
    """A loss, and the bytes of what was kept for its backward pass, parameters aside."""
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        value = loss()
    return value, sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", SPECS)
def test_checkpointed_gradients_and_statistics_are_the_same_in_less_memory(name):
    results = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        parts = Parts(SPECS[name]).train()
        if is_checkpointed:
            checkpoint_gradients(parts)
        value, num_bytes = kept_bytes(parts.loss)
        value.backward()
        gradients = {n: p.grad for n, p in parts.named_parameters() if p.grad is not None}
        results.append((value, num_bytes, gradients, dict(parts.named_buffers())))
    (plain, bytes_plain, *plain_tensors), (found, bytes_found, *found_tensors) = results
    assert bytes_found < 0.8 * bytes_plain and found == plain
    for before, after in zip(plain_tensors, found_tensors, strict=True):
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            torch.testing.assert_close(after[key], tensor, rtol=1e-6, atol=1e-6 * tensor.abs().max().item(), msg=key)


def test_recomputed_keeps_the_input_alone_and_skips_the_last_product():
    norm, calls = nn.LayerNorm(8), []
    norm.register_forward_hook(lambda *_: calls.append(1))
    linears = [nn.Linear(8, 8), nn.Linear(8, 8)]
    linears[1].register_forward_hook(lambda *_: calls.append(2))
    x = torch.randn(5, 8, requires_grad=True)

    def part(x: torch.Tensor) -> torch.Tensor:
        return linears[1](linears[0](norm(x)).relu())

    value, num_bytes = kept_bytes(lambda: recomputed(part, x).sum())
    assert num_bytes == x.numel() * 4 and calls == [1, 2]
    (found,) = torch.autograd.grad(value, x)
    assert calls == [1, 2, 1]
    torch.testing.assert_close(found, torch.autograd.grad(part(x).sum(), x)[0])


def test_nothing_is_checkpointed_without_the_flag_in_evaluation_or_without_gradients():
    part = Parts(SPECS["upernet"])
    assert not any(m.is_checkpointed for m in part.modules() if isinstance(m, Checkpointable))
    checkpoint_gradients(part)
    assert all(m.is_checkpointed for m in part.modules() if isinstance(m, Checkpointable))
    with torch.no_grad():
        assert not part.eval().loss().requires_grad


def test_a_training_with_the_flag_ends_at_the_same_weights(tmp_path):
    data, losses = drawn(tmp_path / "data"), []
    for flags in ([], ["--gradient-checkpointing"]):
        run = tmp_path / f"run{len(losses)}"
        assert train_here("upernet", run, *data, "--max-steps", "2", "--drop-path", "0.3", *flags) == 0
        losses.append(torch.load(run / "upernet_checkpoint_epoch_1.pth", weights_only=True)["model"])
    for name, tensor in losses[0].items():
        torch.testing.assert_close(losses[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
