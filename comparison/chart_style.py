"""How charts look: one colour, line and marker per head in all of them, and their files, SVG and PNG.

Text and axes of the SVG have the colour of the text around it, so that they can be read in light and dark pages.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

TEXT = "#010203"
"""Becomes currentColor in the SVG: no chart has this colour otherwise."""

PNG_DPI = 200
WIDTH, HEIGHT = 4.4, 3.2
"""Inches. So narrow that the letters of a chart as wide as a telephone can be read."""

STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": TEXT,
    "text.parse_math": False,  # a class may be called "$"
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": TEXT,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "svg.fonttype": "none",
    "hatch.linewidth": 0.7,
}


class Look(NamedTuple):
    """How a head is drawn: colours of Okabe and Ito, which colour-blind readers tell apart, and no colour alone."""

    color: str
    line: str
    marker: str
    hatch: str


LOOKS = (
    Look("#0072B2", "-", "o", ""),
    Look("#D55E00", "--", "s", "///"),
    Look("#009E73", "-.", "^", "\\\\"),
    Look("#CC79A7", ":", "D", "xx"),
    Look("#56B4E9", (0, (6, 2, 1, 2, 1, 2)), "v", "--"),
    Look("#E69F00", (0, (8, 3)), "P", "++"),
)


@dataclass(frozen=True)
class Chart:
    """name: of its PNG file without the ending. text: says what it shows to those who do not see it."""

    name: str
    title: str
    text: str
    svg: str
    png: bytes


def draw_chart(name: str, title: str, text: str, draw: Callable[[Axes], None], height: float = HEIGHT) -> Chart:
    # The salt makes the names of clip paths: equal ones in equal charts, and others in each chart of a page.
    with (
        matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "svg.hashsalt": name}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of the PNG's font; the page has the reader's
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots())
        figure.draw_without_rendering()  # finds the layout
        figure.set_layout_engine("none")  # which both files have, and which is found once
        vector, raster = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", dpi=PNG_DPI, transparent=True, metadata={"Date": None})
        figure.savefig(raster, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return Chart(name, title, text, _inlined(vector.getvalue(), name), raster.getvalue())


def _inlined(svg: str, name: str) -> str:
    """As a part of a page: without the head of a file, as wide as there is room, ids that no other chart has."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    head = r'<svg class="chart" aria-hidden="true" stroke-linejoin="round" \1>'
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', head, svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href").replace(TEXT, "currentColor")
    return re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg).strip()
