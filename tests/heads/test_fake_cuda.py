"""Backbone, adapters and heads on fake CUDA tensors: a tensor on another device, or a wait for the GPU, fails anywhere.

FakeTensorMode knows the device and the shape of each result and computes nothing, so that this needs no GPU. It has no
backward pass, and what depends on a tensor's values raises there. B images, C channels, Q queries, L predictions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.frozen import build_backbone
from heads.build import BackboneFacts, HeadSpec, build_adapter, build_head
from structures import Features, Layer, LossScope, Target
from training.optimizer import Average, build_optimizer
from training.step import OptimizerStep

BATCH, SIZE, CLASSES, WIDTH = 2, 64, 5, 64
VIT = BackboneFacts([WIDTH] * 4, [16] * 4, [2, 5, 8, 11])
STAGES = BackboneFacts([8, 16, 32, 64], [4, 8, 16, 32], has_final_norm=True)
POINTS = {"num_points": 64}
M2F = HeadSpec("m2f", "auto", CLASSES, 32, 0.3, {"m2f_size": "paper", "num_queries": 8, **POINTS})
PMT = HeadSpec("pmt", "auto", CLASSES, 0, options={"num_queries": 8, "num_blocks": 2, **POINTS})
UPERNET = HeadSpec("upernet", "auto", CLASSES, 32, 0.3)
LINEAR = HeadSpec("linear", "auto", CLASSES, 0, options={"drops_input": True})
DPT = HeadSpec("dpt", "auto", CLASSES, 16)


class NoWaiting(TorchDispatchMode):
    """Fails where the host waits for the GPU: values and copies that it reads, and copies to the GPU that block."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "equal", "nonzero"):
            assert not any(t.is_cuda for t in args if isinstance(t, Tensor)), f"{func} reads a value"
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            is_blocking = not (args[2:3] or [kwargs.get("non_blocking")])[0]
            assert not (source.is_cuda and result.is_cpu), f"{func} copies {tuple(source.shape)} to the host"
            assert not (source.is_cpu and result.is_cuda and is_blocking), f"{func} of {tuple(source.shape)} blocks"
        return result


@contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """torch.autocast("cuda", dtype), which switches itself off where there is no GPU."""
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.fixture
def fake(monkeypatch) -> FakeTensorMode:
    """The matcher's one copy of its costs to the host is allowed, and so is not made here."""

    def assign(costs: list[Tensor]) -> Tensor:
        assert all(cost.is_cuda for cost in costs)
        return torch.zeros(len(costs[0]), sum(cost.shape[2] for cost in costs), dtype=torch.int64, device="cuda")

    monkeypatch.setattr("heads.masks.loss.assign", assign)
    monkeypatch.setattr("heads.deformable_attention_cuda.triton_runs", lambda: True)  # as where there is a GPU
    monkeypatch.setattr("heads.mask2former.pixel_decoder.NUM_LAYERS", 1)  # all layers are alike
    monkeypatch.setattr("heads.mask2former.mask_decoder.NUM_LAYERS", 3)
    if not torch.cuda.is_available():  # then there are no generators of GPUs either
        real = torch.Generator
        monkeypatch.setattr(torch, "Generator", lambda device="cpu": real())
    return FakeTensorMode()


