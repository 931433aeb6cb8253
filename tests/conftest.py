"""One thread a process: tests run side by side, and threads that wait for one another cost more than they give."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
