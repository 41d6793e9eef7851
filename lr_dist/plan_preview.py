"""What `RatePlan.preview` returns, the planned rates of a stage, and their figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lr_dist._distribution.sanity import readable
from lr_dist.errors import InvalidPlanError
from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rates below this share of the highest are drawn as not trained: the ends of schedules would use up the colours.
_LEAST = 1e-4


@dataclass(frozen=True)
class StagePreview:
    """The planned rates of one stage.

    Attributes:
        text: the stage's part of the plan.
        rates: group -> its rate in each step of the optimizer; 0 where it is frozen or waits.
        starts: the step in which each phase begins.
        relative: whether the rates are multiples of the optimizer's own.
    """

    text: str
    rates: dict[str, list[float]]
    starts: tuple[int, ...]
    relative: bool


def plot_plan(stages: Sequence[StagePreview]) -> Figure:
    """A panel for each stage: depth upward, steps to the right, the rate as colour (log scale); white: not trained.

    Args:
        stages: of one plan.

    Raises:
        InvalidPlanError: every rate is 0.
        MissingExtraError: matplotlib is not installed (extra `report`).
    """
    require_libraries("report", "matplotlib")
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(stages) + 1.2, 4.2), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False, sharey=True)[0]
    highest = max(max(each) for stage in stages for each in stage.rates.values())
    positive = [rate for stage in stages for each in stage.rates.values() for rate in each if rate > highest * _LEAST]
    if not positive:
        raise InvalidPlanError("The plan trains nothing: every rate is 0.")
    norm = LogNorm(min(positive), max(positive) * (1 + 1e-9) if min(positive) < max(positive) else 10 * max(positive))
    for number, (axes, stage) in enumerate(zip(panels, stages, strict=True), 1):
        values = [[rate if rate > highest * _LEAST else math.nan for rate in each] for each in stage.rates.values()]
        image = axes.imshow(values, aspect="auto", origin="lower", cmap="viridis", norm=norm, interpolation="nearest")
        axes.set_yticks(range(len(stage.rates)), list(stage.rates), fontsize=8)
        axes.set_xlabel("step")
        which = "" if len(stages) == 1 else f"stage {number}{' on' if number == len(stages) else ''}: "
        title = f"{which}{readable(stage.text)}"
        axes.set_title(title if len(title) < 60 else title[:59] + "…", fontsize=8, parse_math=False)
        for start in stage.starts[1:]:
            axes.axvline(start - 0.5, color="0.4", lw=1, ls=":")
    label = "multiple of the optimizer's rate" if stages[0].relative else "learning rate"
    figure.colorbar(image, ax=list(panels), label=label)
    return figure
