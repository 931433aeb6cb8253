"""Predictions as a part of the page: the image below a layer of colours, and a table that is its legend.

Images travel within the page as data, so that no address of the server leads to a file.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image

from prediction.results import Result, SemanticResult

LONG_SIDE_PX = 960
JPEG_QUALITY = 88
SCORES_SHOWN = 5
UNSURE = "mean over the pixels of the entropy of the classes: 0 = sure, 1 = nothing is known"


@dataclass(frozen=True)
class ModelResult:
    """model: its name in the page. unsure: see image_entropy of labelling/uncertainty.py."""

    model: str
    result: Result
    unsure: float


@dataclass
class ClassArea:
    """pixels: of all regions of the class together. scores: of objects and segments, best first."""

    pixels: int = 0
    scores: list[float] = field(default_factory=list)


def image_html(name: str, pixels: np.ndarray, found: Sequence[ModelResult]) -> str:
    """The predictions of all models for an image (H, W, 3) uint8, beside each other."""
    size = display_size(pixels.shape[1], pixels.shape[0])
    shown = data_uri(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), "JPEG")
    figures = "".join(_figure(name, shown, size, one) for one in found)
    return (
        f'<section class="shown"><h3>{escape(name)} <small>{pixels.shape[1]} x {pixels.shape[0]} px</small></h3>'
        f'<div class="beside">{figures}</div></section>'
    )


def error_html(name: str, message: str) -> str:
    return f'<section class="shown"><h3>{escape(name)}</h3><p class="wrong">{escape(message)}</p></section>'


def class_areas(result: Result) -> dict[int, ClassArea]:
    """Of each label that was found, the largest area first."""
    areas: dict[int, ClassArea] = {}
    for label, mask, _ in result.drawn():
        areas.setdefault(label, ClassArea()).pixels += int(np.count_nonzero(mask))
    if not isinstance(result, SemanticResult):
        found = result.objects if hasattr(result, "objects") else result.segments
        for one in sorted(found, key=lambda one: -one.score):
            areas[one.label].scores.append(one.score)
    return dict(sorted(areas.items(), key=lambda item: -item[1].pixels))


def layer(result: Result, size: tuple[int, int]) -> Image.Image:
    """The colours of what was found, transparent elsewhere. size: (width, height) in pixels."""
    colors = result.colors()
    canvas = np.zeros((size[1], size[0], 4), np.uint8)
    for label, mask, _ in reversed(list(result.drawn())):  # what lies on top comes last
        small = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        canvas[small, :3], canvas[small, 3] = colors[label], 255
    return Image.fromarray(canvas, "RGBA")


def display_size(width: int, height: int) -> tuple[int, int]:
    """The size at which the long side is LONG_SIDE_PX at most."""
    factor = min(1, LONG_SIDE_PX / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def data_uri(image: Image.Image, kind: str) -> str:
    """kind: "JPEG" or "PNG"."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _figure(name: str, shown: str, size: tuple[int, int], one: ModelResult) -> str:
    colors = data_uri(layer(one.result, size), "PNG")
    title = escape(one.model)
    return (
        f'<figure><figcaption>{title} <small title="{UNSURE}">unsure {one.unsure:.3f}</small></figcaption>'
        f'<div class="stage"><img src="{shown}" width="{size[0]}" height="{size[1]}" alt="{escape(name)}">'
        f'<img class="layer" src="{colors}" width="{size[0]}" height="{size[1]}" alt="prediction of {title}"></div>'
        f"{_table(one.result)}</figure>"
    )


def _table(result: Result) -> str:
    """Colour, class, area in pixels and as a share of the image, scores."""
    total, colors = result.size_hw[0] * result.size_hw[1], result.colors()
    areas = class_areas(result)
    if not areas:
        return "<p>Nothing was found.</p>"
    has_scores = any(area.scores for area in areas.values())
    rows = ""
    for label, area in areas.items():
        red, green, blue = colors[label].tolist()
        best = ", ".join(f"{score:.2f}" for score in area.scores[:SCORES_SHOWN])
        more = f" and {len(area.scores) - SCORES_SHOWN} more" if len(area.scores) > SCORES_SHOWN else ""
        rows += (
            f'<tr><th scope="row"><span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'
            f"{escape(result.class_names[label])}</th><td>{100 * area.pixels / total:.1f} %</td>"
            f"<td>{area.pixels:,}</td>{f'<td>{best}{more}</td>' if has_scores else ''}</tr>"
        )
    head = '<th scope="col">class</th><th scope="col">area</th><th scope="col">pixels</th>'
    head += '<th scope="col">scores</th>' if has_scores else ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
