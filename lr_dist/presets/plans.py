"""Read any form of a rate plan (text, YAML file, mapping, value) as a `RatePlan`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidPlanError, shown
from lr_dist.presets.resolve import resolve_distribution
from lr_dist.presets.schema import read_data
from lr_dist.rate_plan import GRADUAL, Phase, Phases, RatePlan, StageRates

Spec = str | Path | Mapping[str, Any] | LRDistribution | Phases | RatePlan

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_PERCENT = re.compile(rf"({_NUMBER})\s*%")
_STEPS = re.compile(r"(\d+)\s*(?:steps?)?")
_TIMES = re.compile(rf"(.*?)\s*\*\s*({_NUMBER})", re.DOTALL)


def resolve_plan(spec: Spec) -> RatePlan:
    """Read a rate plan.

    Args:
        spec: any form that `resolve_distribution` takes, for one distribution in all stages; in text also `A | B` (B
            from the second stage on), `A @ 20% > B` or `A @ 100 steps > B` (phases of a stage), `A @ gradual` or
            `A @ gradual 50% > B` (a phase in which the layers start one after the other, from the head down), and
            `A*0.5` (every rate times a number); a mapping with `stages`, as of `RatePlan.to_dict`, or a YAML file that
            holds one.

    Raises:
        LRDistError: what `resolve_distribution` raises.
        InvalidPlanError: phases or stages that are not valid.
    """
    if isinstance(spec, RatePlan):
        return spec
    if isinstance(spec, str) and "|" in spec:
        return RatePlan(tuple(_stage(part, spec) for part in spec.split("|")))
    if isinstance(spec, Path) or (isinstance(spec, str) and spec.strip().lower().endswith((".yaml", ".yml"))):
        path = Path(spec.strip() if isinstance(spec, str) else spec)
        data = read_data(path) if path.exists() else None
        # `resolve_distribution` reads any other content, and raises the error for a missing file.
        return resolve_plan(data) if isinstance(data, Mapping) and "stages" in data else _single(path)
    if isinstance(spec, Mapping) and "stages" in spec:
        return RatePlan.from_dict(spec)
    return RatePlan((_stage(spec, spec),))


def resolve_stage(spec: Spec) -> StageRates:
    """Read the rates of one stage: what `resolve_plan` reads, if it is the same for all stages.

    Raises:
        InvalidPlanError: a plan of several stages.
    """
    plan = resolve_plan(spec)
    if len(plan.stages) > 1:
        raise InvalidPlanError(
            f"{shown(str(plan))} has {len(plan.stages)} stages, and one fit is one stage. Give the rates of one, such "
            f"as {shown(str(plan.stages[-1]))}, or resolve_plan(...).stage(1) for the second."
        )
    return plan.stages[0]


def _single(spec: Any) -> RatePlan:
    return RatePlan((resolve_distribution(spec),))


def _stage(spec: Any, whole: Any) -> StageRates:
    if isinstance(spec, Phases):
        return spec
    if not isinstance(spec, str):
        return resolve_distribution(spec)
    if not spec.strip():
        raise InvalidPlanError(f"The plan {shown(whole)} has an empty stage; write a distribution on both sides of |.")
    parts = spec.split(">")
    if len(parts) == 1 and "@" not in spec:
        return _distribution(spec)
    if len(parts) == 1 and not re.search(rf"@\s*{GRADUAL}\b", spec):
        raise InvalidPlanError(f"No phase follows {shown(spec.strip())}; write what comes then: A @ 20% > B.")
    return Phases(tuple(_phase(part, spec) for part in parts))


def _phase(text: str, whole: str) -> Phase:
    rates, at, length = (part.strip() for part in text.rpartition("@")) if "@" in text else (text.strip(), "", "")
    if not rates:
        raise InvalidPlanError(f"The plan {shown(whole)} has an empty phase; write it as in A @ 20% > B.")
    if not at:
        return Phase(_distribution(rates))
    first, _, rest = length.partition(" ")
    gradual = first == GRADUAL
    length = rest.strip() if gradual else length
    if gradual and not length:
        return Phase(_distribution(rates), gradual=True)
    if match := _PERCENT.fullmatch(length):
        return Phase(_distribution(rates), share=float(match[1]) / 100, gradual=gradual)
    if match := _STEPS.fullmatch(length):
        return Phase(_distribution(rates), steps=int(match[1]), gradual=gradual)
    raise InvalidPlanError(
        f"The length {shown(length)} of the phase {shown(text.strip())} is not valid; write 20% (of the stage's "
        "steps), 100 steps, or gradual 20%."
    )


def _distribution(text: str) -> LRDistribution:
    match = _TIMES.fullmatch(text.strip())
    if match is None:
        return resolve_distribution(text.strip())
    return resolve_distribution(match[1]).scale(float(match[2]))


__all__: Sequence[str] = ["Spec", "resolve_plan", "resolve_stage"]
