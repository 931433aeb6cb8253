"""comparison.json: the numbers of a comparison, from which verdict and report can be made again; no pixels of images.

Numbers of one image or one class stand in a line, so that the file can be read, and compared with diff.
"""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoint import write_atomically
from comparison.per_image import per_image_from_json
from comparison.result import Comparison, CurvePoint, HeadResult
from errors import UserError

FORMAT = 1
"""Raised when older code cannot read what is written."""


def write_comparison(path: Path, comparison: Comparison, verdict: dict[str, Any] | None = None) -> None:
    """Write all but the gallery; `verdict` for readers of the file, it is not read again."""
    content = {"format": FORMAT, **_values(comparison), "results": [_of_result(run) for run in comparison.results]}
    del content["gallery"]
    if verdict is not None:
        content["verdict"] = verdict
    # A file name that is no UTF-8 comes with half characters, which JSON can say as escapes.
    text = _lines(content) + "\n"
    write_atomically(Path(path), lambda file: file.write(text.encode(errors="backslashreplace")))


def read_comparison(path: Path) -> Comparison:
    """Read what `write_comparison` wrote; the gallery is empty. Raises UserError where the file is none of ours."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a comparison.json") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}), expected a comparison.json that this program wrote") from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise UserError(f"{path}: is no comparison of format {FORMAT}, expected a comparison.json of this version")
    try:
        values = {field.name: content[field.name] for field in fields(Comparison) if field.name != "gallery"}
        colors = [tuple(color) for color in values["class_colors"]]
        results = [_result(run) for run in values["results"]]
        return Comparison(**{**values, "class_colors": colors, "results": results, "gallery": []})
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: {error!r} is missing or of another kind: make the comparison again") from error


def _values(item: Any) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in fields(item)}


def _of_result(run: HeadResult) -> dict[str, Any]:
    return {
        **_values(run),
        "per_image": run.per_image.to_json(),
        "confusion": None if run.confusion is None else run.confusion.tolist(),
        "curve": [[point.step, point.minutes, point.value, point.loss] for point in run.curve],
    }


def _result(content: dict[str, Any]) -> HeadResult:
    values = {field.name: content[field.name] for field in fields(HeadResult)}
    confusion = values["confusion"]
    run = HeadResult(**values)
    return replace(
        run,
        metrics={name: math.nan if value is None else value for name, value in run.metrics.items()},
        confusion=None if confusion is None else np.array(confusion, np.int64),
        per_image=per_image_from_json(content["per_image"]),
        curve=[CurvePoint(*(math.nan if value is None else value for value in point)) for point in content["curve"]],
    )


def _lines(value: Any, indent: str = "") -> str:
    """JSON with an indent, but lists of plain values in one line; nan and infinity, which JSON lacks, are null."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_lines(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list | tuple):
        if any(isinstance(item, list | tuple | dict) for item in value):
            return "[\n" + ",\n".join(inner + _lines(item, inner) for item in value) + f"\n{indent}]"
        return json.dumps([_finite(item) for item in value], ensure_ascii=False)
    return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
