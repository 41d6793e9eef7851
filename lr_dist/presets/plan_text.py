"""The text form of a rate plan: `A | B`, `A @ 20% > B`, `A @ gradual`, `A*0.5`."""

from __future__ import annotations

import re
from collections.abc import Callable

from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidPlanError, shown
from lr_dist.rate_plan import GRADUAL, Phase, Phases, RatePlan, StageRates

Read = Callable[[str], LRDistribution | RatePlan]

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_PERCENT = re.compile(rf"({_NUMBER})\s*%")
_STEPS = re.compile(r"(\d+)\s*(?:steps?)?")
_TIMES = re.compile(rf"(.*?)\s*\*\s*({_NUMBER})", re.DOTALL)


def parse_plan(text: str, read: Read) -> RatePlan:
    """Read a plan's text.

    Args:
        text: `A` in all stages, `A | B` (B from the second stage on); each with phases, `A @ 20% > B`. In `A @ gradual`
            or `A @ gradual 50% > B`, the layers start one after the other, from the head down.
        read: reads the text of one distribution, or the name of a plan.

    Raises:
        InvalidPlanError: malformed text.
        LRDistError: what `read` raises.
    """
    if "|" in text:
        return RatePlan(tuple(_one_stage(part, text, read) for part in text.split("|")))
    plan = _stage(text, text, read)
    return plan if isinstance(plan, RatePlan) else RatePlan((plan,))


def _one_stage(text: str, whole: str, read: Read) -> StageRates:
    stage = _stage(text, whole, read)
    if not isinstance(stage, RatePlan):
        return stage
    if len(stage.stages) > 1:
        raise InvalidPlanError(
            f"{shown(text.strip())} is a plan of {len(stage.stages)} stages, so it cannot be one stage of "
            f"{shown(whole)}. Write out the stage that is meant, such as {shown(str(stage.stages[-1]))}."
        )
    return stage.stages[0]


def _stage(text: str, whole: str, read: Read) -> StageRates | RatePlan:
    if not text.strip():
        raise InvalidPlanError(f"The plan {shown(whole)} has an empty stage; write a distribution on both sides of |.")
    parts = text.split(">")
    if len(parts) == 1 and "@" not in text:
        return _rates(text, read)
    if len(parts) == 1 and not re.search(rf"@\s*{GRADUAL}\b", text):
        raise InvalidPlanError(f"No phase follows {shown(text.strip())}; write what comes then: A @ 20% > B.")
    return Phases(tuple(_phase(part, text, read) for part in parts))


def _phase(text: str, whole: str, read: Read) -> Phase:
    rates, at, length = (part.strip() for part in text.rpartition("@")) if "@" in text else (text.strip(), "", "")
    if not rates:
        raise InvalidPlanError(f"The plan {shown(whole)} has an empty phase; write it as in A @ 20% > B.")
    distribution = _distribution(rates, read)
    if not at:
        return Phase(distribution)
    first, _, rest = length.partition(" ")
    gradual = first == GRADUAL
    length = rest.strip() if gradual else length
    if gradual and not length:
        return Phase(distribution, gradual=True)
    if match := _PERCENT.fullmatch(length):
        return Phase(distribution, share=float(match[1]) / 100, gradual=gradual)
    if match := _STEPS.fullmatch(length):
        return Phase(distribution, steps=int(match[1]), gradual=gradual)
    raise InvalidPlanError(
        f"The length {shown(length)} of the phase {shown(text.strip())} is not valid; write 20% (of the stage's "
        "steps), 100 steps, or gradual 20%."
    )


def _distribution(text: str, read: Read) -> LRDistribution:
    rates = _rates(text, read)
    if isinstance(rates, LRDistribution):
        return rates
    raise InvalidPlanError(
        f"{shown(text)} is a plan of several stages or phases, so it cannot be a phase itself. Write out the rates "
        f"that are meant, such as {shown(str(rates.distributions[-1]))}."
    )


def _rates(text: str, read: Read) -> LRDistribution | RatePlan:
    match = _TIMES.fullmatch(text.strip())
    rates = read(text.strip() if match is None else match[1])
    if isinstance(rates, RatePlan) and isinstance(rates.stages[0], LRDistribution) and len(rates.stages) == 1:
        rates = rates.stages[0]
    return rates if match is None else rates.scale(float(match[2]))
