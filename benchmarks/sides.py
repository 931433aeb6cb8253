"""Two ways to do the same, timed in turns, each in a process of its own; memory of one pass."""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path


def process_of(build: Callable, args: argparse.Namespace, side: str, keeps_memory: bool) -> ProcessPoolExecutor:
    """build: from args and side to what is timed, which takes a precision. keeps_memory: as training on the CPU."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=begin, initargs=(build, args, side, keeps_memory))


def begin(build: Callable, args: argparse.Namespace, side: str, keeps_memory: bool) -> None:
    """In the process of a side: build what it runs, once for all rounds."""
    global run
    from memory import keep_freed_memory

    if keeps_memory:
        keep_freed_memory()
    run = build(args, side)


def seconds_of(precision: str) -> float:
    start = time.perf_counter()
    run(precision)
    return time.perf_counter() - start


def medians(sides: dict[str, ProcessPoolExecutor], precision: str, rounds: int) -> dict[str, float]:
    """Of each side in seconds, and its fastest round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, process in sides.items():
            taken = process.submit(seconds_of, precision).result()
            if turn:
                seconds[name].append(taken)
    fastest = {f"{name} min": min(times) for name, times in seconds.items()}
    return {name: statistics.median(times) for name, times in seconds.items()} | fastest


def peak_mb(precision: str) -> float:
    """Of the second step, which has the optimizer's state before it."""
    import torch

    run(precision)
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(precision)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what the first step has freed goes back to the system
    before = status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    run(precision)
    return status_mb("VmHWM") - before


def status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
