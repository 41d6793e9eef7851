"""Figures as SVG text for self-contained pages."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In points: what the mouse has to hit, and how near two points are when each shows the other's text, too.
_REACH = 6.0
# So near, points are drawn on each other, and only one of them is seen.
_SAME = 2.5
# Texts that a place shows at most.
_MOST = 8


@dataclass(frozen=True)
class Spot:
    """A text that is shown when the mouse is over a place of a figure.

    Attributes:
        axes: where.
        x, y: the place, in data coordinates; with a size, the middle of a box.
        text: of what is there.
        width, height: of a box, in data coordinates; None for a point.
        counted: whether points in one place get a ring and their number; for scatter plots.
    """

    axes: Axes
    x: float
    y: float
    text: str
    width: float | None = None
    height: float | None = None
    counted: bool = False


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display; width and height in inches.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `report`).
    """
    require_libraries("report", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, title: str = "", description: str = "", *, spots: Sequence[Spot] = ()) -> str:
    """The figure as an <svg> element; no date and fixed ids, so that equal results give equal pages.

    It has no background, and its black is the page's text colour, so that a page can be dark.

    Args:
        figure: from `new_figure`.
        title, description: texts for screen readers; with a title, they treat the figure as one image.
        spots: what the mouse shows.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lr-dist", "svg.fonttype": "none"}), warnings.catch_warnings():
        # Texts stay texts, so the browser's fonts are used and not matplotlib's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        for legend in (*figure.legends, *(each for axes in figure.axes if (each := axes.get_legend()) is not None)):
            # Its white box would hide the light text of a dark page.
            legend.get_frame().set_alpha(0)
        # An SVG's units are points.
        figure.set_dpi(72)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("#000000", "currentColor").replace("<svg ", '<svg fill="currentColor" ', 1)
    svg = svg.replace("</svg>", f"{_overlay(figure, spots)}</svg>")
    if not title:
        return svg
    start = svg.index(">") + 1
    texts = f"<title>{escape(title)}</title>" + (f"<desc>{escape(description)}</desc>" if description else "")
    return f'<svg role="img"{svg[4:start]}{texts}{svg[start:]}'


def short(label: str) -> str:
    """A label, shortened and escaped for a legend."""
    # matplotlib hides legend entries that begin with an underscore, and renders text between $ as mathematics.
    label = label.lstrip("_")
    return (label if len(label) <= 48 else label[:47] + "…").replace("$", r"\$")


def _overlay(figure: Figure, spots: Sequence[Spot]) -> str:
    """Invisible shapes over the figure that hold the texts, and rings around points that coincide."""
    height = figure.bbox.height
    boxes, points = [], []
    for spot in spots:
        x, y = spot.axes.transData.transform((spot.x, spot.y))
        if spot.width is None or spot.height is None:
            points.append((spot, float(x), float(height - y)))
            continue
        (left, bottom), (right, top) = spot.axes.transData.transform(
            [
                (spot.x - spot.width / 2, spot.y - spot.height / 2),
                (spot.x + spot.width / 2, spot.y + spot.height / 2),
            ]
        )
        # An axis may be inverted, as that of an image is.
        left, right, bottom, top = min(left, right), max(left, right), min(bottom, top), max(bottom, top)
        place = f'x="{left:.1f}" y="{height - top:.1f}" width="{right - left:.1f}" height="{top - bottom:.1f}"'
        boxes.append(f"<rect {place} {_shown(spot.text)}</rect>")
    near = _Near(points)
    rings, circles, ringed = [], [], set()
    for index, (spot, x, y) in enumerate(points):
        texts = list(dict.fromkeys([spot.text, *(points[i][0].text for i in near.within(index, _REACH))]))
        if len(texts) > _MOST:
            texts = [*texts[:_MOST], f"and {len(texts) - _MOST} more"]
        newline = "\n"
        circles.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_REACH}" {_shown(newline.join(texts))}</circle>')
        same = [index, *(i for i in near.within(index, _SAME) if points[i][0].counted)]
        if spot.counted and len(same) > 1 and index not in ringed:
            ringed.update(same)
            rings.append(
                f'<g class="ring" pointer-events="none"><circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" '
                f'stroke="currentColor"/><text x="{x + 10:.1f}" y="{y + 10:.1f}" font-size="8">{len(same)}</text></g>'
            )
    return "".join([*rings, *boxes, *circles])


def _shown(text: str) -> str:
    return f'class="spot" fill="none" pointer-events="all"><title>{escape(text)}</title>'


class _Near:
    """Which points are near each other, without a look at every pair: a page can have thousands."""

    def __init__(self, points: Sequence[tuple[Spot, float, float]]) -> None:
        self._points = points
        self._cells: dict[tuple[int, int], list[int]] = {}
        for index, (_, x, y) in enumerate(points):
            self._cells.setdefault(self._cell(x, y), []).append(index)

    @staticmethod
    def _cell(x: float, y: float) -> tuple[int, int]:
        return int(x // _REACH), int(y // _REACH)

    def within(self, index: int, distance: float) -> list[int]:
        """The other points of the same axes within a distance of at most `_REACH`, the nearest first."""
        spot, x, y = self._points[index]
        column, row = self._cell(x, y)
        found = []
        for cell in ((column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            for other in self._cells.get(cell, ()):
                there, a, b = self._points[other]
                apart = ((a - x) ** 2 + (b - y) ** 2) ** 0.5
                if other != index and there.axes is spot.axes and apart <= distance:
                    found.append((apart, other))
        return [other for _, other in sorted(found)]
