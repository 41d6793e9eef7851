"""Amalgamation: several teachers into one student that knows all their labels, from unlabelled text alone.

Names are imported when they are first used, so that importing this package does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr_dist.knowledge.amalgamation.certainty import certainty, entropy, margin_weights
    from lr_dist.knowledge.amalgamation.labels import LabelUnion
    from lr_dist.knowledge.amalgamation.targets import (
        Objective,
        divergence,
        hard_targets,
        make_objective,
        soft_targets,
        uhc_loss,
        vkd_targets,
    )

_WHERE = {
    "certainty": ("certainty", "entropy", "margin_weights"),
    "labels": ("LabelUnion",),
    "targets": (
        *("Objective", "divergence", "hard_targets", "make_objective", "soft_targets", "uhc_loss", "vkd_targets"),
    ),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "LabelUnion",
    "Objective",
    "certainty",
    "divergence",
    "entropy",
    "hard_targets",
    "make_objective",
    "margin_weights",
    "soft_targets",
    "uhc_loss",
    "vkd_targets",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
