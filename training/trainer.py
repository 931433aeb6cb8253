"""The trainer: the loop, a step, a validation, and the state of a run, which a checkpoint holds whole.

`fit` is the loop. What belongs to the state of a run is in `state_dict`, and nowhere else.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from PIL import Image
from torch.utils.data import DataLoader

from checkpoint import link_atomically, read_checkpoint, sealed, write_atomically
from data.dataset import EpochBatches
from errors import Interrupted, StopRequest, UserError, child_news_postponed, warn
from evaluation.evaluate import Result, evaluate
from evaluation.options import Inference
from segmenter import Segmenter
from structures import Batch
from training.checkpoints import Progress, RunFiles, keep_newest, save_best, save_checkpoint
from training.features.cache import CachedModel, FeatureCache
from training.logs import RunLog
from training.optimizer import Average, build_optimizer, set_lr
from training.processes import largest_anywhere
from training.schedule import lr_factor
from training.step import OptimizerStep, StepNumbers, replay_content
from training.tasks import TaskData

MAX_BAD_STEPS = 10
"""So many steps in a row whose numbers are not finite end the run."""

MAX_BROKEN_SAMPLES = 20
"""So many files may break during the run."""

NUM_IMAGES_SHOWN = 4
"""In the visualizations of a validation."""


@dataclass(frozen=True)
class TrainerSettings:
    """max_steps, warmup_steps: instead of epochs, -1 = off. lr_milestones: shares of the run.

    save_interval, val_interval: in epochs. ema_decay: 0 = no average. checkpointing_steps: 0 = none. keep_last: 0 =
    all. early_stopping: validations in a row that are not the best, 0 = off. inference: how validation looks at images.
    """

    epochs: int
    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int
    lr: float
    warmup_epochs: float
    warmup_steps: int
    lr_schedule: str
    lr_milestones: tuple[float, ...]
    weight_decay: float
    decay_all: bool
    backbone_lr_multiplier: float
    max_grad_norm: float
    ema_decay: float
    seed: int
    best_metric: str
    save_interval: int
    checkpointing_steps: int
    keep_last: int
    val_interval: int
    early_stopping: int
    log_interval: int
    inference: Inference


@dataclass(frozen=True)
class Plan:
    """How long a run is, in all: epochs begun, optimizer steps, and how many of them are warm-up."""

    epochs: int
    total_steps: int
    warmup_steps: int


@dataclass
class Loaders:
    """order: what decides which samples each batch of `train` has. val, test: None where there is no such split.
    cache: of the backbone's features, None = they are computed each time."""

    order: EpochBatches
    train: DataLoader
    val: DataLoader | None
    test: DataLoader | None
    cache: FeatureCache | None = None


@dataclass(frozen=True)
class UnreadStep:
    """A step whose losses are not read yet, and what is said about it then. epoch, step: counted from 1."""

    epoch: int
    step: int
    lr: float
    num_images: int
    micro_batches: list[Batch]
    numbers: StepNumbers


