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
        """Lower is better for the loss, higher for all others. A model with a loss that is not finite is never the
        best, whatever its metrics: the class of the highest score of scores that are nan is class 0."""
        value = values[self.best_metric]
        if not (math.isfinite(value) and math.isfinite(values["loss"])):
            return False
        if not self.best:
            return True
        before = self.best[self.best_metric]
        return value < before if self.best_metric == "loss" else value > before
