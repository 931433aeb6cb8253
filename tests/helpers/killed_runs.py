"""A training that is killed and started again, over and over: run by test_crash_safety.py in a process of its own.

Arguments: number of kills, steps of an epoch, epochs, then those of the training script. Where the training is ahead of
an even pace, a life ends at any moment of its start; otherwise soon after it has written a checkpoint, in a step, a
write or a validation. The imports, which take most of a start, are done once; each life is a forked process, begun as
the training script begins.
"""

import json
import os
import random
import re
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


def steps_done(folder: Path, steps_of_epoch: int) -> int:
    """As the names of the checkpoints say."""
    found = [re.fullmatch(r"linear_checkpoint_(step|epoch)_(\d+)\.pth", path.name) for path in folder.glob("*.pth")]
    return max((int(m[2]) * (steps_of_epoch if m[1] == "epoch" else 1) for m in found if m), default=0)


def main() -> None:
    kills, steps_of_epoch, epochs = map(int, sys.argv[1:4])
    words = sys.argv[4:]
    draw = random.Random(0)
    folder = Path(words[words.index("--checkpoint-dir") + 1])
    for number in range(kills):
        done = steps_done(folder, steps_of_epoch)
        child = life(words)
        if done * kills > steps_of_epoch * epochs * number:
            time.sleep(draw.uniform(0.02, 0.4))
        else:
            while steps_done(folder, steps_of_epoch) == done and not has_ended(child):
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"killed": os.WIFSIGNALED(status)}), flush=True)
    _, status = os.waitpid(life(words), 0)
    print(json.dumps({"exit_code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
