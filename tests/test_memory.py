"""Out of memory: a message with the settings and the three flags that help most, in order of their effect."""

import pytest
import torch
from training_helpers import drawn, run_script, train_here, words

from memory import estimated_memory_bytes, keep_freed_memory
from segmenter import Segmenter
from training.config import parse_training_arguments
from training.run import build_segmenter
from training.summary import out_of_memory_message, smaller_settings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_is_reported_with_what_helps(tmp_path, monkeypatch, capsys, error):
    def fail(self, outputs, targets, scope=None):
        raise error

    monkeypatch.setattr(Segmenter, "loss", fail)
    assert train_here("m2f", tmp_path / "run", *drawn(tmp_path / "data"), "--adapter", "dinov3") == 2
    err = capsys.readouterr().err
    assert "--image-size 64 --batch-size 2 --hidden-dim 32 and the adapter dinov3" in err


def test_the_three_flags_are_the_most_helpful_ones_and_in_order(tmp_path):
    from accelerate import Accelerator

    flags = [*drawn(tmp_path / "data"), "--image-size", "128", "--hidden-dim", "64", "--batch-size", "8"]
    flags += ["--adapter", "dinov3"]
    args = parse_training_arguments("upernet", words("upernet", tmp_path, *flags))
    segmenter = build_segmenter(args, 5, Accelerator(cpu=True), None)
    message = out_of_memory_message(args, segmenter)
    lines = [line.strip() for line in message.splitlines()[1:]]
    needs = {
        flag: estimated_memory_bytes(segmenter.backbone, *others)
        for flag, *others in smaller_settings(segmenter.spec, args)
    }
    order = sorted(needs, key=needs.get)
    assert len(needs) == 5 and [line.rpartition(": ")[0] for line in lines] == order[:3]
    now = estimated_memory_bytes(segmenter.backbone, segmenter.spec, 128, args.batch_size)
    assert all(need < now for need in needs.values())
    for flag in needs:  # they are flags of the script, as they stand there
        assert parse_training_arguments("upernet", words("upernet", tmp_path, *flags, *flag.split()))


def test_a_machine_that_has_not_enough_says_so(tmp_path):
    """Really: the system refuses more than 200 MB of address space beyond what the libraries take."""
    limited = (
        "import memory, resource; training.summary.estimated_memory_bytes = memory.estimated_memory_bytes; "
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); "
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)"
    )
    sizes = ["--image-size", "256", "--batch-size", "16", "--max-steps", "1", "--adapter", "dinov3"]
    done = run_script("upernet", tmp_path / "run", *drawn(tmp_path / "data", train=16), *sizes, first=limited)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "--image-size 256 --batch-size 16" in done.stderr
    assert not list(tmp_path.rglob("*.pth"))  # nothing was trained, nothing is saved
    assert "--batch-size 8 --gradient-accumulation-steps 2" in done.stderr


@pytest.mark.parametrize("library", [TypeError("LoadLibrary() argument 1 must be str, not None"), object()])
def test_where_the_c_library_is_another_one_freed_memory_is_not_kept(monkeypatch, library):
    """Windows finds none without a name; macOS and musl have no mallopt."""

    def find(name):
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr("memory.ctypes.CDLL", find)
    keep_freed_memory()
