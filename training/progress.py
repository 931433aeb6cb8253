"""How far a run is."""

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """epoch, step: finished ones; samples: done in the running epoch, over all processes.

    best, best_checkpoint: the validation that was best by best_metric, and the name of its file in best_model/.
    validation_due: the validation of this moment is still to be done.
    bad_steps: steps in a row that were skipped, up to now, for numbers that are not finite.
    """

    best_metric: str
    epoch: int = 0
    step: int = 0
    samples: int = 0
    validation_due: bool = False
    bad_steps: int = 0
    best_checkpoint: str | None = None
    best: dict[str, float] = field(default_factory=dict)

    def improves(self, values: dict[str, float]) -> bool:
        """Less is better for the loss, more for all others; nan never is."""
        value = values[self.best_metric]
        if math.isnan(value) or not self.best:
            return not math.isnan(value)
        before = self.best[self.best_metric]
        return value < before if self.best_metric == "loss" else value > before
