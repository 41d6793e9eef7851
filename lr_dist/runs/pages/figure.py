"""Figures for pages: with the page's colours, which depend on the reader's scheme, and a legend that wraps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from lr_dist.runs.svg import Spot, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib's colours C0 to C9. `style.css` sets --c0 to --c9 in the dark scheme.
PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
# A calm colour for many points, one for what stands out, and two greys; matplotlib's "0.35" and "0.8".
CALM, GOLD, GREY, FAINT = "#4c6a92", "#d95f02", "#595959", "#cccccc"
_VARIABLES = {colour: f"c{place}" for place, colour in enumerate(PALETTE)}
_VARIABLES |= {CALM: "calm", GOLD: "gold", GREY: "grey", FAINT: "faint"}
_GLYPHS = {"o": "●", "s": "■", "D": "◆", "x": "✕", "*": "★"}
_HOLLOW = {"●": "○", "■": "□", "◆": "◇"}


def css_colour(colour: str) -> str:
    """A colour of this module as the page's variable; another one as it is."""
    return f"var(--{_VARIABLES[colour]}, {colour})" if colour in _VARIABLES else colour


def page_figure(figure: Figure, title: str = "", description: str = "", *, spots: Sequence[Spot] = ()) -> str:
    """The figure for a page, in HTML: it can be moved sideways where it is wider, and its legend stands below it.

    Args:
        figure: from `new_figure`; what its artists are called becomes the legend.
        title, description: texts for screen readers.
        spots: what the mouse shows.
    """
    legend = _legend(figure)
    return f'<div class="scroll drawn">{page_svg(figure, title, description, spots=spots)}</div>{legend}'


def page_svg(figure: Figure, title: str = "", description: str = "", *, spots: Sequence[Spot] = ()) -> str:
    """The figure with the page's colours, alone."""
    svg = to_svg(figure, title, description, spots=spots)
    for colour in _VARIABLES:
        svg = svg.replace(f" {colour}", f" {css_colour(colour)}")
    return svg


def _legend(figure: Figure) -> str:
    named: dict[str, tuple[str, str]] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label.replace(r"\$", "$"), _swatch(handle))
    if not named:
        return ""
    entries = (
        f'<li><b style="color: {css_colour(colour)}">{glyph}</b> {escape(label)}</li>'
        for label, (glyph, colour) in named.items()
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _swatch(handle: Any) -> tuple[str, str]:
    """A character that looks as the artist does, and its colour."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D

    if hasattr(handle, "lines"):  # a line with error bars
        handle = handle.lines[0]
    if not isinstance(handle, Line2D):  # an area, or the points of a scatter plot
        colour = to_hex(handle.get_facecolor()[0])
        return ("■" if isinstance(handle, PolyCollection) else "●"), _black(colour)
    colour = _black(to_hex(handle.get_color()))
    if handle.get_linestyle() in ("None", "none", "", " "):
        glyph = _GLYPHS.get(str(handle.get_marker()), "●")
        hollow = str(handle.get_markerfacecolor()) == "none"
        return (_HOLLOW.get(glyph, glyph) if hollow else glyph), colour
    return ("┄" if handle.get_linestyle() == ":" else "━"), colour


def _black(colour: str) -> str:
    return "currentColor" if colour == "#000000" else colour


def rate_spots(axes: Axes, rates: Mapping[str, float], name: str) -> list[Spot]:
    """What the mouse shows on a line of `plot_rates`.

    Args:
        axes: where it was drawn.
        rates: of every group, by depth.
        name: of the line.
    """
    return [
        Spot(axes, x, rate, f"{name}, {group}: {rate:.3g}") for x, (group, rate) in enumerate(rates.items()) if rate
    ]
