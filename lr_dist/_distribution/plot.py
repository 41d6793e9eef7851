"""A figure of learning rates over depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_rates(rates: Mapping[str, float], ax: Axes | None, label: str, relative: bool) -> Axes:
    """Draw one line of rates (log scale) over the groups; a rate of 0 is drawn as a gap.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `report`).
    """
    require_libraries("report", "matplotlib")
    from matplotlib.figure import Figure

    if ax is None:
        ax = Figure(figsize=(7, 4), layout="constrained").subplots()
    names = list(rates)
    ax.plot(range(len(names)), [rate or float("nan") for rate in rates.values()], marker="o", ms=4, label=label)
    ax.set_yscale("log")
    ax.set_xticks(range(len(names)), [name.removeprefix("layers.") for name in names], fontsize=8)
    ax.set_xlabel("depth (layer)")
    ax.set_ylabel("multiple of the optimizer's rate" if relative else "learning rate")
    ax.grid(True, which="major", alpha=0.3)
    return ax
