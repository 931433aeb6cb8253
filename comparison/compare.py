"""From a configuration to a report: trains the heads, or takes finished runs, measures them, and reports."""

import json
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter

from checkpoint import find_checkpoint, read_checkpoint, write_json
from comparison.config import ALL, METRIC_OF, NO_VALIDATION, CompareConfig, command_of
from comparison.finished_runs import (
    check_comparable,
    config_from,
    keep_timings,
    kept_timings,
    logged,
    logged_step_seconds,
    run_folder,
)
from comparison.measure import ImageByImage, class_amounts, overlays, resized
from comparison.report import write_report
from comparison.result import Comparison, CurvePoint, GalleryImage, HeadResult
from comparison.together import Together
from data.labels import LabelRule
from errors import UserError, stopping_at_once, stopping_gently
from evaluation.drawing import class_colors, object_colors
from heads.options import HEADS
from memory import count_parameters, estimated_memory_bytes
from segmenter import Segmenter
from training.checkpoints import Resumed, RunFiles
from training.config import TrainConfig
from training.processes import make_accelerator, precision_name
from training.run import Run, prepare, settled_precision
from training.setup import end_workers, make_loaders
from training.tasks import TaskData, prepare_data

METRIC_TITLES = {
    "miou": "mIoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
    "boundary_iou": "boundary IoU",
    "map": "AP",
    "pq": "PQ",
}
GALLERY_IMAGES = 12


def compare(config: CompareConfig) -> Path:
    """Returns the folder of the report. Raises UserError for what a person can put right, Interrupted on a signal."""
    with stopping_at_once():
        accelerator = make_accelerator(precision_of(config))
        if accelerator.num_processes > 1:
            raise UserError(
                "a comparison runs in one process; train each head with its own script in several, then compare them "
                "with --runs"
            )
        with ExitStack() as held:
            groups = [finished(config, accelerator, held)] if config.runs else list(trained_groups(config, accelerator))
        comparison = comparison_of(config, groups)
        folder = Path(config.checkpoint_dir) / "report"
        write_report(comparison, folder)
        write_hyperparameters(comparison, folder / "tensorboard")
    return folder


def precision_of(config: CompareConfig) -> str:
    """As a training's: a resumed comparison keeps its own. Finished runs are measured in float32."""
    if config.runs:
        return "fp32"
    return settled_precision(config.config_for(config.heads[0], config.seed, (config.train_sizes or (ALL,))[0]))


@dataclass(frozen=True)
class Group:
    """Heads that were trained on the same images, measured on the same validation images. gallery: may be empty."""

    data: TaskData
    sample_ids: list[str]
    results: list[HeadResult]
    gallery: list[GalleryImage]
    facts: dict[str, str]


@dataclass(frozen=True)
class Timing:
    """Of the training of one head alone: seconds of a step with the backbone's share, memory of a step in bytes."""

    step_seconds: float
    peak_memory_bytes: int


def trained_groups(config: CompareConfig, accelerator: Accelerator) -> Iterator[Group]:
    """One per training set size and seed; the largest size first, whose images the gallery shows."""
    sizes = sorted(config.train_sizes or [ALL], key=lambda size: -np.inf if size == ALL else -int(size))
    for size in sizes:
        for seed in range(config.seed, config.seed + config.seeds):
            steps = steps_in_time(config, seed, size, accelerator) if config.minutes else {}
            trainings = {
                HEADS[head].title: config.config_for(head, seed, size, steps.get(head)) for head in config.heads
            }
            is_first = size == sizes[0] and seed == config.seed
            with ExitStack() as held:
                yield trained(trainings, accelerator, held, config.one_by_one, is_first)


def steps_in_time(config: CompareConfig, seed: int, size: str, accelerator: Accelerator) -> dict[str, int]:
    """Of each head: the steps that it takes in the minutes of the budget, by a trial.

    They are kept in budget.json, so that a resumed comparison has the same ones.
    """
    trainings = {head: config.config_for(head, seed, size) for head in config.heads}
    path = Path(next(iter(trainings.values())).checkpoint_dir) / "budget.json"
    if not path.is_file():
        runs: dict[str, Run] = {}
        with ExitStack() as held:
            for head, training in trainings.items():
                runs[head] = prepare(training, accelerator, held, next(iter(runs.values())).shared if runs else None)
            seconds = Together({head: run.trainer for head, run in runs.items()}).step_seconds()
        write_json(path, {head: max(1, int(60 * config.minutes / seconds[head])) for head in trainings})
    return json.loads(path.read_text(encoding="utf-8"))