def features(facts: BackboneFacts, dtype: torch.dtype) -> Features:
    def made(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="cuda")

    maps = [made(BATCH, c, int(SIZE // s), int(SIZE // s)) for c, s in zip(facts.channels, facts.strides, strict=True)]
    layers = {number: Layer(maps[-1], made(BATCH, 5, WIDTH)) for number in facts.layers}
    return Features(maps, layers=layers, final_map=maps[-1])


def semantic_targets() -> list[Target]:
    """Of two sizes, and with nothing labelled in the second."""
    first = torch.arange(SIZE).expand(SIZE, SIZE) * 4 // SIZE
    return [
        Target(semantic=first.contiguous(), labels=torch.arange(4)),
        Target(semantic=torch.full((SIZE, 32), 255), labels=torch.arange(0)),
    ]


def object_targets() -> list[Target]:
    """Three objects, and none."""
    return [
        Target(masks=torch.ones(3, SIZE, SIZE, dtype=torch.bool), labels=torch.tensor([1, 0, 1])),
        Target(masks=torch.zeros(0, SIZE, SIZE, dtype=torch.bool), labels=torch.arange(0)),
    ]


def check(
    mode: FakeTensorMode, spec: HeadSpec, facts: BackboneFacts, targets: list[Target], dtype: torch.dtype
) -> None:
    """Forward, loss and semantic scores, in training and in evaluation."""
    adapter = build_adapter(spec, facts)
    head = build_head(spec, adapter.out_channels)
    normalizers = head.normalizers(targets)  # on the host, as the trainer does
    adapter, head = on_cuda(adapter, mode), on_cuda(head, mode)
    with mode:
        images, given = torch.empty(BATCH, 3, SIZE, SIZE, device="cuda"), features(facts, dtype)
        targets = [Target(*[None if t is None else mode.from_tensor(t).cuda() for t in _parts(t)]) for t in targets]
        scope = LossScope({name: mode.from_tensor(value) for name, value in normalizers.items()}, [0, 1])
        with NoWaiting(), autocast(dtype):
            head.set_progress(0.5)
            losses = head.loss(head(adapter(images, given)), targets, scope)
            adapter.eval(), head.eval()
            scores = head.semantic(head(adapter(images, given)), (SIZE, SIZE))
        assert losses and all(v.is_cuda and v.shape == () and v.dtype == torch.float32 for v in losses.values())
        assert scores.is_cuda and scores.shape == (BATCH, CLASSES, SIZE, SIZE)


def on_cuda(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Built on the host and then moved, so that what is no parameter and no buffer stays behind."""
    with mode:  # Module.cuda() fails on fake parameters that something refers to
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                moved = mode.from_tensor(parameter).detach().cuda()
                setattr(part, name, nn.Parameter(moved, requires_grad=parameter.requires_grad))
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, mode.from_tensor(buffer).cuda())
    return module


def _parts(target: Target) -> tuple[Tensor | None, ...]:
    return target.semantic, target.masks, target.labels


FP32, BF16 = torch.float32, torch.bfloat16
CASES = [
    (M2F, "dinov3", VIT, semantic_targets, BF16),
    (M2F, "none", STAGES, object_targets, FP32),
    (PMT, "layers", VIT, semantic_targets, BF16),
    (PMT, "layers", VIT, object_targets, FP32),
    (UPERNET, "pyramid", VIT, semantic_targets, FP32),
    (UPERNET, "stage_norm", STAGES, semantic_targets, BF16),
    (LINEAR, "none", VIT, semantic_targets, FP32),
    (LINEAR, "final_norm", STAGES, semantic_targets, BF16),
    (DPT, "layers", VIT, semantic_targets, BF16),
]


@pytest.mark.parametrize(
    ("spec", "adapter", "facts", "targets", "dtype"), CASES, ids=[f"{c[0].head}-{c[1]}-{c[3].__name__}" for c in CASES]
)
def test_heads_and_adapters(fake, spec, adapter, facts, targets, dtype):
    check(fake, replace(spec, adapter=adapter), facts, targets(), dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "focal", "dice_weight": 1.0},
        {"class_weights": [1.0, 2.0, 1.0, 1.0, 3.0]},
        {"loss_pixels": "all"},
        {"loss": "lovasz"},
        {"ohem": True},
    ],
    ids=str,
)
def test_losses_of_pixel_heads(fake, options):
    check(fake, replace(LINEAR, options={**LINEAR.options, **options}), VIT, semantic_targets(), BF16)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
def test_backbones(fake, name):
    backbone = build_backbone(name, "random")
    backbone.give_layers({12: [2, 7]})
    backbone = on_cuda(backbone, fake)
    with fake:
        images = torch.empty(BATCH, 3, SIZE, SIZE, device="cuda")
        with NoWaiting(), autocast(torch.bfloat16):
            given = backbone(images)
    assert all(tensor.is_cuda for tensor in given.named().values())


def test_a_wait_for_the_gpu_is_found(fake):
    with fake:
        scalar, index = torch.ones((), device="cuda"), torch.arange(3)
        for wait in (scalar.item, scalar.cpu, index.cuda, lambda: bool(scalar > 0)):
            with pytest.raises(AssertionError), NoWaiting():
                wait()
        with NoWaiting():
            index.to("cuda", non_blocking=True)


def test_an_optimizer_step_does_not_wait():
    """From the gradients on: clipping, whether all is finite, AdamW, the moving average, and sums of batch norms."""
    with FakeTensorMode():
        head = nn.Sequential(nn.Conv2d(3, 4, 1, device="cuda"), nn.BatchNorm2d(4, device="cuda"))
        head.decays_all = False
        segmenter = SimpleNamespace(
            adapter=nn.Identity(),
            head=head,
            named_buffers=head.named_buffers,
            trainable_state=lambda: {**dict(head.named_parameters()), **dict(head.named_buffers())},
        )
        for parameter in head.parameters():
            parameter.grad = torch.empty_like(parameter)
        accelerator = SimpleNamespace(
            num_processes=1, process_index=0, clip_grad_norm_=torch.nn.utils.clip_grad_norm_, device="cuda"
        )
        average = Average(segmenter, 0.9)
        updates = OptimizerStep(segmenter, head, build_optimizer([head], 1e-3, 0.05), accelerator, 0, 1.0, average)
        updates._backward = lambda micro_batches, step: {"loss": torch.empty((), device="cuda")}
        with NoWaiting():
            numbers = updates.take([], 0)
    assert numbers.values.is_cuda and numbers.values.shape == (2,)
