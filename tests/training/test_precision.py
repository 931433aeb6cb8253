"""--precision auto: bf16 where the processor computes it in hardware; a resumed run keeps its own."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from training_helpers import drawn, train_here

from checkpoint import read_checkpoint, sealed
from training import processes
from training.checkpoints import RunFiles, precision_before, save_checkpoint
from training.processes import uses_bf16

BF16_CPU = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
PLAIN_CPU = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("cpu", "has_gpu", "gpu_has_bf16", "expected"),
    [
        (BF16_CPU, False, False, True),
        ({"amx_bf16": True}, False, False, True),
        (PLAIN_CPU, False, False, False),
        ({}, False, False, False),
        (PLAIN_CPU, True, True, True),
        (BF16_CPU, True, False, False),  # the GPU is used, and has none
    ],
)
def test_auto_is_what_the_device_computes(monkeypatch, cpu, has_gpu, gpu_has_bf16, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_has_bf16)
    assert uses_bf16("auto") is expected
    assert uses_bf16("bf16") and not uses_bf16("fp32")


def resume(run: Path, *options: str) -> str:
    """As a new process does, which has no Accelerator yet; returns the precision that run.json says."""
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train_here("linear", run, *options) == 0
    return json.loads((run / "linear_run.json").read_text())["precision"]


def test_a_resumed_run_keeps_its_precision(tmp_path, monkeypatch, capsys):
    """On a machine that would choose another one, also a run of a version that did not record it."""
    run, older = tmp_path / "run", tmp_path / "older"
    options = [*drawn(tmp_path / "data"), "--precision", "auto", "--resume-checkpoint", "auto", "--max-steps"]
    monkeypatch.setattr(processes, "cpu_has_bf16", lambda: True)
    assert resume(run, *options, "1") == "bf16" and "bf16 on " in capsys.readouterr().out
    (first,) = run.glob("linear_checkpoint_step_1.pth")
    state = read_checkpoint(first)
    del state["precision"], state["checksum"]
    older.mkdir()
    save_checkpoint(older / first.name, sealed(state))
    assert resume(older, *options, "2") == ("bf16" if torch.cuda.is_available() else "fp32")

    monkeypatch.setattr(processes, "cpu_has_bf16", lambda: False)
    assert resume(run, *options, "2") == "bf16" and "bf16 on " in capsys.readouterr().out
    assert resume(run, *options, "3", "--precision", "fp32") == "fp32"


def test_what_cannot_be_read_says_nothing_of_the_precision(tmp_path):
    (tmp_path / "linear_checkpoint_epoch_1.pth").write_bytes(b"broken")
    files = RunFiles.of(tmp_path, "linear")
    assert precision_before("auto", files) is precision_before("", files) is None
    assert precision_before(str(tmp_path / "missing.pth"), files) is None
