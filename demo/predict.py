"""Predicts images with a checkpoint, or a released head: masks, images with the result drawn over, COCO files."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, note, printable, run_job
from evaluation.options import LARGER, PRECISION, InferenceFlags
from flags import add_flags, hyphenate, unset
from training.config import TASK_NAMES

if TYPE_CHECKING:
    import numpy as np

    from prediction.files import Job
    from prediction.predictor import Predictor

KINDS = ("overlays", "masks", "json", "polygons", "coco")
INFERENCE = [field.name for field in fields(InferenceFlags)]


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Predict images with a trained checkpoint, which knows its head, classes and backbone.",
        epilog="Exit code: 0 all is well; 1 some images could not be read; 2 a mistake in the call.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model-path",
        "-m",
        required=True,
        metavar="PATH",
        help="a checkpoint, or a run's folder: its best; or a released head as it is: a file, a Hugging Face folder, "
        "or a hub name",
    )
    model.add_argument("--weights", default=None, help="of the backbone (None = where the run found them)")
    model.add_argument("--backbone", default=None, metavar="NAME", help="of a released head that does not tell it")
    model.add_argument(
        "--task", choices=TASK_NAMES, default=None, help="of a released head (None = what it was released for)"
    )
    model.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=PRECISION)
    images = parser.add_argument_group("images")
    images.add_argument("--image-path", "-i", type=Path, default=None, metavar="FILE", help="one image")
    images.add_argument("--input-dir", "-d", type=Path, default=None, metavar="DIR", help="all images in a folder")
    images.add_argument("--recursive", "-r", action="store_true", help="those in its sub-folders too")
    images.add_argument(
        "--batch",
        "-b",
        type=int,
        nargs="?",
        default=1,
        const=None,
        metavar="N",
        help="images at a time, where they have one size; without a number as many as fit, up to 16",
    )
    images.add_argument("--max-megapixels", type=float, default=None, help=f"{LARGER} (None = the run's)")
    inference = parser.add_argument_group("how images are looked at (None = as the run validated)")
    add_flags(inference, unset(InferenceFlags))
    output = parser.add_argument_group("output")
    output.add_argument("--output", "-o", type=Path, default=None, metavar="FILE", help="of --image-path")
    output.add_argument("--output-dir", "-od", type=Path, default=None, metavar="DIR", help="of --input-dir")
    output.add_argument(
        "--save", default="overlays,masks", metavar="KINDS", help=f"a comma between them: {', '.join(KINDS)}"
    )
    output.add_argument(
        "--coco-ids",
        type=Path,
        default=None,
        metavar="FILE",
        help="COCO annotations whose image ids --save coco takes, by file_name (None = numbers from 1)",
    )
    output.add_argument(
        "--threshold",
        "-t",
        type=float,
        default=None,
        help="least score (None = 0.5 of objects, 0.8 of panoptic segments)",
    )
    args = parser.parse_args(hyphenate(argv))
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Everything that can be told without looking at files; `save` becomes a list in the order of KINDS."""
    if (args.image_path is None) == (args.input_dir is None):
        parser.error("expected either --image-path with --output, or --input-dir with --output-dir")
    if (args.image_path is None) != (args.output is None) or (args.input_dir is None) != (args.output_dir is None):
        parser.error("--output goes with --image-path, and --output-dir with --input-dir")
    if args.recursive and args.input_dir is None:
        parser.error("--recursive goes with --input-dir")
    kinds = [word.strip() for word in args.save.split(",")]
    if not set(kinds) <= set(KINDS):
        parser.error(f"--save {args.save}: expected some of {', '.join(KINDS)}, with commas between them")
    args.save = [kind for kind in KINDS if kind in kinds]
    if args.coco_ids is not None and "coco" not in args.save:
        parser.error("--coco-ids goes with --save coco")
    if args.batch is not None and args.batch < 1:
        parser.error(f"--batch {args.batch}: must be at least 1")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold:g}: must be from 0 to 1")
    if args.max_megapixels is not None and not 0 < args.max_megapixels < math.inf:
        parser.error(f"--max-megapixels {args.max_megapixels:g}: must be more than 0, and finite")
    if args.output_dir is not None and args.output_dir.resolve() == args.input_dir.resolve():
        parser.error(f"--output-dir {args.output_dir}: must be another folder than --input-dir")


