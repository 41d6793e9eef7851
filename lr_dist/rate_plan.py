"""Rate plans: the learning-rate distribution of each stage of a task sequence, and of each phase of a stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lr_dist._distribution.schedule import SCHEDULES, schedule_factor
from lr_dist.checks import check_whole, is_number, is_whole
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidPlanError, LRDistError, shown
from lr_dist.names import group_names, one_of
from lr_dist.plan_preview import StagePreview, plot_plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES, PHASES, DURATION, GRADUAL = " | ", " > ", " @ ", "gradual"


@dataclass(frozen=True)
class Phase:
    """A part of a stage's steps with one distribution.

    Attributes:
        distribution: its rates.
        share: its length as a share of the stage's steps, between 0 and 1; or
        steps: its length in steps of the optimizer. The last phase of a stage has neither: it lasts until the end.
        gradual: whether the layers start one after the other (ULMFiT, Howard & Ruder 2018, arXiv 1801.06146, section
            3.3): the phase is cut into as many equal parts as it has groups with a rate above 0; in the first part the
            highest of them trains alone, usually the head, and in each further part one more.

    Raises:
        InvalidPlanError: both, or a length out of range.
    """

    distribution: LRDistribution
    share: float | None = None
    steps: int | None = None
    gradual: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.gradual, bool):
            raise InvalidPlanError(f"A phase's gradual is true or false, not {shown(self.gradual)}.")
        if not isinstance(self.distribution, LRDistribution):
            raise InvalidPlanError(f"A phase has a distribution, not {shown(self.distribution)}.")
        if self.share is not None and self.steps is not None:
            raise InvalidPlanError(f"A phase has a share or steps, not both: share={self.share}, steps={self.steps}.")
        if self.share is not None and not (is_number(self.share) and 0 < self.share < 1):
            raise InvalidPlanError(f"A phase's share must lie between 0 and 1, not {shown(self.share)}; write 20%.")
        if self.steps is not None and not is_whole(self.steps, 1):
            raise InvalidPlanError(f"A phase lasts for a whole number of steps from 1, not {shown(self.steps)}.")

    @property
    def lasts(self) -> bool:
        """Whether it has a length of its own."""
        return self.share is not None or self.steps is not None

    def parts(self, num_layers: int) -> tuple[dict[str, float], ...]:
        """Group -> rate in each part of the phase, which are equally long; one part unless it is gradual."""
        rates = self.distribution.rates(num_layers)
        groups = [group for group, rate in rates.items() if rate]
        if not self.gradual or len(groups) < 2:
            return (rates,)
        return tuple(
            {group: rate if group in groups[-count:] else 0.0 for group, rate in rates.items()}
            for count in range(1, len(groups) + 1)
        )

    def absolute(self, base_lr: float) -> Phase:
        """Relative rates as rates, for an optimizer with the rate `base_lr`; absolute ones as they are."""
        return replace(self, distribution=self.distribution.absolute(base_lr))

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        length = {"share": self.share, "steps": self.steps, "gradual": self.gradual or None}
        return {
            "distribution": self.distribution.to_dict(),
            **{key: value for key, value in length.items() if value is not None},
        }

    def __str__(self) -> str:
        words = [GRADUAL] if self.gradual else []
        if self.share is not None:
            words.append(f"{float(f'{100 * self.share:.12g}'):g}%")
        elif self.steps is not None:
            words.append(f"{self.steps} steps")
        return DURATION.join([str(self.distribution), " ".join(words)]) if words else str(self.distribution)


@dataclass(frozen=True)
class Phases:
    """The rates of one stage in two phases or more, one after the other; or in one gradual phase.

    In text, `A @ 20% > B` is A for the first fifth of the stage's steps and then B; `A @ 100 steps > B` counts steps of
    the optimizer; `A @ gradual` starts the layers one after the other, over the whole stage, and `A @ gradual 50% > A`
    over its first half. A schedule (warm-up, cosine) goes on over all phases and multiplies their rates.

    Attributes:
        phases: in their order; all but the last have a length.

    Raises:
        InvalidPlanError: fewer than two phases and none gradual, a length that is missing or not allowed, shares of 1
            or more together, or absolute and relative distributions.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        phases = self.phases
        if not isinstance(phases, tuple) or not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise InvalidPlanError(f"Phases is a tuple of two or more Phase, not {shown(phases)}.")
        if len(phases) == 1 and not phases[0].gradual:
            raise InvalidPlanError(
                f"One phase alone, {shown(str(phases[0]))}, is no change over time: give its distribution, or a second "
                "phase."
            )
        for phase in phases[:-1]:
            if not phase.lasts:
                raise InvalidPlanError(
                    f"The phase {shown(str(phase))} has no length, and another one follows it. Write {phase} @ 20%, or "
                    f"{phase} @ 100 steps."
                )
        if phases[-1].lasts:
            raise InvalidPlanError(
                "The last phase lasts until the end of the stage; leave out the length in "
                f"{shown(str(phases[-1]))}, or write what comes then: {phases[-1]} > B."
            )
        shares = sum(phase.share or 0 for phase in phases)
        if shares >= 1:
            raise InvalidPlanError(
                f"The phases {shown(str(self))} take {100 * shares:g}% of the steps, which leaves none for the last."
            )
        if len({phase.distribution.relative for phase in phases}) > 1:
            raise InvalidPlanError(
                f"The phases {shown(str(self))} mix rates and multiples of the optimizer's rate (relative=true); write "
                "all in the same way."
            )

    @property
    def peak(self) -> LRDistribution:
        """The highest rate of each depth over the phases: the optimizer's rates, which `factors` multiplies.

        A depth with the rate 0 in it is frozen in every phase.
        """
        return LRDistribution.maximum([phase.distribution for phase in self.phases])

    @property
    def relative(self) -> bool:
        """Whether the rates are multiples of the optimizer's own."""
        return self.phases[0].distribution.relative

    def absolute(self, base_lr: float) -> Phases:
        """Relative rates as rates, for an optimizer with the rate `base_lr`; absolute ones as they are."""
        return Phases(tuple(phase.absolute(base_lr) for phase in self.phases))

    def scale(self, factor: float) -> Phases:
        """Every rate times `factor` (> 0)."""
        return Phases(tuple(replace(phase, distribution=phase.distribution.scale(factor)) for phase in self.phases))

    def starts(self, total_steps: int | None) -> tuple[int, ...]:
        """The step of the optimizer, from 0, in which each phase begins.

        Args:
            total_steps: length of the stage; None if it is not known.

        Raises:
            InvalidPlanError: shares of a stage of unknown length, or phases that are longer than it.
        """
        if total_steps is None and (self.phases[-1].gradual or any(phase.share for phase in self.phases)):
            raise InvalidPlanError(
                f"The number of steps of this stage is not known, so the shares of {shown(str(self))} have no length. "
                "Set max_steps or max_epochs, or give the phases a number of steps: @ 100 steps."
            )
        starts = [0]
        share = 0.0
        fixed = 0
        for phase in self.phases[:-1]:
            share += phase.share or 0
            fixed += phase.steps or 0
            starts.append(fixed + round(share * (total_steps or 0)))
        if total_steps is not None and starts[-1] >= total_steps:
            raise InvalidPlanError(
                f"The last phase of {shown(str(self))} would begin in step {starts[-1]}, and the stage has "
                f"{total_steps} steps. Train longer, or shorten the phases."
            )
        return tuple(starts)

    def parts(self, num_layers: int) -> tuple[dict[str, float], ...]:
        """Group -> rate in each part of the stage: one part a phase, and several of a gradual one."""
        return tuple(part for phase in self.phases for part in phase.parts(num_layers))

    def part_starts(self, total_steps: int | None, num_layers: int) -> tuple[int, ...]:
        """The step of the optimizer, from 0, in which each of `parts` begins; a part of 0 steps is passed over.

        Raises:
            InvalidPlanError: as `starts`.
        """
        starts = self.starts(total_steps)
        ends = [*starts[1:], total_steps or 0]  # the last is used by a gradual phase alone, whose stage has a length
        begins: list[int] = []
        for phase, start, end in zip(self.phases, starts, ends, strict=True):
            count = len(phase.parts(num_layers))
            begins += [start + round((end - start) * part / count) if part else start for part in range(count)]
        return tuple(begins)

    def factors(self, num_layers: int) -> tuple[dict[str, float], ...]:
        """Group -> its rate as a share of `peak` in each of `parts`; 0 where it waits."""
        peak = self.peak.rates(num_layers)
        return tuple(
            {group: rate / peak[group] if rate else 0.0 for group, rate in part.items()}
            for part in self.parts(num_layers)
        )

    @property
    def waits(self) -> bool:
        """Whether a layer may wait in one part that trains in another."""
        return any(phase.gradual or phase.distribution.can_freeze for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"phases": [phase.to_dict() for phase in self.phases]}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content."""
        return _sha256(self.to_dict())

    def __str__(self) -> str:
        return PHASES.join(map(str, self.phases))


StageRates = LRDistribution | Phases


def part_at(step: int, starts: Sequence[int]) -> int:
    """The index of the part of a stage to which a step belongs.

    Args:
        step: counted from 0.
        starts: what `Phases.part_starts` returned.
    """
    return max(index for index, start in enumerate(starts) if start <= step)


def first_rates(rates: StageRates) -> LRDistribution:
    """The distribution itself, or that of the first phase."""
    return rates.phases[0].distribution if isinstance(rates, Phases) else rates


def highest(rates: StageRates) -> LRDistribution:
    """The distribution itself, or the highest rates of phases."""
    return rates.peak if isinstance(rates, Phases) else rates


@dataclass(frozen=True)
class RatePlan:
    """The rates of each stage; those of the last one hold in all later stages.

    In text, `A` alone holds in all stages; `A | B` is A in the first stage and B in all later ones. Each can have
    phases: `A | A @ 20% > B`.

    Attributes:
        stages: for each, a distribution or phases; one or more.

    Raises:
        InvalidPlanError: no stage, or an element that is neither.
    """

    stages: tuple[StageRates, ...]

    def __post_init__(self) -> None:
        if not self.stages or not all(isinstance(stage, (LRDistribution, Phases)) for stage in self.stages):
            raise InvalidPlanError(
                f"A rate plan is a tuple of one distribution (or Phases) or more, not {shown(self.stages)}."
            )
        stages = self.stages
        # A | B | B and A | B are the same plan.
        while len(stages) > 1 and stages[-1] == stages[-2]:
            stages = stages[:-1]
        object.__setattr__(self, "stages", tuple(stages))

    def scale(self, factor: float) -> RatePlan:
        """Every rate times `factor` (> 0)."""
        return RatePlan(tuple(stage.scale(factor) for stage in self.stages))

    def stage(self, index: int) -> StageRates:
        """The rates of stage `index`, counted from 0."""
        return self.stages[min(index, len(self.stages) - 1)]

    def preview(
        self, num_layers: int, steps: int, *, schedule: str = "cosine", warmup: float = 0.1
    ) -> list[StagePreview]:
        """Every group's rate in each step, before anything is trained; each stage has a schedule of its own.

        Args:
            num_layers: of the model.
            steps: steps of the optimizer in each stage.
            schedule: after the warm-up, `cosine` or `linear` to 0, or `constant`.
            warmup: share of the steps with a linearly rising factor.

        Returns:
            One a stage; the last holds in all later stages.

        Raises:
            InvalidPlanError: an unknown schedule, a warm-up out of range, or phases that are longer than the stage.
            LayerCountError: an invalid number of layers.
        """
        check_whole("steps", steps, 1, error=InvalidPlanError)
        if schedule not in SCHEDULES:
            raise InvalidPlanError(f"schedule must be {one_of(SCHEDULES, schedule)}")
        if not (is_number(warmup) and 0 <= warmup < 1):
            raise InvalidPlanError(f"warmup is a share of the steps from 0 to below 1, not {shown(warmup)}.")
        factors = [schedule_factor(step, steps, schedule, round(warmup * steps)) for step in range(steps)]
        return [_previewed(stage, num_layers, factors) for stage in self.stages]

    def plot(self, num_layers: int = 12, steps: int = 1000, *, schedule: str = "cosine", warmup: float = 0.1) -> Figure:
        """Draw what `preview` tells: `plan.plot(num_layers=6, steps=500).savefig("plan.png")`.

        A panel for each stage: depth upward, steps to the right, the rate as colour on a log scale; white where a
        layer is not trained, a dotted line where a phase begins.

        Args:
            num_layers: as in `preview`.
            steps: as in `preview`.
            schedule: as in `preview`.
            warmup: as in `preview`.

        Raises:
            InvalidPlanError: as in `preview`, or every rate is 0.
            LayerCountError: as in `preview`.
            MissingExtraError: matplotlib is not installed (extra `report`).
        """
        return plot_plan(self.preview(num_layers, steps, schedule=schedule, warmup=warmup))

    @property
    def distributions(self) -> tuple[LRDistribution, ...]:
        """Every distribution of the plan, in order."""
        return tuple(
            distribution
            for stage in self.stages
            for distribution in (
                [phase.distribution for phase in stage.phases] if isinstance(stage, Phases) else [stage]
            )
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex); for a plan of one distribution it is that of the distribution, as in results of schema 1."""
        if len(self.stages) == 1:
            return self.stages[0].fingerprint
        return _sha256([stage.fingerprint for stage in self.stages])

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what YAML files hold."""
        return {"stages": [stage.to_dict() for stage in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RatePlan:
        """Inverse of `to_dict`.

        Raises:
            InvalidPlanError: another form.
            LRDistError: an invalid distribution.
        """
        if not isinstance(data, Mapping) or set(data) != {"stages"} or not isinstance(data["stages"], (list, tuple)):
            raise InvalidPlanError(f"A rate plan is a mapping with the key stages, a list; got {shown(data)}.")
        return cls(tuple(_stage_from(stage, index + 1) for index, stage in enumerate(data["stages"])))

    def __str__(self) -> str:
        return STAGES.join(map(str, self.stages))


def _previewed(stage: StageRates, num_layers: int, factors: Sequence[float]) -> StagePreview:
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


def _stage_from(data: Any, number: int) -> StageRates:
    if not isinstance(data, Mapping) or "phases" not in data:
        return _distribution_from(data, f"stage {number}")
    if set(data) != {"phases"} or not isinstance(data["phases"], (list, tuple)):
        raise InvalidPlanError(f"Stage {number} is a distribution or a mapping with the key phases; got {shown(data)}.")
    return Phases(tuple(_phase_from(phase, f"stage {number}") for phase in data["phases"]))


def _phase_from(data: Any, where: str) -> Phase:
    keys = {"distribution", "share", "steps", "gradual"}
    if not isinstance(data, Mapping) or not {"distribution"} <= set(data) <= keys:
        raise InvalidPlanError(
            f"A phase ({where}) is a mapping with the keys distribution and share or steps, and gradual (true or "
            f"false); got {shown(data)}."
        )
    rates = _distribution_from(data["distribution"], where)
    return Phase(rates, data.get("share"), data.get("steps"), data.get("gradual", False))


def _distribution_from(data: Any, where: str) -> LRDistribution:
    try:
        return LRDistribution.parse(data) if isinstance(data, str) else LRDistribution.from_dict(data)
    except LRDistError as error:
        raise type(error)(f"{where}: {error}") from error


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=not isinstance(content, list))
    return hashlib.sha256(text.encode()).hexdigest()
