"""Gradient accumulation: several small batches move the weights as one large batch does."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

from structures import IGNORE_INDEX, Batch, Target
from training.step import train_step


class PixelModel(nn.Module):
    """A 1x1 convolution and cross-entropy: its loss is a plain mean over pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.adapter, self.head = nn.Identity(), nn.Conv2d(3, 4, 1)

    def forward(self, images, features=None):
        return self.head(images)

    def loss(self, outputs, targets):
        truth = torch.stack([t.semantic for t in targets])
        return {"cross_entropy": F.cross_entropy(outputs, truth, ignore_index=IGNORE_INDEX)}


def run_of(accelerator, model, optimizer, max_grad_norm):
    return SimpleNamespace(
        accelerator=accelerator,
        segmenter=model,
        model=model,
        optimizer=optimizer,
        settings=SimpleNamespace(seed=0, max_grad_norm=max_grad_norm),
        stop=SimpleNamespace(signum=0),
    )


@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 1, 1, 1], [3, 1]])
def test_small_batches_add_up_to_a_large_one(sizes):
    accelerator = Accelerator(cpu=True)
    model = PixelModel()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 8, 8, generator=generator)
    truth = torch.randint(0, 4, (4, 8, 8), generator=generator)
    batches, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        batches.append(Batch(images[part], [Target(semantic=t) for t in truth[part]], ["x"] * size))
        start += size
    losses = train_step(run_of(accelerator, model, optimizer, max_grad_norm=0.0), batches, step=0).losses

    plain = PixelModel()
    loss = F.cross_entropy(plain(images), truth)
    loss.backward()
    assert losses["loss"] == losses["cross_entropy"] == pytest.approx(loss.item(), rel=1e-5)
    with torch.no_grad():
        for ours, reference in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours, reference - reference.grad, atol=1e-6)