def predict(args: argparse.Namespace) -> int:
    from data.opening import DecodeError  # --help should not wait for torch
    from data.rasters import is_raster
    from prediction.files import CocoFile, job_of_image, jobs_of_folder, save_result, with_ids
    from prediction.rasters import predict_raster, save_map

    if args.image_path is not None and not args.image_path.is_file():
        raise UserError(f"--image-path {args.image_path}: there is no such file")
    predictor = build_predictor(args)
    model = predictor.segmenter
    kinds = kinds_of(args.save, model.task)
    if args.image_path is not None:
        job, coco_path = job_of_image(args.image_path, args.output, args.save, kinds)
        jobs = [job]
    else:
        jobs, coco_path = jobs_of_folder(args.input_dir, args.recursive, args.output_dir, kinds)
    if args.coco_ids is not None:
        jobs = with_ids(jobs, args.coco_ids)
    batch_size = predictor.fitting_batch() if args.batch is None else args.batch
    coco = CocoFile(**model.labels, class_names=model.class_names) if "coco" in kinds else None
    failed: list[Job] = []
    whole = []
    for job in jobs:
        if model.task != "semantic" or not is_raster(job.path, predictor.max_pixels):
            whole.append(job)
            continue
        if args.output is not None and job.targets.get("masks") == args.output and args.output.suffix == ".png":
            raise UserError(f"--output {args.output}: the mask of a raster is a GeoTIFF, its name should end in .tif")
        try:
            with explaining_memory(job.path, 1):
                predict_raster(predictor, job)
        except DecodeError as error:
            failed.append(job)
            print(f"error: {printable(str(error))}", file=sys.stderr)
    for batch in batches(predictor, whole, batch_size, failed):
        with explaining_memory(batch[0][0].path, len(batch)):
            results = predictor.predict_batch([image for _, image in batch])
        for (job, image), result in zip(batch, results, strict=True):
            save_result(job, image, result)
            if model.task == "semantic":
                save_map(job, result)
            if coco:
                coco.add(job, result)
    if coco:
        coco.save(coco_path, model.task)
    print(f"{len(jobs) - len(failed)} of {len(jobs)} images predicted: {args.output or args.output_dir}")
    return 1 if failed else 0


@contextmanager
def explaining_memory(path: Path, batch_size: int) -> "Iterator[None]":
    """Turns an out-of-memory error into a UserError that names what helps."""
    from memory import is_out_of_memory

    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with {path} and --batch {batch_size}: pass a smaller --batch, "
            "--windows-at-once or --short-side, or --precision bf16 on a GPU, or run it where there is more memory"
        ) from error


def build_predictor(args: argparse.Namespace) -> "Predictor":
    """Raises UserError where the checkpoint, or the backbone's weights, cannot be had or do not belong together."""
    import torch

    from memory import keep_freed_memory
    from prediction.predictor import Predictor
    from released.model import load_model
    from training.processes import uses_bf16

    is_bf16 = uses_bf16(args.precision)
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    segmenter = load_model(args.model_path, args.weights, args.backbone, args.task, dtype)
    if args.task not in (None, segmenter.task):
        raise UserError(f"--task {args.task}: {segmenter.path} was trained for {segmenter.task}; leave the flag out")
    if is_bf16:  # also a backbone that the checkpoint keeps
        segmenter.backbone.cast_weights(torch.bfloat16)  # the same numbers as autocast alone, in half the memory
    if args.threshold is not None and segmenter.task == "semantic":
        note("--threshold changes nothing: every pixel gets the class of the highest score")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    inference = {name: getattr(args, name) for name in INFERENCE}
    return Predictor(
        segmenter.to(device), args.threshold, max_megapixels=args.max_megapixels, is_bf16=is_bf16, **inference
    )


def kinds_of(asked: list[str], task: str) -> list[str]:
    """With what belongs to it: numbers in a mask mean nothing without their list, a panoptic file needs its PNGs."""
    if task == "semantic":
        if "coco" in asked:
            raise UserError("--save coco: this model gives class maps; COCO files hold objects, leave it out")
        return asked
    if "polygons" in asked:
        raise UserError("--save polygons: this model finds objects; polygons are made of class maps, save coco instead")
    wanted = set(asked) | ({"masks"} if task == "panoptic" and "coco" in asked else set())
    return [kind for kind in KINDS if kind in wanted or (kind == "json" and "masks" in wanted)]


def batches(
    predictor: "Predictor", jobs: "Sequence[Job]", size: int, failed: "list[Job]"
) -> "Iterator[list[tuple[Job, np.ndarray]]]":
    """Up to `size` images in a row of one size; those that cannot be read are reported, and added to `failed`."""
    from tqdm import tqdm

    batch: list[tuple[Job, np.ndarray]] = []
    with tqdm(jobs, unit="image", disable=None) as shown:  # None: on a terminal only
        for job in shown:
            try:
                image = predictor.read(job.path)
            except UserError as error:
                failed.append(job)
                shown.write(f"error: {printable(str(error))}", file=sys.stderr)
                continue
            if batch and (len(batch) == size or batch[0][1].shape != image.shape):
                yield batch
                batch = []
            batch.append((job, image))
        if batch:
            yield batch


def main() -> int:
    args = parse_arguments(sys.argv[1:])
    return run_job(lambda: predict(args))


if __name__ == "__main__":
    sys.exit(main())
