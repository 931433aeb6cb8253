"""Images to choose from, and their order."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.sources.pairs import find_files
from errors import UserError
from labelling.uncertainty import Measure
from prediction.predictor import Predictor


@dataclass(frozen=True)
class PoolImage:
    """name: with the sub-folders that tell images apart, "/" between them."""

    path: Path
    name: str


@dataclass(frozen=True)
class Ranked:
    """An image, and how unsure the models are of it, from 0 to 1."""

    image: PoolImage
    uncertainty: float


def find_pool(patterns: Sequence[str], labelled: Sequence[str]) -> tuple[list[PoolImage], int]:
    """The images, and how many were skipped because an image of `labelled` has their file name.

    patterns, labelled: as find_files takes them. Raises UserError where a pattern matches nothing, or no image is left.
    """
    files = find_files(patterns, "--image-paths")
    known = {path.name for path in find_files(labelled, "--labelled")} if labelled else set()
    left = [path for path in files if path.name not in known]
    if not left:
        raise UserError("--labelled names all images of --image-paths: no image is left to label")
    root = Path(os.path.commonpath([path.parent for path in files]))
    return [PoolImage(path, path.relative_to(root).as_posix()) for path in left], len(files) - len(left)


def uncertainties(
    predictors: Sequence[Predictor], images: Iterable[PoolImage], measure: Measure, failed: dict[str, str]
) -> Iterator[Ranked]:
    """Ask the models about each image; those that cannot be read go into `failed`, with the reason."""
    for image in images:
        try:
            pixels = predictors[0].read(image.path)
        except UserError as error:
            failed[image.name] = str(error)
            continue
        yield Ranked(image, measure(predictors, pixels))


def least_sure_first(ranked: Iterable[Ranked]) -> list[Ranked]:
    """Equal ones by name, so that the order is the same on every call."""
    return sorted(ranked, key=lambda one: (-one.uncertainty, one.image.name))
