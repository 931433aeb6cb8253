"""Trains several heads side by side: each batch passes the frozen backbone once, and every head learns from it.

Each head keeps its own trainer, with its optimizer, schedule, loss, checkpoints and log, and ends with the weights
that its own training script gives: what is random in a step depends on seed, step and position alone.
"""

import time
from collections import defaultdict
from contextlib import ExitStack
from statistics import median

import torch

from comparison.config import TRIAL_STEPS
from errors import StopRequest
from structures import Batch
from training.features.cache import FeatureCache
from training.features.stores import MemoryStore
from training.trainer import Trainer

REMEMBERED_BYTES = 2**30
"""Without --cache-features, the features of validation images, which all heads see in each validation, are kept up to
this size."""


class Together:
    """trainers: by the heads' names, all of the same data, seed, batch size, loaders and frozen backbone.

    seconds: of each head, for each step: its own share and that of the backbone. peak_bytes: on CUDA, the greatest
    memory during its steps, with what the other heads keep there meanwhile; 0 elsewhere.
    """

    def __init__(self, trainers: dict[str, Trainer]) -> None:
        self.trainers = trainers
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak_bytes: dict[str, int] = dict.fromkeys(trainers, 0)
        first = next(iter(trainers.values()))
        self.accelerator, self.backbone = first.accelerator, first.segmenter.backbone
        assert not self.backbone.is_trained
        in_memory = MemoryStore(REMEMBERED_BYTES)
        self.cache = first.cache or FeatureCache(self.backbone, self.accelerator, in_memory, torch.float32)
        for name, trainer in trainers.items():
            trainer.log.title, trainer.cache = name, self.cache

    def fit(self, names: list[str], stop: StopRequest) -> None:
        """Trains these until all are done. However it ends, what was trained of each is saved.

        A run that was killed may have left one head behind the others: it catches up alone. Raises what Trainer.fit
        raises.
        """
        trainers = {name: self.trainers[name] for name in names}
        with ExitStack() as running:
            for trainer in trainers.values():
                running.enter_context(trainer.running(stop))
            while left := {name: t for name, t in trainers.items() if t.is_step_left}:
                first = min(map(place, left.values()))
                self._train_epoch({name: t for name, t in left.items() if place(t) == first}, left)

    def _train_epoch(self, group: dict[str, Trainer], left: dict[str, Trainer]) -> None:
        """Trains those that are equally far, until the end of their epoch or until they meet another one.

        Those that have fewer steps end before the others.
        """
        longest = max(group.values(), key=lambda trainer: trainer.plan.total_steps)
        ahead = {place(trainer) for name, trainer in left.items() if name not in group}
        others = [trainer for trainer in group.values() if trainer is not longest]
        for micro_batches in longest.batches_left(others):
            begin = time.perf_counter()
            micro_batches = [self.with_features(batch) for batch in micro_batches]
            shared_s = time.perf_counter() - begin
            for name, trainer in group.items():
                self.seconds[name].append(shared_s + self._step(name, trainer, micro_batches))
            for trainer in group.values():
                if trainer.is_end and trainer is not longest:
                    trainer.finish_epoch()
            group = {name: trainer for name, trainer in group.items() if not trainer.is_end or trainer is longest}
            if place(longest) in ahead:
                return
        for trainer in group.values():
            trainer.finish_epoch()

    def step_seconds(self) -> dict[str, float]:
        """Median seconds of a step of each head, with the backbone's share, on a few batches; nothing is kept of them.

        The trainers are of no use afterwards.
        """
        first, *_ = self.trainers.values()
        for number, micro_batches in zip(range(TRIAL_STEPS), first.batches_left(), strict=False):
            begin = time.perf_counter()
            micro_batches = [self.with_features(batch) for batch in micro_batches]
            shared_s = time.perf_counter() - begin
            for name, trainer in self.trainers.items():
                begin = time.perf_counter()
                trainer.model.train()
                trainer.updates.take(micro_batches, number).read()
                if number:  # the first step also allocates
                    self.seconds[name].append(shared_s + time.perf_counter() - begin)
        return {name: median(seconds) for name, seconds in self.seconds.items()}

    def _step(self, name: str, trainer: Trainer, micro_batches: list[Batch]) -> float:
        """Seconds of a step without the validation that may follow it."""
        device = self.accelerator.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        trainer.step(micro_batches)
        trainer.settle()  # waits for the device
        seconds = time.perf_counter() - begin
        if device.type == "cuda":
            self.peak_bytes[name] = max(self.peak_bytes[name], torch.cuda.max_memory_allocated(device))
        trainer.save_if_due()
        return seconds

    @torch.no_grad()
    def with_features(self, batch: Batch) -> Batch:
        """The batch with what the backbone says of its images, on the device, unless a cache has said it."""
        if batch.features is not None:
            return batch
        images = batch.images.to(self.accelerator.device, non_blocking=True)
        with self.accelerator.autocast():
            batch.features = self.backbone(images)
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)  # its time is not that of the first head
        return batch


def place(trainer: Trainer) -> tuple[int, int]:
    """Where it is: (finished epochs, samples of the running one)."""
    return trainer.progress.epoch, trainer.progress.samples
