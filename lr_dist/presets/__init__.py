"""Presets: named rate plans, with methods and a schedule where they belong to it, and their evidence.

    from lr_dist import load_preset
    from lr_dist.presets import get_preset

    distribution = load_preset("kenneweg2022")
    recipe = get_preset("lp-ft")  # recipe.plan, recipe.methods, recipe.schedule, recipe.provenance

`list_presets()` lists them. To add your own, put a file NAME.yaml into a folder listed in LR_DIST_PRESETS
(several folders are separated as in PATH), install a package with an entry point in the group `lr_dist.presets` (the
path of a folder, or a list of `Preset`), or call `register_preset`.
"""

from __future__ import annotations

from lr_dist.presets.plans import resolve_plan, resolve_recipe, resolve_stage
from lr_dist.presets.preset_schedule import PresetSchedule
from lr_dist.presets.registry import (
    PresetEntry,
    get_preset,
    list_presets,
    load_preset,
    register_preset,
    unregister_preset,
)
from lr_dist.presets.resolve import resolve_distribution
from lr_dist.presets.schema import Preset, Provenance, read_preset

__all__ = [
    "Preset",
    "PresetEntry",
    "PresetSchedule",
    "Provenance",
    "get_preset",
    "list_presets",
    "load_preset",
    "read_preset",
    "register_preset",
    "resolve_distribution",
    "resolve_plan",
    "resolve_recipe",
    "resolve_stage",
    "unregister_preset",
]