def trained(
    trainings: dict[str, TrainConfig], accelerator: Accelerator, held: ExitStack, one_by_one: bool, has_gallery: bool
) -> Group:
    """Trains what is left to train of them, and measures all."""
    runs: dict[str, Run] = {}
    for name, training in trainings.items():
        runs[name] = prepare(training, accelerator, held, next(iter(runs.values())).shared if runs else None)
    first = next(iter(runs.values()))
    if first.trainer.loaders.val is None:
        raise UserError(NO_VALIDATION)
    together = Together({name: run.trainer for name, run in runs.items()})
    left = {name: run for name, run in runs.items() if not run.trainer.is_finished}
    with ExitStack() as closing:
        stop = closing.enter_context(stopping_gently())
        for run in left.values():
            run.begin()
            closing.enter_context(run.closing())
        closing.callback(keep_timings, first.files.folder, together)
        for names in [[name] for name in left] if one_by_one else [list(left)]:
            together.fit(names, stop)

    data = first.trainer.data
    held.callback(end_workers, first.trainer.loaders.val)
    inference, loaders = first.trainer.settings.inference, first.trainer.loaders
    measurer = ImageByImage(data, loaders.val, accelerator.device, inference, together.cache)
    timings = kept_timings(first.files.folder)
    models, results = {}, []
    for name, run in runs.items():
        trainer, files = run.trainer, run.files
        best = files.best_folder / str(trainer.progress.best_checkpoint)
        path = best if best.is_file() else files.folder / files.name(trainer.progress)
        models[name] = trainer.segmenter
        trainer.segmenter.load_trainable_state(read_checkpoint(path)["model"])
        seconds, peak_bytes = timings.get(name, ([], 0))
        timing = timing_of(run.config, trainer.segmenter, seconds, peak_bytes)
        results.append(head_result(name, run.config, trainer.segmenter, measurer, path, files, timing))
    return group_of(first.config, data, measurer, models, results, accelerator, has_gallery)


def finished(config: CompareConfig, accelerator: Accelerator, held: ExitStack) -> Group:
    """Of --runs. Raises UserError where they are not of the same images, classes and validation images."""
    paths = [find_checkpoint(word) for word in config.runs]
    states = [read_checkpoint(path) for path in paths]
    configs = [config_from(path, state) for path, state in zip(paths, states, strict=True)]
    for path, state in zip(paths[1:], states[1:], strict=True):
        check_comparable(paths[0], states[0], path, state)
    data = prepare_data(configs[0], accelerator, Resumed(paths[0], states[0]))
    if not data.sizes["val"]:
        raise UserError(f"--runs {paths[0]}: was trained without validation images, by which heads are compared")
    titles = [HEADS[one.head].title for one in configs]
    names = (
        titles
        if len(set(titles)) == len(titles)
        else [f"{t} {p.parent.parent.name}" for t, p in zip(titles, paths, strict=True)]
    )
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    models, results, measurer = {}, [], None
    for name, path, one in zip(names, paths, configs, strict=True):
        models[name] = Segmenter.load(path).to(accelerator.device)
        loader = make_loaders(one, models[name].backbone, data, accelerator).val
        held.callback(end_workers, loader)
        measurer = ImageByImage(data, loader, accelerator.device, one.inference(one.image_size))
        files = RunFiles.of(run_folder(path, one), one.head)
        timing = timing_of(one, models[name], logged_step_seconds(files, one), 0)
        results.append(head_result(name, one, models[name], measurer, path, files, timing))
    return group_of(configs[0], data, measurer, models, results, accelerator, has_gallery=True)


def timing_of(config: TrainConfig, segmenter: Segmenter, seconds: list[float], peak_bytes: int) -> Timing:
    """peak_bytes: 0 where it was not measured; then it is estimated."""
    sizes = (config.image_size, config.batch_size, config.gradient_checkpointing)
    estimate = (segmenter.backbone, segmenter.spec, *sizes)
    return Timing(median(seconds) if seconds else float("nan"), peak_bytes or estimated_memory_bytes(*estimate))


def head_result(
    name: str,
    config: TrainConfig,
    segmenter: Segmenter,
    measurer: ImageByImage,
    checkpoint: Path,
    files: RunFiles,
    timing: Timing,
) -> HeadResult:
    measured = measurer.measure(segmenter.eval())
    metric = METRIC_OF[measurer.data.task]
    validations = logged(files, "val")
    steps = max([line["step"] for line in (*validations, *logged(files, "train"))], default=0)
    curve, before = [], 0
    for line in validations:
        losses = [train["loss"] for train in logged(files, "train") if before < train["step"] <= line["step"]]
        loss = float(np.mean(losses)) if losses else float("nan")
        curve.append(CurvePoint(line["step"], line["step"] * timing.step_seconds / 60, line[metric] or 0.0, loss))
        before = line["step"]
    progress = read_checkpoint(checkpoint)["progress"]
    return HeadResult(
        name=name,
        head=config.head,
        seed=config.seed,
        train_size=measurer.data.sizes["train"],
        metrics={METRIC_TITLES.get(k, k): v for k, v in measured.values.items() if k != "loss" and not np.isnan(v)},
        per_class=measured.by_class,
        confusion=measured.confusion,
        per_image=measured.per_image,
        curve=curve,
        best_step=progress["step"],
        trained_parameters=count_parameters(segmenter.adapter) + count_parameters(segmenter.head),
        training_seconds=steps * timing.step_seconds,
        step_seconds=timing.step_seconds,
        image_seconds=float("nan"),  # of all heads in turns, see group_of
        peak_memory_bytes=timing.peak_memory_bytes,
        checkpoint=str(checkpoint),
        checkpoint_bytes=checkpoint.stat().st_size,
        command=command_of(config, f"demo/train_{config.head}_head.py"),
    )


