"""One model on one data set, image by image: what was found of each is kept in a file, from which it resumes."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, Subset

from checkpoint import checksum, locked
from data.dataset import EvalDataset, Skipped, collate
from data.raster_masks import MaskRaster
from data.rasters import Raster
from data.sources.object_maps import ObjectMapSource
from data.sources.raster_windows import opened_pair
from errors import UserError, ignore_signals
from evaluation.evaluate import Evaluator, Result, evaluate
from evaluation.options import flags_of
from evaluation.rasters import Block, RasterModel, class_blocks
from evaluation.semantic import SemanticEvaluator
from released.model import load_model
from training.evaluate.config import EvaluateConfig
from training.evaluate.data import digest_of_files, evaluated_data, rasters_of
from training.evaluate.results import FORMAT, ResultFiles
from training.processes import backbone_dtype, check_shared, decided, gathered, make_accelerator
from training.setup import eval_transform

BlocksOfRaster = Callable[[str, Raster, Iterator[Block]], Iterator[Block]]
"""Is given a raster's sample id, the raster and its blocks while these are counted, and gives each block on."""


@dataclass(frozen=True)
class Evaluated:
    """One image. evaluator: which has seen this image alone and, except of a raster, keeps what was predicted in it."""

    sample_id: str
    evaluator: Evaluator
    is_raster: bool = False


@dataclass(frozen=True)
class PlainStates(Sequence):
    """States of an evaluator, each made when it is asked for: of many classes they would fill the memory together."""

    plain: list[dict[str, Any]]
    evaluator: Evaluator

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int) -> Any:
        return self.evaluator.from_plain(self.plain[index])