class Trainer:
    """Trains adapter and head (and an unfrozen backbone) of a segmenter.

    about: what all checkpoints of the run say alike. stop: whether somebody asked this process to end.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        data: TaskData,
        loaders: Loaders,
        settings: TrainerSettings,
        files: RunFiles,
        accelerator: Accelerator,
        about: dict[str, Any],
    ) -> None:
        self.segmenter, self.data, self.loaders, self.settings = segmenter, data, loaders, settings
        self.files, self.accelerator, self.about = files, accelerator, about
        backbone = segmenter.backbone if segmenter.backbone.is_trained else None
        parts = [segmenter.adapter, segmenter.head]
        rates = (settings.lr, settings.weight_decay)
        decays_all = segmenter.head.decays_all
        optimizer = build_optimizer(
            parts, *rates, backbone, settings.backbone_lr_multiplier, decays_all, settings.decay_all
        )
        self.model, self.optimizer = accelerator.prepare(segmenter), optimizer
        self.progress = Progress(settings.best_metric)
        self._make_plan()
        self.average = Average(segmenter, settings.ema_decay) if settings.ema_decay else None
        limit = settings.max_grad_norm
        self.updates = OptimizerStep(segmenter, self.model, optimizer, accelerator, settings.seed, limit, self.average)
        self._unread: UnreadStep | None = None
        self.cache = loaders.cache
        track = accelerator.log if accelerator.trackers else None
        self.log = RunLog(files, settings.log_interval, accelerator.is_main_process, track)
        self.stop = StopRequest()
        self.broken: set[str] = set()  # samples whose files broke on the way
        self._saved_step = 0  # what was trained up to this step is in a checkpoint

    # The state of the run

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: with `about`, all that a resumed run needs to be resumed bit for bit.

        "model": the weights that are validated and used. With an average these are not the ones that are trained,
        which are "raw" then.
        """
        raw = self.segmenter.trainable_state()
        return {
            **({"model": self.average.tensors, "raw": raw} if self.average else {"model": raw}),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "log": self.log.pending(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts weights, optimizer and progress in place. Learning rate, weight decay and best metric may be others."""
        self.segmenter.load_trainable_state(state.get("raw", state["model"]))
        if self.average:  # the weights themselves, in a run that had no average until now
            self.average.load(state["model"])
        kept = ("weight_decay", "lr_multiplier", "fused")  # older checkpoints' optimizer was not fused
        groups = [
            {**saved, **{key: group[key] for key in kept}}
            for saved, group in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True)
        ]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        progress = Progress(**state["progress"])
        best_metric = self.settings.best_metric
        if progress.best_metric != best_metric:
            best = progress.best if best_metric in progress.best else {}
            progress = replace(progress, best_metric=best_metric, best=best)
        self.progress = progress
        self._make_plan()
        self.log.restore(state["log"])
        self._saved_step = progress.step

    # The loop

    def fit(self, stop: StopRequest) -> None:
        """Trains until all steps are done. However it ends, what was trained is saved.

        Raises Interrupted on a signal, UserError for what a person can put right.
        """
        with self.running(stop):
            while self.is_step_left:
                for micro_batches in self.batches_left():
                    self.step(micro_batches)
                    self.save_if_due()
                self.finish_epoch()

    @contextmanager
    def running(self, stop: StopRequest) -> Iterator[None]:
        """For the steps in it: opens the log before them, and saves what was trained however they end."""
        self.stop = stop
        self.log.start(self.plan.total_steps, self.progress)
        try:
            self.model.train()
            if self.progress.validation_due:
                self.validate()
            yield
        except BaseException as reason:
            self._save_before_the_end(reason)
            raise

    def batches_left(self, others: Iterable["Trainer"] = ()) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is left in the running epoch. others: who wait for them as well."""
        self.loaders.order.set_epoch(self.progress.epoch, self.progress.samples)
        is_cached = self.cache is not None and self.cache.num_views > 0
        batches = self.loaders.train
        for trainer in (self, *others):
            batches = trainer.log.timed(batches)
        if is_cached:
            batches = self.cache.batches(batches)
        steps = groups_of(batches, self.settings.gradient_accumulation_steps)
        return islice(steps, self.plan.total_steps - self.progress.step)

    def save_if_due(self) -> None:
        """After a step within an epoch: what --checkpointing-steps asks for."""
        if self._is_step_due and self.is_step_left and not self._is_epoch_over:
            self.save_and_validate()

    def finish_epoch(self) -> None:
        """At the end of an epoch, or where --max-steps ends within one, which then stays begun."""
        progress = self.progress
        if self._is_epoch_over:
            progress.epoch, progress.samples = progress.epoch + 1, 0
        is_validated = self.is_end or progress.epoch % self.settings.val_interval == 0 or self._is_step_due
        self.save_and_validate(is_validated)

    @property
    def is_step_left(self) -> bool:
        """Whether a step, or the end of an epoch whose steps are all done, is still to come."""
        return not self.is_stopped_early(self.progress) and (not self.is_end or self._is_epoch_over)

    def is_stopped_early(self, progress: Progress) -> bool:
        """At the end of an epoch, where the last validations were not the best."""
        limit = self.settings.early_stopping
        return 0 < limit <= progress.not_better and progress.samples == 0

    @property
    def is_finished(self) -> bool:
        return not self.is_step_left and not self.progress.validation_due

    @property
    def is_end(self) -> bool:
        return self.progress.step >= self.plan.total_steps

    @property
    def _is_epoch_over(self) -> bool:
        return self.progress.samples >= self.loaders.order.num_samples

    @property
    def _is_step_due(self) -> bool:
        every = self.settings.checkpointing_steps
        return every > 0 and self.progress.step % every == 0

    def _make_plan(self) -> None:
        self.plan = self._plan()
        self._set_progress_of_head()

    def _set_progress_of_head(self) -> None:
        self.segmenter.head.set_progress(self.progress.step / max(1, self.plan.total_steps))

    def _plan(self) -> Plan:
        """Of what a resumed run lacks, in epochs or steps, also where an epoch has another number of steps now."""
        s, progress, order = self.settings, self.progress, self.loaders.order
        steps_per_epoch = math.ceil(len(order) / s.gradient_accumulation_steps)
        epochs_begun = progress.epoch + int(progress.samples > 0)
        batches_left = math.ceil((order.num_samples - progress.samples) / (s.batch_size * order.world_size))
        steps_begun = math.ceil(max(0, batches_left) / s.gradient_accumulation_steps) if progress.samples else 0
        if s.max_steps > 0:
            steps_left = max(0, s.max_steps - progress.step)
            epochs = epochs_begun + math.ceil(max(0, steps_left - steps_begun) / steps_per_epoch)
        else:
            epochs = s.epochs
            steps_left = max(0, steps_begun + (epochs - epochs_begun) * steps_per_epoch)
        total_steps = progress.step + steps_left
        warmup_steps = round(s.warmup_epochs * steps_per_epoch) if s.warmup_steps < 0 else s.warmup_steps
        return Plan(epochs, total_steps, min(warmup_steps, total_steps))

    # One step

    def step(self, micro_batches: list[Batch]) -> None:
        """One optimizer step on all images of the micro-batches, counted. Its losses are read and logged a step later.

        Raises Interrupted where a signal came meanwhile, UserError where too many steps or samples are bad.
        """
        s, plan, progress = self.settings, self.plan, self.progress
        shape = (s.lr_schedule, s.lr_milestones)
        lr = s.lr * lr_factor(progress.step, plan.total_steps, plan.warmup_steps, *shape)
        set_lr(self.optimizer, lr)
        num_images = sum(len(b.images) for b in micro_batches) * self.accelerator.num_processes
        with child_news_postponed():  # a lost worker ends the run between two steps, where it can be saved
            numbers = self.updates.take(micro_batches, progress.step)
            progress.step += 1
            progress.samples += num_images
            self._set_progress_of_head()
            self.settle()
            batches = [replace(batch, features=None) for batch in micro_batches]  # which would take the device's memory
            self._unread = UnreadStep(progress.epoch + 1, progress.step, lr, num_images, batches, numbers)
        if progress.bad_steps:  # at once, so that a replay has the weights of its step
            self.settle()
        skipped = [text for batch in micro_batches for text in batch.skipped]
        stop_signal, any_skipped = largest_anywhere(self.accelerator, [self.stop.signum, len(skipped)])
        if any_skipped:
            self._note_broken(progress.epoch + 1, gather_object(skipped))
        if stop_signal:
            # Where --max-steps ends within an epoch no step is left that would bring the last validation.
            progress.validation_due = not self.is_step_left and self.loaders.val is not None
            raise Interrupted(stop_signal)

    def settle(self, is_alone: bool = False) -> None:
        """Read and log the losses of the last step, if that is still to be done. Waits for the device.

        is_alone: the other processes may be elsewhere. Raises UserError where too many steps were bad.
        """
        unread, self._unread = self._unread, None
        if unread is None:
            return
        progress = self.progress
        losses, bad = unread.numbers.read()
        if not bad:
            progress.bad_steps = 0
            self.log.step(unread.epoch, unread.step, losses, unread.lr, unread.num_images)
            return
        progress.bad_steps += 1
        sample_ids = [sample_id for batch in unread.micro_batches for sample_id in batch.sample_ids]
        if not is_alone:
            sample_ids = gather_object(sample_ids)
        self.log.bad_step(unread.epoch, unread.step, bad, sample_ids)
        if progress.bad_steps >= MAX_BAD_STEPS:
            path = self.files.replay(unread.step)
            if self.accelerator.is_main_process:
                state = {**self.about, "model": self.segmenter.trainable_state(), "progress": asdict(progress)}
                save_checkpoint(path, sealed({**state, "batch": replay_content(unread.micro_batches)}))
            raise UserError(
                f"{MAX_BAD_STEPS} steps in a row up to step {unread.step} were not finite and were skipped (the "
                f"last: {bad}): try a lower --lr, a longer --warmup-epochs, a smaller --max-grad-norm or "
                f"--precision fp32, and resume the last good checkpoint. {path} holds the weights and the last batch"
            )

    def _note_broken(self, epoch: int, skipped: list[str]) -> None:
        """Samples of all processes that could not be read this time; each is reported once.

        Raises UserError where they are too many.
        """
        for text in skipped:
            sample_id = text.partition(": ")[0]
            if sample_id not in self.broken:
                self.broken.add(sample_id)
                self.log.broken_sample(epoch, self.progress.step, text)
        if len(self.broken) > MAX_BROKEN_SAMPLES:
            raise UserError(
                f"{len(self.broken)} samples became unreadable while training (the last: {skipped[-1]}): is the "
                "disk or the network share still there? Then resume with --resume-checkpoint auto"
            )

    # Validation and checkpoints

    def save_and_validate(self, is_validated: bool = True) -> None:
        """Saves first what is due, for validation may fail."""
        self.settle()
        self.progress.validation_due = is_validated and self.loaders.val is not None
        path = self._kept_path()
        if path:
            self.save(path)
        if self.progress.validation_due:
            self.validate()
        self.accelerator.wait_for_everyone()

    def save(self, path: Path, progress: Progress | None = None) -> None:
        """Writes a checkpoint, in the first process. progress: to be saved in the place of the trainer's own."""
        if self.accelerator.is_main_process:
            save_checkpoint(path, self._checkpoint(progress))
            keep_newest(self.files, self.settings.keep_last)
        self._saved_step = self.progress.step

    def validate(self) -> None:
        """Measures the model as it is, and keeps it where it is the best so far."""
        with self.average.in_place() if self.average else nullcontext():
            result, sheet = self._measured("val", self.loaders.val)
        progress = self.progress
        is_best = progress.improves(result.values, self.data.metrics)
        if self.accelerator.is_main_process and sheet:
            for name in ("latest.png", "best.png") if is_best else ("latest.png",):
                write_atomically(self.files.pictures / name, lambda file: sheet.save(file, format="PNG"))
        self.log.evaluation("val", progress, result, sheet)
        if not math.isfinite(result.values["loss"]):
            self.log.say("the loss or a score is not finite: this model is not kept as the best")

        name, path = self.files.name(progress), self._kept_path()
        done = replace(progress, validation_due=False, not_better=progress.not_better + 1)
        if is_best:
            done = replace(done, best=result.values, best_checkpoint=name, not_better=0)
        if self.is_stopped_early(done):
            path = self.files.folder / name
            self.log.say(f"no better {progress.best_metric} in {done.not_better} validations: stopping early")
        if is_best and self.accelerator.is_main_process:
            best_path = save_best(self.files, self._checkpoint(done), name)
            if path:
                link_atomically(best_path, path)
        elif path:
            self.save(path, done)  # as before the validation, but now it knows of it
        self.progress = done  # only now: had the write failed, there would be no such best model

    def test(self) -> None:
        """Measures the best model, or the last where nothing was validated, on images that decided nothing."""
        name = self.progress.best_checkpoint
        best = self.files.best_folder / name if name else None
        if best and best.exists():
            self.segmenter.load_trainable_state(read_checkpoint(best)["model"])
            self.log.say(f"testing {best}")
        else:
            self.segmenter.load_trainable_state(self.state_dict()["model"])
            self.log.say("testing the last model: this folder has no best one")
        result, sheet = self._measured("test", self.loaders.test)
        if self.accelerator.is_main_process and sheet:
            write_atomically(self.files.pictures / "test.png", lambda file: sheet.save(file, format="PNG"))
        self.log.evaluation("test", self.progress, result, sheet)

    def _measured(self, split: str, batches: Iterable[Batch]) -> tuple[Result, Image.Image | None]:
        """Over all processes. Raises Interrupted on a signal."""
        for buffer in [*self.segmenter.adapter.buffers(), *self.segmenter.head.buffers()]:
            broadcast(buffer)  # batch norms saw different images in each process; the first one's are kept
        evaluator = self.data.evaluator(split, self.settings.inference, NUM_IMAGES_SHOWN)
        skipped: list[str] = []
        self.model.eval()
        device = self.accelerator.device
        is_cached = self.cache is not None and split == "val"  # images to test on are seen once
        model = CachedModel(self.segmenter, self.cache) if is_cached else self.segmenter
        with self.segmenter.backbone.uneven_calls():  # of unequal shares of the images
            evaluate(model, self._readable(batches, skipped), evaluator, device, self.settings.seed)
        self.model.train()
        (stop_signal,) = largest_anywhere(self.accelerator, [self.stop.signum])
        if stop_signal:
            raise Interrupted(stop_signal)
        self._note_broken(self.progress.epoch, gather_object(skipped))
        result = evaluator.result(gather_object([evaluator.state()]))
        backbone = self.segmenter.backbone
        sheet = evaluator.sheet(backbone.mean, backbone.std) if self.accelerator.is_main_process else None
        return result, sheet

    def _readable(self, batches: Iterable[Batch], skipped: list[str]) -> Iterator[Batch]:
        """Until a signal; all processes meet afterwards, so that none waits for one that has stopped.

        What cannot be read is added to `skipped`.
        """
        for batch in batches:
            if self.stop:
                return
            skipped += batch.skipped
            if batch.targets:
                yield batch

    def _checkpoint(self, progress: Progress | None = None) -> dict[str, Any]:
        state = self.state_dict() | ({"progress": asdict(progress)} if progress else {})
        return sealed({**self.about, **state})

    def _kept_path(self) -> Path | None:
        """Where the checkpoint of this moment, the end of an epoch or of a step, stays; None = nowhere."""
        is_kept = self._is_step_due or self.is_end
        if not self.progress.samples:
            is_kept = is_kept or self.progress.epoch % self.settings.save_interval == 0
        return self.files.folder / self.files.name(self.progress) if is_kept else None

    def _save_before_the_end(self, reason: BaseException) -> None:
        """What was trained since the last checkpoint, when a signal or an error ends the run."""
        if not self.updates.is_updating and not self.stop.at_once and self.progress.step != self._saved_step:
            path = self.files.folder / self.files.step_name(self.progress.step)
            try:
                self.settle(is_alone=not isinstance(reason, Interrupted))  # an error may be of this process only
                self.save(path)
                self.log.say(f"saved {path}")
            except Exception as error:  # the reason of the end must be reported, not this one
                warn(f"what was trained since the last checkpoint is lost: {error}")
        if isinstance(reason, Interrupted):
            self.accelerator.wait_for_everyone()  # torchrun ends all processes as soon as one has ended


def groups_of(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last one may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
