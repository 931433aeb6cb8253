"""Evaluates a checkpoint or a released head on a data set: all metrics, per class and per image, the worst images."""

import json
import math
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, note, printable, run_job
from training.evaluate.config import EvaluateConfig, parse_evaluate_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from data.rasters import Raster
    from evaluation.evaluate import Result
    from evaluation.rasters import Block
    from prediction.files import Job
    from prediction.results import Result as Prediction
    from segmenter import Segmenter
    from training.evaluate.evaluation import BlocksOfRaster, Evaluated, Evaluation

WORST_FILE = "worst.png"
WORST_SHOWN = 5
"""Images that are named at the end."""


def evaluate(config: EvaluateConfig) -> int:
    from training.evaluate.evaluation import Evaluation  # after parsing: --help should not wait for torch

    with ExitStack() as held:
        return evaluate_in(config, Evaluation(config, held))


def evaluate_in(config: EvaluateConfig, evaluation: "Evaluation") -> int:
    from tqdm import tqdm

    from memory import is_out_of_memory

    jobs = prediction_jobs(config, evaluation)
    done = evaluation.resume(lambda name: all(path.exists() for path in jobs[name].targets.values()))
    is_first = evaluation.accelerator.is_main_process
    if done and is_first:
        note(f"{done} images are in {evaluation.results.common} already")
    try:
        found = evaluation.run(raster_saver(jobs, evaluation.segmenter))
        total = len(evaluation.share)
        images = tqdm(found, total=done + total, initial=done, unit="image", disable=None if is_first else True)
        for evaluated in images:
            save_prediction(jobs[evaluated.sample_id], evaluated, evaluation.segmenter)
        evaluation.put_together()
        return report(config, evaluation) if is_first else 0
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "out of memory: pass a smaller --windows-at-once, --crop or --short-side, or --precision bf16 on a GPU. "
            "What was evaluated until now is kept, the same call resumes"
        ) from error


def prediction_jobs(config: EvaluateConfig, evaluation: "Evaluation") -> "dict[str, Job]":
    """Of each image: where its prediction goes, nowhere without --save-predictions."""
    from prediction.files import ENDINGS, RECORD_FILE, Job, recorded_names
    from prediction.rasters import MASK_ENDING

    names = evaluation.sample_ids
    if config.save_predictions is None:
        return {name: Job(None, Path(name), name, "", {}) for name in names}
    folder = Path(config.save_predictions)
    bases = recorded_names(folder / RECORD_FILE, names)
    targets = {
        name: {kind: folder / kind / f"{bases[name]}{ENDINGS[kind]}" for kind in ("masks", "json")} for name in names
    }
    for name in evaluation.rasters:
        targets[name]["masks"] = targets[name]["masks"].with_suffix(MASK_ENDING)
    return {name: Job(None, Path(name), name, "", targets[name]) for name in names}


def save_prediction(job: "Job", evaluated: "Evaluated", segmenter: "Segmenter") -> None:
    import numpy as np

    from prediction.files import save_result

    if job.targets and not evaluated.is_raster:
        save_result(job, np.empty((0, 0, 3), np.uint8), PREDICTIONS[segmenter.task](evaluated, segmenter))


def raster_saver(jobs: "dict[str, Job]", segmenter: "Segmenter") -> "BlocksOfRaster":
    """Saves the prediction of a raster while it is evaluated."""
    from data.labels import LabelRule
    from prediction.rasters import save_raster

    def save(name: str, raster: "Raster", blocks: "Iterator[Block]") -> "Iterator[Block]":
        if not jobs[name].targets:
            return blocks
        return save_raster(jobs[name], raster, blocks, segmenter.class_names, LabelRule.from_dict(segmenter.labels))

    return save


def class_map(evaluated: "Evaluated", segmenter: "Segmenter") -> "Prediction":
    from data.labels import LabelRule
    from prediction.results import SemanticResult

    classes = evaluated.evaluator.samples[-1].predicted.numpy()
    return SemanticResult(classes, segmenter.class_names, LabelRule.from_dict(segmenter.labels))


def objects(evaluated: "Evaluated", segmenter: "Segmenter") -> "Prediction":
    from prediction.predictor import THRESHOLDS
    from prediction.results import FoundObject, InstanceResult

    names, ids = segmenter.class_names, segmenter.labels["category_ids"]
    size_hw, _ = evaluated.evaluator.truth_of(evaluated.sample_id)
    found = [
        FoundObject(o.label, names[o.label], ids[o.label], o.score, o.rle)
        for o in evaluated.evaluator.found[-1].objects
        if o.score >= THRESHOLDS["instance"]
    ]
    return InstanceResult(found, names, size_hw)


def segments(evaluated: "Evaluated", segmenter: "Segmenter") -> "Prediction":
    from prediction.results import FoundSegment, PanopticResult

    names, ids = segmenter.class_names, segmenter.labels["category_ids"]
    is_thing = segmenter.labels["is_thing"]
    segment_map, found = evaluated.evaluator.maps[-1]
    return PanopticResult(
        segment_map.numpy(),
        [FoundSegment(s.number, s.label, names[s.label], ids[s.label], is_thing[s.label], s.score) for s in found],
        names,
    )


PREDICTIONS = {"semantic": class_map, "instance": objects, "panoptic": segments}
"""Of each task: what its evaluator has just seen, as a result of prediction."""


def report(config: EvaluateConfig, evaluation: "Evaluation") -> int:
    """Prints and writes what was found. Returns the exit code."""
    from checkpoint import write_atomically, write_json

    for text in evaluation.skipped:
        print(f"error: {printable(text)}", file=sys.stderr)
    images = evaluation.worst_first()
    if not images:
        raise UserError("none of the images could be read")
    result = evaluation.result()
    print(printable(tables(result, images, evaluation.metric)))
    if config.json:
        content = {
            "model": evaluation.segmenter.path,
            "images": len(images),
            "skipped": evaluation.skipped,
            "inference": evaluation.as_dict(),
            "metrics": result.values,
            "per_class": result.by_class,
            "class_names": evaluation.segmenter.class_names,
            "confusion": result.confusion,
            "per_image": [{"image": name, **values} for name, values in images],
        }
        write_json(Path(config.json), known_numbers(content))
    whole = [name for name, _ in images if name not in evaluation.rasters]
    sheet = evaluation.sheet(whole[: config.worst]) if config.worst and whole else None
    if sheet:
        path = Path(config.output_dir) / WORST_FILE
        write_atomically(path, lambda file: sheet.save(file, format="PNG"))
        print(f"worst images: {path}")
    return 1 if evaluation.skipped else 0


def tables(result: "Result", images: list[tuple[str, dict[str, float]]], metric: str) -> str:
    """All metrics, those of each class, and the worst images."""
    lines = [f"{len(images)} images", *rows_of(result.values)]
    for name, values in result.by_class.items():
        lines += [f"{name} per class", *rows_of(values)]
    return "\n".join([*lines, f"lowest {metric}", *rows_of({name: v[metric] for name, v in images[:WORST_SHOWN]})])


def rows_of(values: dict[str, float]) -> list[str]:
    width = max(map(len, values))
    return [f"  {name:<{width}}  {'-' if math.isnan(value) else f'{value:.4f}'}" for name, value in values.items()]


def known_numbers(content: Any) -> Any:
    """The same with null in the place of what is not a number, which JSON does not have."""
    return json.loads(json.dumps(content), parse_constant=lambda word: None)


def main() -> int:
    config = parse_evaluate_arguments(sys.argv[1:])
    return run_job(lambda: evaluate(config))


if __name__ == "__main__":
    sys.exit(main())