class Evaluation:
    """A model and the data that it is evaluated on, of which each process takes its share.

    skipped: "sample id: reason" of what could not be read. held: keeps the output folder for this call.
    Raises UserError where model and data do not fit.
    """

    def __init__(self, config: EvaluateConfig, held: ExitStack) -> None:
        self.config = config
        self.accelerator: Accelerator = make_accelerator(config.precision)
        folder = Path(config.output_dir)
        decided(self.accelerator, f"preparing {folder}", lambda: hold(folder, held))
        check_shared(self.accelerator, folder, "--output-dir")
        self.segmenter = load_model(
            config.model_path, config.weights, config.backbone, config.task, backbone_dtype(self.accelerator)
        )
        config.check_task(self.segmenter.task)
        run = self.segmenter.arguments
        flags = flags_of(run, config.asked_inference())
        flags.check_inference(self.segmenter.task, run["image_size"])
        self.inference = flags.inference(run["image_size"])
        self.raster_inference = flags.raster_inference(run["image_size"])
        self.source, self.make_evaluator = evaluated_data(config, self.segmenter)
        self.accelerator.prepare_model(self.segmenter, evaluation_mode=True)  # in place: its device and precision
        self.rasters = frozenset(rasters_of(self.source))
        self.results = ResultFiles(folder, self.accelerator.process_index)
        self.skipped: list[str] = []
        self.share: list[int] = []  # numbers of the samples that this process evaluates
        self._states: dict[str, dict[str, Any]] = {}  # as plain values

    @cached_property
    def metric(self) -> str:
        """That by which images are worst."""
        return next(name for name in self._reader.METRICS if name != "loss")

    @property
    def sample_ids(self) -> list[str]:
        return [sample.sample_id for sample in self.source.samples]

    def resume(self, is_complete: Callable[[str], bool]) -> int:
        """Takes what an interrupted evaluation of the same model and data has found; returns of how many images.

        is_complete: whether a sample has all that the caller makes of it. With another model, other data or another
        protocol it starts over.
        """
        known = set(self.sample_ids)

        def merge() -> dict[str, Any]:
            if self.config.overwrite:
                self.results.remove()
            self.results.merge(self._identity, lambda name: name in known and is_complete(name))
            return self._identity

        identity = decided(self.accelerator, f"reading {self.results.common}", merge)
        self._states = self.results.states()
        self.results.start(identity)
        left = [number for number, name in enumerate(self.sample_ids) if name not in self._states]
        self.share = left[self.accelerator.process_index :: self.accelerator.num_processes]
        return len(self._states)

    def put_together(self) -> None:
        """Waits for all processes; then each has what they found."""
        self.skipped = gathered(self.accelerator, self.skipped)
        known = set(self.sample_ids)

        def merge() -> None:
            self.results.merge(self._identity, known.__contains__)

        if self.accelerator.num_processes > 1:
            decided(self.accelerator, "putting together what all found", merge)
            self._states = self.results.states()

    def as_dict(self) -> dict[str, Any]:
        """How images were looked at, in plain values."""
        return asdict(self.inference)

    def run(self, with_blocks: BlocksOfRaster = lambda name, raster, blocks: blocks) -> Iterator[Evaluated]:
        """Evaluates this process's share of the images that are left, in their order, rasters last. Each is kept in the
        file when the next is asked for: what the caller makes of it is done then. with_blocks: what is made of
        rasters."""
        whole = [number for number in self.share if self.sample_ids[number] not in self.rasters]
        for evaluated in chain(self._evaluated(whole), self._evaluated_rasters(self.share, with_blocks)):
            state = evaluated.evaluator.to_plain(evaluated.evaluator.state())
            self._states[evaluated.sample_id] = state
            yield evaluated
            self.results.add(evaluated.sample_id, state)

    def result(self) -> Result:
        """Of all images that could be read."""
        return self._result([self._states[name] for name in self.sample_ids if name in self._states])

    def worst_first(self) -> list[tuple[str, dict[str, float]]]:
        """Each image and its values; those of which the metric is not known, for they have no label, come last."""
        found = [(name, self._result([self._states[name]]).values) for name in self.sample_ids if name in self._states]
        return sorted(found, key=lambda item: (item[1][self.metric] != item[1][self.metric], item[1][self.metric]))

    def sheet(self, names: Sequence[str]) -> Image.Image | None:
        """Image, ground truth and prediction of the samples, no raster among them, in this order."""
        evaluator = self.make_evaluator(self.source, self.inference, len(names))
        place = {name: number for number, name in enumerate(self.sample_ids)}
        batches = (batch for batch in self._loader([place[name] for name in names]) if batch.targets)
        evaluate(self.segmenter, batches, evaluator, self.accelerator.device, self.config.seed)
        return evaluator.sheet(self.segmenter.backbone.mean, self.segmenter.backbone.std)

    def _result(self, plain: list[dict[str, Any]]) -> Result:
        return self._reader.result(PlainStates(plain, self._reader))

    def _evaluated(self, numbers: list[int]) -> Iterator[Evaluated]:
        for batch in self._loader(numbers):
            self.skipped += batch.skipped
            if batch.targets:
                evaluator = self.make_evaluator(self.source, self.inference, 1)
                evaluate(self.segmenter, [batch], evaluator, self.accelerator.device, self.config.seed)
                yield Evaluated(batch.sample_ids[0], evaluator)

    def _evaluated_rasters(self, numbers: list[int], with_blocks: BlocksOfRaster) -> Iterator[Evaluated]:
        """Of those of the numbers that are rasters; one that cannot be read to its end is skipped."""
        for sample in (self.source.samples[number] for number in numbers):
            if sample.sample_id not in self.rasters:
                continue
            evaluator = self.make_evaluator(self.source, self.raster_inference, 0)
            try:
                with opened_pair(sample, self.source.rule, self.source.labels) as (raster, mask):
                    for _ in with_blocks(sample.sample_id, raster, self._counted(raster, mask, evaluator)):
                        pass
            except UserError as error:
                self.skipped.append(str(Skipped(sample.sample_id, str(error))))
                continue
            yield Evaluated(sample.sample_id, evaluator, is_raster=True)

    def _counted(self, raster: Raster, mask: MaskRaster, evaluator: SemanticEvaluator) -> Iterator[Block]:
        model = RasterModel(
            self.segmenter,
            self.segmenter.head,
            eval_transform(self.raster_inference, self.segmenter.backbone).views,
            len(self.segmenter.class_names),
            self.raster_inference,
            self.accelerator.device,
        )
        for block in class_blocks(raster, model):
            truth = torch.from_numpy(mask.classes(block.rows, block.columns, self.source.labels)).long()
            evaluator.add_map(block.classes, truth)
            yield block

    def _loader(self, numbers: list[int]) -> DataLoader:
        data = EvalDataset(self.source, eval_transform(self.inference, self.segmenter.backbone))
        is_cuda = self.accelerator.device.type == "cuda"
        return DataLoader(
            Subset(data, numbers),
            batch_size=1,  # images differ in size, and large ones fill the memory
            num_workers=min(self.config.num_workers, len(numbers)),
            collate_fn=collate,
            pin_memory=is_cuda,
            worker_init_fn=ignore_signals,
        )

    @cached_property
    def _reader(self) -> Evaluator:
        """Sees no image: makes results of states."""
        return self.make_evaluator(self.source, self.inference, 0)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What results of images must have in common to be put together; as JSON gives it back."""
        inference = asdict(replace(self.inference, windows_at_once=1))
        of_rasters = {"rasters": asdict(replace(self.raster_inference, windows_at_once=1))} if self.rasters else {}
        source = self.source
        content = of_rasters | {
            "format": FORMAT,
            "model": checksum(self.segmenter.trainable_state()),
            "backbone": self.segmenter.backbone.fingerprint,
            "data": digest_of_files(source),
            "labels": repr(getattr(source, "labels", self.segmenter.labels)),
            **({"has_background": source.has_background} if isinstance(source, ObjectMapSource) else {}),
            "images": source.rule.as_dict(),
            "inference": inference,
            "precision": self.accelerator.mixed_precision,
            "seed": self.config.seed,
        }
        return json.loads(json.dumps(content))


def hold(folder: Path, held: ExitStack) -> None:
    """Raises UserError where the folder cannot be made, or another evaluation is at work there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir {folder}: cannot be made ({error.strerror})") from error
    held.enter_context(locked(folder / ".evaluation.lock", "--output-dir"))
