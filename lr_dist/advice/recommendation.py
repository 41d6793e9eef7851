"""A recommendation with its reasons."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lr_dist.advice.case import Case
from lr_dist.distribution import LRDistribution
from lr_dist.presets.preset_schedule import PresetSchedule
from lr_dist.rate_plan import Phases, RatePlan


@dataclass(frozen=True)
class Recommendation:
    """Where to begin, and why.

    Attributes:
        case: for which it is.
        plan: the rates.
        preset: name of the preset whose rates these are, or None.
        methods: methods against forgetting, in their text form.
        schedule: the preset's, or None.
        evidence: what speaks for it; empty if nothing near is known.
        differences: how the case differs from the setting of that evidence.
        limits: what that evidence does not show.
        advice: what to do next.
    """

    case: Case
    plan: RatePlan
    preset: str | None
    methods: tuple[str, ...]
    schedule: PresetSchedule | None
    evidence: tuple[str, ...]
    differences: tuple[str, ...]
    limits: str
    advice: tuple[str, ...]

    @property
    def arm(self) -> str:
        """The text for `--arms`: plan and methods."""
        return " + ".join([str(self.plan), *self.methods])

    @property
    def level(self) -> float:
        """Geometric mean of the layers' rates: the flat rate with which the plan is compared."""
        return level(self.plan, self.case.layers)

    def scaled_to(self, flat_rate: float, reason: str) -> Recommendation:
        """The same shape with the level of a flat rate that was measured to be best."""
        # Six digits: a flat plan then has the measured rate itself, without a rounding error in its last digit.
        factor = float(f"{flat_rate / self.level:.6g}")
        return replace(self, plan=self.plan.scale(factor), evidence=(reason, *self.evidence))

    def text(self) -> str:
        """Lines for people."""
        lines = [f"Begin with: {self._kind()}", f"  {self.plan}"]
        if self.methods:
            lines.append(f"  with {' + '.join(self.methods)}")
        if self.schedule is not None:
            lines.append(f"  schedule: {self.schedule}")
        for title, items in (
            ("What speaks for it", self.evidence or ("nothing that was measured near this case.",)),
            ("How your case differs", self.differences or ("not in family, layers, batch size, examples and order.",)),
            ("What that does not show", (self.limits,)),
            ("Next", self.advice),
        ):
            lines += ["", f"{title}:", *(f"  - {item}" for item in items)]
        return "\n".join(lines)

    def _kind(self) -> str:
        if self.preset is not None:
            return f"preset {self.preset}"
        return (
            "a flat rate"
            if str(self.plan).startswith("flat:") and len(self.plan.stages) == 1
            else "rates measured by us"
        )


def level(plan: RatePlan, num_layers: int) -> float:
    """Geometric mean of the rates of the layers that train, in the last phase of the last stage.

    It leaves out the embeddings and the head: one is mostly a table of words that are rarely seen, the other is new.
    """
    last = plan.stages[-1]
    distribution: LRDistribution = last.phases[-1].distribution if isinstance(last, Phases) else last
    rates = list(distribution.rates(num_layers).values())[1:-1]
    moving = [rate for rate in rates if rate > 0] or [max(distribution.rates(num_layers).values())]
    product = 1.0
    for rate in moving:
        product *= rate ** (1 / len(moving))
    return product
