"""Deformable attention on CUDA: its kernels in Triton's interpreter and on a GPU, and when they are chosen."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from paths import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from heads import deformable_attention_cuda
from heads.deformable_attention import deformable_attention

CASES = Path(__file__).with_name("deformable_attention_kernel_cases.py")
KERNEL = "segmentation_heads.deformable_attention.default"


class Recorder(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def run_cases(**environment: str) -> None:
    """In a process of its own: Triton is imported for its interpreter or for a GPU, and stays so."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", str(CASES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_kernels_in_tritons_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed: it comes with PyTorch for CUDA on Linux")
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu():
    run_cases(TRITON_INTERPRET="0")


@pytest.mark.slow
@pytest.mark.parametrize("is_fixed_point", [False, True])
def test_kernels_compile_for_a_gpu_that_is_not_there(is_fixed_point, monkeypatch, tmp_path):
    """To machine code of an A100: the interpreter takes more than the compiler does."""
    triton = pytest.importorskip("triton", reason="Triton is not installed: it comes with PyTorch for CUDA on Linux")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from heads import deformable_attention_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"LEVELS": 3, "POINTS": 1, "CHANNELS": 12, "BLOCK_QUERIES": 8, "BLOCK_CHANNELS": 16}
    signature = dict.fromkeys(constants, "constexpr")
    signature |= dict.fromkeys(("locations", "weights", "locations_grad", "weights_grad", "scale"), "*fp32")
    signature |= dict.fromkeys(("value", "attended", "grad"), "*bf16")
    signature |= dict.fromkeys(("tokens", "queries", "heads"), "i32") | {"levels": "*i32"}
    if is_fixed_point:
        kernel = kernels.attend_backward
        constants["IS_FIXED_POINT"] = True
        signature |= {"IS_FIXED_POINT": "constexpr", "value_grad": "*i64"}
    else:
        kernel = kernels.attend
    source = ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert ("atom.global.gpu.relaxed.add.u64" in compiled.asm["ptx"]) == is_fixed_point


@pytest.mark.parametrize("runs", [True, False])
def test_cuda_takes_the_kernels_where_triton_runs(runs, monkeypatch):
    """On fake tensors; values are read in the type that they have, and so are results."""
    monkeypatch.setattr(deformable_attention_cuda, "triton_runs", lambda: runs)
    with FakeTensorMode(), Recorder() as called:
        value = torch.empty(2, 6, 2, 4, dtype=torch.bfloat16, device="cuda")
        attended = deformable_attention(
            value,
            [(2, 3)],
            torch.empty(2, 5, 2, 1, 4, 2, device="cuda"),
            torch.empty(2, 5, 2, 1, 4, device="cuda"),
        )
    assert (attended.shape, attended.dtype) == ((2, 5, 8), torch.bfloat16)
    assert (KERNEL in called.names, "aten.grid_sampler_2d.default" in called.names) == (runs, not runs)


def test_one_warning_where_triton_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # an import fails
    deformable_attention_cuda.triton_runs.cache_clear()
    try:
        with pytest.warns(UserWarning, match="Triton"):
            assert not deformable_attention_cuda.triton_runs()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not deformable_attention_cuda.triton_runs()
    finally:
        deformable_attention_cuda.triton_runs.cache_clear()
