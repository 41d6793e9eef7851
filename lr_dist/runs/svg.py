"""Figures as SVG text for self-contained pages."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display; width and height in inches.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `report`).
    """
    require_libraries("report", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure, title: str = "", description: str = "", *, hover: Mapping[str, str] | None = None) -> str:
    """The figure as an <svg> element; no date and fixed ids, so that equal results give equal pages.

    It has no background, and its black is the page's text colour, so that a page can be dark.

    Args:
        figure: from `new_figure`.
        title, description: texts for screen readers; with a title, they treat the figure as one image.
        hover: gid of an artist -> text that is shown when the mouse is over it.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "lr-dist", "svg.fonttype": "none"}), warnings.catch_warnings():
        # Texts stay texts, so the browser's fonts are used and not matplotlib's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace("#000000", "currentColor").replace("<svg ", '<svg fill="currentColor" ', 1)
    for gid, text in (hover or {}).items():
        svg = svg.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{escape(text)}</title>', 1)
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
