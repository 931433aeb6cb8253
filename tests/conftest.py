"""One thread a process: tests run side by side, and threads that wait for one another cost more than they give."""

import signal

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings

torch.set_num_threads(1)
# As of a processor without bf16: --precision auto is float32, so that numbers can be compared on every machine. Scripts
# in processes of their own are given --precision fp32 (see training_helpers.words).
torch.cpu.get_capabilities = dict
settings.register_profile("repeatable", derandomize=True)  # the same examples in every run
settings.load_profile("repeatable")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and its children would


@pytest.fixture(autouse=True)
def own_memory_of_checks(tmp_path, monkeypatch):
    """What the dataset check remembers of files stays out of the person's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate remembers device and precision of the first Accelerator in a process; each test has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
