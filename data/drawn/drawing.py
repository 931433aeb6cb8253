"""Draws one image of the demo set, with its mask: patterned things, occluding one another, on a soft background.

What a thing is shows in its outline and in its surface. Its colour is only a hint: each class leans towards a hue, but
the hues of neighbours overlap, and the background takes any. Lengths are in pixels of a 128-pixel image and grow with
the image.

Everything is computed on a grid SUPERSAMPLE times finer and then averaged, so no drawing library decides what a pixel
looks like. Only `Generator.random` is drawn from: of numpy's streams it is the one least likely ever to change.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from structures import IGNORE_INDEX

Grid = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Covered = NDArray[np.bool_]

SUPERSAMPLE = 3  # odd, so that the middle sample lies at the pixel's centre and can decide the mask
REFERENCE_SIZE_PX = 128
HUE_SPREAD = 0.14  # in turns, either side of the hue of a class; the classes are 0.25 apart
REACH = 1.3  # no outline goes further than this many radii from its centre


@dataclass(frozen=True)
class Kind:
    """A foreground class: outline(u, v), in radii, says what is inside; surface(x, y), in pixels, where it is light.

    hue: in turns of the colour wheel, where its colours are centred.
    """

    name: str
    hue: float
    outline: Callable[[Grid, Grid], NDArray[np.bool_]]
    surface: Callable[[Grid, Grid], NDArray[np.bool_]]


def _disc(u: Grid, v: Grid) -> NDArray[np.bool_]:
    return np.hypot(u, v) < 1.0


def _box(u: Grid, v: Grid) -> NDArray[np.bool_]:
    return (np.abs(u) < 1.0) & (np.abs(v) < 0.75)


def _triangle(u: Grid, v: Grid) -> NDArray[np.bool_]:
    slant = math.sqrt(0.75)
    return np.maximum(-v, np.maximum(0.5 * v + slant * u, 0.5 * v - slant * u)) < 0.64


def _flower(u: Grid, v: Grid) -> NDArray[np.bool_]:
    return np.hypot(u, v) < 0.9 + 0.25 * np.cos(5 * np.arctan2(v, u))


def _rings(x: Grid, y: Grid) -> NDArray[np.bool_]:
    return np.hypot(x, y) % 7.0 < 3.5


def _stripes(x: Grid, y: Grid) -> NDArray[np.bool_]:
    return x % 7.0 < 3.5


def _checks(x: Grid, y: Grid) -> NDArray[np.bool_]:
    return (x % 10.0 < 5.0) == (y % 10.0 < 5.0)


def _dots(x: Grid, y: Grid) -> NDArray[np.bool_]:
    return np.hypot(x % 7.0 - 3.5, y % 7.0 - 3.5) < 2.1


KINDS = (
    Kind("ringed disc", 0.0, _disc, _rings),
    Kind("striped box", 0.25, _box, _stripes),
    Kind("checked triangle", 0.5, _triangle, _checks),
    Kind("dotted flower", 0.75, _flower, _dots),
)
"""Class id = position + 1; id 0 is the background."""


@dataclass(frozen=True)
class Thing:
    """One object: centre and radius in pixels, angle in radians; its border may be left unlabelled."""

    class_id: int
    x: float
    y: float
    radius: float
    angle: float
    border_ignored: bool


def draw_image(rng: np.random.Generator, size_px: int) -> tuple[Pixels, Pixels]:
    """Returns an image (S, S, 3) RGB and its mask (S, S) of class ids, with IGNORE_INDEX along some borders."""
    image, things = draw_things(rng, size_px)
    mask = np.zeros((size_px, size_px), np.uint8)
    for thing, covered in things:
        mask[covered] = thing.class_id
        if thing.border_ignored:
            mask[_border(covered)] = IGNORE_INDEX
    return image, mask


def draw_things(rng: np.random.Generator, size_px: int) -> tuple[Pixels, list[tuple[Thing, Covered]]]:
    """Returns an image (S, S, 3) RGB and its things, back to front, each with the pixels (S, S) that it covers, also
    where another one before it hides them."""
    unit = REFERENCE_SIZE_PX / (size_px * SUPERSAMPLE)  # reference pixels a sample
    canvas = _background(rng, size_px).repeat(SUPERSAMPLE, axis=0).repeat(SUPERSAMPLE, axis=1)
    things = [(thing, _paint(rng, canvas, thing, unit)) for thing in _arrange(rng)]
    image = canvas.reshape(size_px, SUPERSAMPLE, size_px, SUPERSAMPLE, 3).mean(axis=(1, 3))
    image += 0.03 * (rng.random((size_px, size_px, 1)) - 0.5)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8), things


def outline_polygon(thing: Thing, size_px: int, corners: int = 90) -> list[float]:
    """The thing's outline x y x y ..., in pixels of an image of that size; it may reach beyond the image.

    Every ray from a thing's centre crosses its outline once, which is found by halving.
    """
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    rays = np.cos(angles), np.sin(angles)
    inner, outer = np.zeros(corners), np.full(corners, REACH)
    for _ in range(20):
        middle = (inner + outer) / 2
        is_inside = KINDS[thing.class_id - 1].outline(middle * rays[0], middle * rays[1])
        inner, outer = np.where(is_inside, middle, inner), np.where(is_inside, outer, middle)
    u, v = (thing.radius * inner * ray for ray in rays)
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    xy = np.stack([thing.x + cos * u - sin * v, thing.y + sin * u + cos * v], axis=1)
    return (xy * size_px / REFERENCE_SIZE_PX).round(2).ravel().tolist()


def _arrange(rng: np.random.Generator) -> list[Thing]:
    """Two to five things, back to front; they may cover one another in part, but never nearly whole."""
    things: list[Thing] = []
    wanted = 2 + int(4 * rng.random())
    for _ in range(50):
        radius = _between(rng, 15, 30)
        x, y = (_between(rng, 0.7 * radius, REFERENCE_SIZE_PX - 0.7 * radius) for _ in "xy")
        if all(math.hypot(x - t.x, y - t.y) > 0.75 * (radius + t.radius) for t in things):
            class_id = 1 + int(len(KINDS) * rng.random())
            things.append(Thing(class_id, x, y, radius, _between(rng, 0, 2 * math.pi), rng.random() < 0.4))
        if len(things) == wanted:
            break
    return things


def _paint(rng: np.random.Generator, canvas: Grid, thing: Thing, unit: float) -> Covered:
    """Draws a thing and its shadow into canvas (fine, fine, 3); returns the pixels (S, S) that it covers."""
    kind = KINDS[thing.class_id - 1]
    y, x = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    window = np.s_[_window(thing.y, thing, unit), _window(thing.x, thing, unit)]
    dx, dy = (x[:, window[1]] + 0.5) * unit - thing.x, (y[window[0]] + 0.5) * unit - thing.y
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)

    def inside(shift: float = 0.0) -> NDArray[np.bool_]:
        along, across = cos * (dx - shift) + sin * (dy - shift), cos * (dy - shift) - sin * (dx - shift)
        return kind.outline(along / thing.radius, across / thing.radius)

    canvas[window][inside(shift=2.0)] *= 0.75
    shape = inside()
    dark, light = _two_tones(rng, kind.hue + _between(rng, -HUE_SPREAD, HUE_SPREAD))
    colours = np.where(kind.surface(cos * dx + sin * dy, cos * dy - sin * dx)[..., None], light, dark)
    shaded = colours * (1 - 0.12 * (dx + dy) / thing.radius)[..., None]  # lit from the upper left
    canvas[window][shape] = shaded[shape]

    covered = np.zeros(canvas.shape[:2], bool)
    covered[window] = shape
    return covered[SUPERSAMPLE // 2 :: SUPERSAMPLE, SUPERSAMPLE // 2 :: SUPERSAMPLE]


def _window(centre: float, thing: Thing, unit: float) -> slice:
    """The samples, along one axis, that a thing and its shadow can touch (a slice may end beyond the canvas)."""
    reach = REACH * thing.radius + 3.0
    return slice(max(0, int((centre - reach) / unit)), int((centre + reach) / unit) + 1)


def _border(covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that have a neighbour on the other side of the outline: two pixels wide, one either side."""
    border = np.zeros_like(covered)
    down, right = covered[1:] != covered[:-1], covered[:, 1:] != covered[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    return border


def _background(rng: np.random.Generator, size_px: int) -> Grid:
    """A soft surface (S, S, 3) that wanders between a dark and a light tone: broad waves and a finer weave."""
    y, x = np.ogrid[:size_px, :size_px]
    relief = np.zeros((size_px, size_px))
    for strength, shortest, longest in ((1.0, 110, 220), (0.8, 70, 140), (0.5, 40, 80), (0.15, 12, 20)):
        wavelength, angle, phase = _between(rng, shortest, longest), *(_between(rng, 0, 2 * math.pi) for _ in "ap")
        turns = 2 * math.pi * REFERENCE_SIZE_PX / (size_px * wavelength)
        relief += strength * np.cos(turns * (math.cos(angle) * x + math.sin(angle) * y) + phase)
    dark, light = _two_tones(rng, rng.random())
    return dark + (light - dark) * (0.5 + 0.35 * relief).clip(0, 1)[..., None]


def _two_tones(rng: np.random.Generator, hue: float) -> tuple[Grid, Grid]:
    """A dark and a light colour (3,) of hues beside `hue`, which may be any number: whole turns do not count."""
    light_hue = hue + _between(rng, -0.1, 0.1)
    dark = colorsys.hsv_to_rgb(hue % 1, _between(rng, 0.4, 0.9), _between(rng, 0.2, 0.45))
    light = colorsys.hsv_to_rgb(light_hue % 1, _between(rng, 0.1, 0.6), _between(rng, 0.75, 1.0))
    return np.array(dark), np.array(light)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
