"""Colours of figures that a page can set, for a light and a dark scheme."""

from __future__ import annotations

# matplotlib's colours C0 to C9. `style.css` sets --c0 to --c9 in the dark scheme.
PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)


def css_colour(colour: str) -> str:
    """A colour of `PALETTE` as the page's variable."""
    return f"var(--c{PALETTE.index(colour)}, {colour})"


def themed(svg: str) -> str:
    """The figure with the colours of `PALETTE` as the page's variables."""
    for colour in PALETTE:
        svg = svg.replace(f" {colour}", f" {css_colour(colour)}")
    return svg
