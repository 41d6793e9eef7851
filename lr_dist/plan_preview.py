"""The rates of every layer over the steps of each stage, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lr_dist.checks import check_whole
from lr_dist.errors import InvalidPlanError
from lr_dist.extras import require_libraries
from lr_dist.names import group_names, one_of
from lr_dist.rate_plan import Phases, RatePlan, StageRates, part_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEDULES = ("cosine", "linear", "constant")
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


def preview(
    plan: RatePlan, num_layers: int, steps: int, *, schedule: str = "cosine", warmup: float = 0.1
) -> list[StagePreview]:
    """The rates of each stage of a plan, each with its own schedule.

    Args:
        plan: the plan.
        num_layers: of the model.
        steps: steps of the optimizer in each stage.
        schedule: after the warm-up, `cosine` or `linear` to 0, or `constant`.
        warmup: share of the steps with a linearly rising factor.

    Raises:
        InvalidPlanError: an unknown schedule, a warm-up out of range, or phases that are longer than the stage.
        LayerCountError: an invalid number of layers.
    """
    check_whole("steps", steps, 1, error=InvalidPlanError)
    if schedule not in SCHEDULES:
        raise InvalidPlanError(f"schedule must be {one_of(SCHEDULES, schedule)}")
    if not 0 <= warmup < 1:
        raise InvalidPlanError(f"warmup is a share of the steps from 0 to below 1, not {warmup}.")
    factors = [schedule_factor(step, steps, schedule, round(warmup * steps)) for step in range(steps)]
    return [_stage(stage, num_layers, factors) for stage in plan.stages]


def schedule_factor(step: int, steps: int, schedule: str, warmup_steps: int) -> float:
    """The factor of transformers' `get_scheduler` in a step, from 0 to 1."""
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return max(0.0, 1.0 - progress) if schedule == "linear" else 1.0


def plot_plan(stages: Sequence[StagePreview]) -> Figure:
    """A panel for each stage: depth upward, steps to the right, the rate as colour (log scale); white: not trained.

    Raises:
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
        title = f"{which}{stage.text}"
        axes.set_title(title if len(title) < 60 else title[:59] + "…", fontsize=8, parse_math=False)
        for start in stage.starts[1:]:
            axes.axvline(start - 0.5, color="0.4", lw=1, ls=":")
    label = "multiple of the optimizer's rate" if stages[0].relative else "learning rate"
    figure.colorbar(image, ax=list(panels), label=label)
    return figure


def _stage(stage: StageRates, num_layers: int, factors: Sequence[float]) -> StagePreview:
    if not isinstance(stage, Phases):
        rates = stage.rates(num_layers)
        return StagePreview(
            str(stage), {group: [rate * f for f in factors] for group, rate in rates.items()}, (0,), stage.relative
        )
    starts = stage.starts(len(factors))
    tables, begins = stage.parts(num_layers), stage.part_starts(len(factors), num_layers)
    by_step = [tables[part_at(step, begins)] for step in range(len(factors))]
    planned = {
        group: [table[group] * factor for table, factor in zip(by_step, factors, strict=True)]
        for group in group_names(num_layers)
    }
    return StagePreview(str(stage), planned, starts, stage.relative)
