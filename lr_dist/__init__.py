"""lr-dist: a learning rate for every layer, and fine-tuning without forgetting.

Importing this package imports no torch, Lightning, Optuna, datasets, transformers or matplotlib: each public
name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr_dist.callback import LayerwiseLR
    from lr_dist.distribution import LRDistribution
    from lr_dist.groups import param_groups
    from lr_dist.huggingface import LayerwiseTrainerMixin
    from lr_dist.layers import assign_layers
    from lr_dist.loss_adaptive import LossAdaptiveLR
    from lr_dist.presets import load_preset, register_preset

__version__ = "0.1.0"

_HOME = {
    "LayerwiseLR": "lr_dist.callback",
    "LayerwiseTrainerMixin": "lr_dist.huggingface",
    "LossAdaptiveLR": "lr_dist.loss_adaptive",
    "LRDistribution": "lr_dist.distribution",
    "assign_layers": "lr_dist.layers",
    "load_preset": "lr_dist.presets",
    "param_groups": "lr_dist.groups",
    "register_preset": "lr_dist.presets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lr_dist' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]


__all__ = [
    "LRDistribution",
    "LayerwiseLR",
    "LayerwiseTrainerMixin",
    "LossAdaptiveLR",
    "__version__",
    "assign_layers",
    "load_preset",
    "param_groups",
    "register_preset",
]
