"""Everything that takes part in a run, and how its state is saved."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from data.dataset import EpochBatches
from errors import Interrupted, StopRequest, UserError, warn
from segmenter import Segmenter
from training.checkpoints import checkpoint_state, keep_newest, save_checkpoint
from training.files import RunFiles
from training.logs import RunLog
from training.progress import Progress
from training.task_data import TaskData

MOST_BROKEN_SAMPLES = 20
"""So many files may break while the run goes on."""


@dataclass(frozen=True)
class LoopSettings:
    """lr_milestones: shares of the run; save_interval, val_interval: in epochs; checkpointing_steps: 0 = none;
    keep_last: 0 = all."""

    epochs: int
    total_steps: int
    warmup_steps: int
    lr: float
    lr_schedule: str
    lr_milestones: tuple[float, ...]
    max_grad_norm: float
    gradient_accumulation_steps: int
    seed: int
    save_interval: int
    checkpointing_steps: int
    keep_last: int
    val_interval: int
    window_px: int | None


@dataclass
class Run:
    """model is the segmenter as accelerate wrapped it (the same object in one process).

    about: what all checkpoints of the run say alike. saved_step: what was trained up to this step is in a checkpoint.
    is_updating: the optimizer is at work, so that weights and step number do not belong together.
    broken: samples whose files broke on the way.
    """

    accelerator: Accelerator
    segmenter: Segmenter
    model: nn.Module
    optimizer: Optimizer
    data: TaskData
    order: EpochBatches
    train_batches: DataLoader
    val_batches: DataLoader | None
    files: RunFiles
    log: RunLog
    settings: LoopSettings
    about: dict[str, Any]
    stop: StopRequest
    saved_step: int
    is_updating: bool = False
    broken: set[str] = field(default_factory=set)

    def state(self, progress: Progress) -> dict[str, Any]:
        return checkpoint_state(self.about, self.segmenter, self.optimizer, progress, self.log.pending())

    def save(self, path: Path, progress: Progress) -> None:
        """Only the first process writes."""
        if self.accelerator.is_main_process:
            save_checkpoint(path, self.state(progress))
            keep_newest(self.files, self.settings.keep_last)
        self.saved_step = progress.step

    def save_before_the_end(self, progress: Progress, reason: BaseException) -> None:
        """What was trained since the last checkpoint, when a signal or an error ends the run."""
        if not self.is_updating and not self.stop.at_once and progress.step != self.saved_step:
            path = self.files.folder / self.files.step_name(progress.step)
            try:
                self.save(path, progress)
                self.log.say(f"saved {path}")
            except Exception as error:  # the reason of the end must be told, not this one
                warn(f"what was trained since the last checkpoint is lost: {error}")
        if isinstance(reason, Interrupted):
            self.accelerator.wait_for_everyone()  # torchrun ends all processes as soon as one has ended

    def step_is_due(self, progress: Progress) -> bool:
        every = self.settings.checkpointing_steps
        return every > 0 and progress.step % every == 0

    def kept_path(self, progress: Progress) -> Path | None:
        """Where the checkpoint of this moment, the end of an epoch or of a step, stays; None = nowhere."""
        is_kept = self.step_is_due(progress) or progress.step == self.settings.total_steps
        if not progress.samples:
            is_kept = is_kept or progress.epoch % self.settings.save_interval == 0
        return self.files.folder / self.files.name(progress) if is_kept else None

    def note_broken(self, epoch: int, step: int, skipped: list[str]) -> None:
        """Samples of all processes that could not be read this time; each is told once. Raises UserError where they
        are too many."""
        for text in skipped:
            sample_id = text.partition(": ")[0]
            if sample_id not in self.broken:
                self.broken.add(sample_id)
                self.log.broken_sample(epoch, step, text)
        if len(self.broken) > MOST_BROKEN_SAMPLES:
            raise UserError(
                f"{len(self.broken)} samples became unreadable while training (the last: {skipped[-1]}): is the "
                "disk or the network share still there? Then go on with --resume-checkpoint auto"
            )
