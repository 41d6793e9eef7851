"""Read any form of a rate plan (text, YAML file, mapping, value) as a `RatePlan`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lr_dist._distribution.families import FAMILIES
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidPlanError, UnknownPresetError, shown
from lr_dist.presets.plan_text import parse_plan
from lr_dist.presets.registry import get_preset
from lr_dist.presets.resolve import resolve_distribution
from lr_dist.presets.schema import NAME, Preset, read_data
from lr_dist.rate_plan import Phases, RatePlan, StageRates

Spec = str | Path | Mapping[str, Any] | LRDistribution | Phases | RatePlan


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
    return resolve_recipe(spec)[0]


def resolve_recipe(spec: Spec) -> tuple[RatePlan, tuple[str, ...]]:
    """Read a rate plan, and the methods of the presets that it names.

    Args:
        spec: as for `resolve_plan`.

    Returns:
        The plan, and the text forms of the methods, each once.

    Raises:
        LRDistError: what `resolve_plan` raises.
    """
    if isinstance(spec, (RatePlan, Phases)):
        return (spec if isinstance(spec, RatePlan) else RatePlan((spec,))), ()
    if isinstance(spec, str) and not _is_path(spec):
        methods: dict[str, None] = {}
        return parse_plan(spec, lambda text: _named(text, methods)), tuple(methods)
    if _is_path(spec):
        path = Path(spec.strip() if isinstance(spec, str) else spec)  # type: ignore[arg-type]
        # `resolve_distribution` raises the error for a missing file.
        data = read_data(path) if path.exists() else None
    else:
        path, data = None, spec
    if isinstance(data, Mapping) and "stages" in data:
        return RatePlan.from_dict(data), ()
    if _is_preset(data):
        preset = Preset.from_dict(data, source="preset" if path is None else str(path))
        return preset.plan, preset.methods
    return RatePlan((resolve_distribution(spec if path is None else path),)), ()  # type: ignore[arg-type]


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


def _is_path(spec: Any) -> bool:
    return isinstance(spec, Path) or (isinstance(spec, str) and spec.strip().lower().endswith((".yaml", ".yml")))


def _is_preset(data: Any) -> bool:
    return isinstance(data, Mapping) and "provenance" in data and "family" not in data


def _named(text: str, methods: dict[str, None]) -> LRDistribution | RatePlan:
    """A distribution in any of its forms, or the plan of a preset, whose methods are added to `methods`."""
    if _is_path(text):
        plan, found = resolve_recipe(Path(text))
        methods.update(dict.fromkeys(found))
        return plan
    if NAME.fullmatch(text) and text not in FAMILIES:
        # `resolve_distribution` raises the error with the other ways to write a distribution.
        with contextlib.suppress(UnknownPresetError):
            preset = get_preset(text)
            methods.update(dict.fromkeys(preset.methods))
            return preset.plan
    return resolve_distribution(text)


__all__: Sequence[str] = ["Spec", "resolve_plan", "resolve_recipe", "resolve_stage"]
