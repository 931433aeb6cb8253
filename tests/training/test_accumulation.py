"""However the images of a step are cut into micro-batches and shared among processes, the step is that of one batch."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from paths import HELPERS, ROOT
from torch import Tensor, nn
from training_helpers import run_ranks

from heads.build import HeadSpec
from segmenter import Segmenter
from structures import IGNORE_INDEX, Batch, Features, Target
from training.step import OptimizerStep

pytestmark = pytest.mark.slow

CLASSES = 4
SIZE = 64
OPTIONS = {
    "m2f": {"m2f_size": "paper", "num_queries": 6, "num_points": 64},
    "upernet": {"dice_weight": 0.5},
    "linear": {"dice_weight": 0.5, "dropout": 0.0, "use_all_maps": True},
}


class StandIn(nn.Module):
    """In the place of a frozen ViT: maps of stride 16 that are made of the image by fixed numbers."""

    channels, strides, is_trained, is_kept, has_final_norm = [8] * 4, [16] * 4, False, False, False

    def forward(self, images: Tensor) -> Features:
        patches = nn.functional.avg_pool2d(images, 16)
        return Features([patches.repeat(1, 3, 1, 1)[:, :8] * (k + 1) for k in range(4)])


def small_model(head: str) -> Segmenter:
    torch.manual_seed(0)
    adapter = "none" if head == "linear" else "pyramid"
    model = Segmenter(StandIn(), HeadSpec(head, adapter, CLASSES, 32, 0.0, dict(OPTIONS[head])))
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):  # it sees one micro-batch at a time, by its nature
                setattr(part, name, nn.Identity())
    return model


def some_batch(is_object: bool) -> Batch:
    """Four images whose labelled shares and numbers of classes or objects differ much; one is not labelled at all."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, SIZE, SIZE, generator=generator).double()
    if is_object:
        masks = [torch.rand(n, SIZE, SIZE, generator=generator) > 0.5 for n in (1, 5, 0, 8)]
        labels = [torch.randint(0, CLASSES, (len(m),), generator=generator) for m in masks]
        targets = [Target(masks=m, labels=k) for m, k in zip(masks, labels, strict=True)]
    else:
        truth = torch.randint(0, CLASSES, (4, SIZE, SIZE), generator=generator)
        truth[1, 3:] = IGNORE_INDEX  # a tenth is labelled
        truth[2] = IGNORE_INDEX
        truth[3, :, :20] = 2
        targets = [Target(semantic=t, labels=torch.unique(t[t != IGNORE_INDEX])) for t in truth]
    return Batch(images, targets, [str(i) for i in range(4)])


def cut(batch: Batch, sizes: list[int]) -> list[Batch]:
    parts, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        parts.append(Batch(batch.images[part], batch.targets[part], batch.sample_ids[part]))
        start += size
    return parts


@contextmanager
def double_precision():
    """float64 throughout, so that what remains is no rounding: a Mask2Former in float32 differs by 2e-5."""
    single = Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = single


@double_precision()
def gradients(accelerator: Accelerator, head: str, micro_batches: list[Batch]) -> tuple[dict[str, float], Tensor]:
    """The losses of one step, and the gradients of all weights as the optimizer sees them."""
    model = small_model(head)
    found: list[Tensor] = []
    optimizer = SimpleNamespace(
        step=lambda: found.extend(p.grad.flatten().clone() for p in model.parameters()), zero_grad=lambda **_: None
    )
    updates = OptimizerStep(model, accelerator.prepare(model), optimizer, accelerator, seed=0)
    losses, _ = updates.take(micro_batches, step=3).read()
    return losses, torch.cat(found)


CASES = [("m2f", False), ("m2f", True), ("upernet", False), ("linear", False)]


@pytest.mark.parametrize(("head", "is_object"), CASES)
@pytest.mark.parametrize("sizes", [[2, 2], [1, 1, 1, 1], [3, 1]])
def test_small_batches_add_up_to_a_large_one(head, is_object, sizes):
    accelerator = Accelerator(cpu=True)
    batch = some_batch(is_object)
    expected_losses, expected = gradients(accelerator, head, [batch])
    losses, found = gradients(accelerator, head, cut(batch, sizes))
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert (found - expected).norm() <= 1e-6 * expected.norm() and expected.norm() > 0.01


def test_two_processes_with_two_micro_batches_each_do_as_one_batch(tmp_path):
    """Image j of process r has position 2 j + r, as EpochBatches deals images out."""
    code = f"""
        import sys, torch
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(HELPERS)!r}, {str(ROOT)!r}]
        from accelerate import Accelerator
        from test_accumulation import CASES, cut, gradients, some_batch
        accelerator = Accelerator(cpu=True)
        rank, found = accelerator.process_index, []
        for head, is_object in CASES:
            whole = some_batch(is_object)
            mine = type(whole)(whole.images[rank::2], whole.targets[rank::2], whole.sample_ids[rank::2])
            found.append(gradients(accelerator, head, cut(mine, [1, 1])))
        if rank == 0:
            plain = [(list(losses.values()), gradient) for losses, gradient in found]
            torch.save(plain, {str(tmp_path / "found.pt")!r})
    """
    done = run_ranks([code, code])
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for (head, is_object), (losses, gradient) in zip(CASES, found, strict=True):
        expected_losses, expected = gradients(Accelerator(cpu=True), head, [some_batch(is_object)])
        assert losses == pytest.approx(list(expected_losses.values()), rel=1e-5)
        assert (gradient - expected).norm() <= 1e-5 * expected.norm()
