"""Presets: named distributions with their evidence.

    from lr_dist import load_preset
    distribution = load_preset("kenneweg2022")

`lr-dist presets list` shows them. Own ones are files NAME.yaml in a folder that LR_DIST_PRESETS names (several,
separated as in PATH), or come from a package with an entry point in the group `lr_dist.presets` (a folder's path,
or a list of `Preset`), or are registered with `register_preset`.
"""

from __future__ import annotations

from lr_dist.presets.registry import (
    PresetEntry,
    get_preset,
    list_presets,
    load_preset,
    register_preset,
    unregister_preset,
)
from lr_dist.presets.resolve import resolve_distribution, resolve_plan
from lr_dist.presets.schema import Preset, Provenance, read_preset

__all__ = [
    "Preset",
    "PresetEntry",
    "Provenance",
    "get_preset",
    "list_presets",
    "load_preset",
    "read_preset",
    "register_preset",
    "resolve_distribution",
    "resolve_plan",
    "unregister_preset",
]