def group_of(
    config: TrainConfig,
    data: TaskData,
    measurer: ImageByImage,
    models: dict[str, Segmenter],
    results: list[HeadResult],
    accelerator: Accelerator,
    has_gallery: bool,
) -> Group:
    seconds = measurer.image_seconds(models)
    results = [replace(result, image_seconds=seconds[result.name]) for result in results]
    sample_ids = measurer.sample_ids()
    gallery = gallery_of(measurer, models, results, sample_ids) if has_gallery else []
    return Group(data, sample_ids, results, gallery, facts_of(config, next(iter(models.values())), data, accelerator))


def gallery_of(
    measurer: ImageByImage, models: dict[str, Segmenter], results: list[HeadResult], sample_ids: list[str]
) -> list[GalleryImage]:
    """The images on which the metric of the heads differs most, the greatest difference first."""
    alone = np.eye(len(sample_ids), dtype=np.int64)
    values = np.stack([result.per_image.values(alone) for result in results])  # (heads, images)
    spread = np.nan_to_num(values, nan=0).max(0) - np.nan_to_num(values, nan=0).min(0)
    order = np.argsort(-spread, kind="stable")[:GALLERY_IMAGES]
    wanted = {sample_ids[i] for i in order}
    colors = colors_of(measurer.data)
    drawn: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in models}
    for name, model in models.items():
        for sample_id, shown in measurer.shown(model.eval(), wanted):
            drawn[name][sample_id] = overlays(shown, colors)
    source = measurer.data.sources["val"]
    sample_of = {sample.sample_id: sample for sample in source.samples}
    gallery = []
    for i in order:
        sample_id = sample_ids[i]
        truth = next(iter(drawn.values()))[sample_id][0]
        pixels = source.read(sample_of[sample_id]).pixels.permute(1, 2, 0).numpy()
        gallery.append(
            GalleryImage(
                sample_id,
                resized(pixels, truth.shape[:2]),
                truth,
                {name: of_head[sample_id][1] for name, of_head in drawn.items()},
                {name: None if np.isnan(v) else float(v) for name, v in zip(models, values[:, i], strict=True)},
            )
        )
    return gallery


def colors_of(data: TaskData) -> np.ndarray:
    """(K, 3) uint8."""
    num_classes = len(data.class_names)
    if data.task != "semantic":
        return object_colors(num_classes)
    return class_colors(num_classes, LabelRule.from_dict(data.meaning).class_palette)


def facts_of(config: TrainConfig, segmenter: Segmenter, data: TaskData, accelerator: Accelerator) -> dict[str, str]:
    device = accelerator.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "backbone": f"{segmenter.backbone.name}, frozen, weights {segmenter.backbone.weights}",
        "training images": f"{data.sizes['train']:,}",
        "validation images": f"{data.sizes['val']:,}",
        "image size": f"{config.image_size} px, evaluated {config.eval_mode}",
        "batch size": str(config.batch_size * config.gradient_accumulation_steps),
        "length": f"{config.max_steps} steps" if config.max_steps > 0 else f"{config.epochs} epochs",
        "precision": precision_name(accelerator),
        "memory": "measured" if device.type == "cuda" else "estimated from the sizes of adapter and head",
        "machine": f"{machine}, {platform.machine()}",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "date": date.today().isoformat(),
    }


def comparison_of(config: CompareConfig, groups: list[Group]) -> Comparison:
    first = groups[0]
    if any(group.sample_ids != first.sample_ids for group in groups):
        raise UserError(
            "the validation images changed while heads were compared: start over in another --checkpoint-dir"
        )
    results = [result for group in groups for result in group.results]
    script = "demo/compare_heads.py"
    return Comparison(
        task=first.data.task,
        metric=METRIC_TITLES[METRIC_OF[first.data.task]],
        class_names=first.data.class_names,
        class_colors=[tuple(color) for color in colors_of(first.data).tolist()],
        class_amounts=class_amounts(results[0].per_image),
        sample_ids=first.sample_ids,
        results=results,
        gallery=first.gallery,
        facts=first.facts,
        commands=[command_of(config, script)],
    )


def write_hyperparameters(comparison: Comparison, folder: Path) -> None:
    """For TensorBoard's HPARAMS page: one row per trained head."""
    for result in comparison.results:
        name = f"{result.head}_seed_{result.seed}_images_{result.train_size}"
        with SummaryWriter(folder / name) as writer:
            writer.add_hparams(
                {"head": result.head, "seed": result.seed, "training images": result.train_size},
                {f"final/{metric}": value for metric, value in result.metrics.items()},
                run_name=".",
            )
