"""A training that is killed and started again, over and over: run by test_crash_safety.py in a process of its own.

Arguments: number of kills, longest life in seconds, then those of the training script. Every third life ends soon after
it has written a checkpoint, the others at any moment. The imports, which take most of a
start, are done once; each life is a forked process, begun as the training script begins.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

import training.summary
from errors import run_job
from training.config import parse_training_arguments
from training.run import train

training.summary.estimated_memory_bytes = lambda *args: 0  # a real estimate takes longer than a life


def life(words: list[str]) -> int:
    """One start of the training, in a child process; its id."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        AcceleratorState._reset_state(reset_partial_state=True)
        args = parse_training_arguments("linear", words)
        os._exit(run_job(lambda: train(args)))
    return child


def has_ended(child: int) -> bool:
    """Its status is left for waitpid."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main() -> None:
    kills, longest_s = int(sys.argv[1]), float(sys.argv[2])
    words = sys.argv[3:]
    draw = random.Random(0)
    folder = Path(words[words.index("--checkpoint-dir") + 1])
    for number in range(kills):
        before = set(folder.glob("*.pth"))
        child = life(words)
        if number % 3 == 2:  # this life gets as far as a checkpoint
            while not (set(folder.glob("*.pth")) - before or has_ended(child)):
                time.sleep(0.01)
        time.sleep(draw.uniform(0.2, 1) * longest_s * (0.3 if number % 3 == 2 else 1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"killed": os.WIFSIGNALED(status)}), flush=True)
    _, status = os.waitpid(life(words), 0)
    print(json.dumps({"exit_code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
