"""Learning rate per step: linear warm-up, then a fall by one of the SCHEDULES; or Meta's recipe. Imports no torch.

A new schedule is a function and a line of the table.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

POLY_POWER = 0.9
STEP_FACTOR = 0.1
META_FIRST = 1e-6
"""Share of the highest rate with which Meta's warm-up begins."""


@dataclass(frozen=True)
class Moment:
    """Where a run is. progress: share of the steps after warm-up that are done, in [0, 1).

    step: counted from 0, of total_steps. milestones: shares of all steps, for schedules that have some.
    """

    progress: float
    step: int
    total_steps: int
    milestones: Sequence[float]


def cosine(moment: Moment) -> float:
    return 0.5 * (1 + math.cos(math.pi * moment.progress))


def poly(moment: Moment) -> float:
    return (1 - moment.progress) ** POLY_POWER


def step(moment: Moment) -> float:
    ends = [share * moment.total_steps for share in moment.milestones]
    return STEP_FACTOR ** bisect.bisect_right(ends, moment.step)


SCHEDULES: dict[str, Callable[[Moment], float]] = {"cosine": cosine, "poly": poly, "step": step}
"""Of each --lr-schedule: the factor on the highest rate after warm-up."""

SCHEDULE_NAMES = (*SCHEDULES, "meta")


def lr_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: str = "cosine", milestones: Sequence[float] = ()
) -> float:
    """Factor on the highest rate for the step with this number, counted from 0.

    The first step has 1/warmup_steps of the rate. Then "cosine" and "poly" fall to a little above zero at the last
    step: no step is wasted. "step" multiplies by 0.1 at each milestone, a share of all steps. "meta" is another rule
    altogether, see meta_factor.
    """
    if schedule == "meta":
        return meta_factor(step, total_steps, warmup_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return SCHEDULES[schedule](Moment(progress, step, total_steps, milestones))


def meta_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Factor on the highest rate in Meta's recipe for linear segmentation (DINOv3, Siméoni et al. 2025), as published.

    The cosine runs over all steps, not from the end of the warm-up, where the rate jumps up. The scheduler is not
    stepped after the first update, so that the first two steps have the same rate and the last one has more than 0.
    """
    count = max(step - 1, 0)
    if count < warmup_steps:
        return (1 - (1 - count / warmup_steps) * (1 - META_FIRST)) * (1 - count / total_steps)
    return 0.5 * (1 + math.cos(math.pi * (count + 1) / total_steps))
