"""lr-dist: a learning rate for every layer, and fine-tuning without forgetting.

Importing this package imports no torch, Lightning, Optuna, datasets, transformers or matplotlib: each public
name is loaded when it is first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from opcode import opname
from typing import TYPE_CHECKING, Any

from lr_dist.errors import MissingExtraError
from lr_dist.extras import require_libraries

if TYPE_CHECKING:
    from lr_dist.advice import recommend
    from lr_dist.callback import LayerwiseLR
    from lr_dist.distribution import LRDistribution
    from lr_dist.exact_resume import ExactResume
    from lr_dist.groups import param_groups
    from lr_dist.huggingface import LayerwiseTrainerMixin
    from lr_dist.layer_schedule import LayerSchedule
    from lr_dist.layers import assign_layers
    from lr_dist.loss_adaptive import LossAdaptiveLR
    from lr_dist.monitor.callback import ForgettingMonitor
    from lr_dist.monitor.huggingface import ForgettingMonitorCallback
    from lr_dist.presets import load_preset, register_preset
    from lr_dist.retention.huggingface import RetentionMonitorCallback
    from lr_dist.retention.monitor import RetentionMonitor

__version__ = "0.2.0"

_HOME = {
    "ExactResume": "lr_dist.exact_resume",
    "ForgettingMonitor": "lr_dist.monitor.callback",
    "ForgettingMonitorCallback": "lr_dist.monitor.huggingface",
    "LayerSchedule": "lr_dist.layer_schedule",
    "LayerwiseLR": "lr_dist.callback",
    "LayerwiseTrainerMixin": "lr_dist.huggingface",
    "LossAdaptiveLR": "lr_dist.loss_adaptive",
    "RetentionMonitor": "lr_dist.retention.monitor",
    "RetentionMonitorCallback": "lr_dist.retention.huggingface",
    "LRDistribution": "lr_dist.distribution",
    "assign_layers": "lr_dist.layers",
    "load_preset": "lr_dist.presets",
    "param_groups": "lr_dist.groups",
    "recommend": "lr_dist.advice",
    "register_preset": "lr_dist.presets",
}


# The extra and the libraries of the names that need more than the package itself.
_NEEDS = {
    "ForgettingMonitorCallback": ("huggingface", "transformers", "accelerate"),
    "LayerwiseTrainerMixin": ("huggingface", "transformers", "accelerate"),
    "RetentionMonitorCallback": ("huggingface", "transformers", "accelerate"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lr_dist' has no attribute {name!r}; it has {', '.join(_HOME)}")
    if name in _NEEDS:
        try:
            require_libraries(*_NEEDS[name])
        except MissingExtraError as error:
            # Python replaces an AttributeError within `from lr_dist import NAME` by a sentence without the extra.
            if _within_from_import():
                raise
            # hasattr, getattr with a default and inspect.getmembers expect this one.
            raise AttributeError(f"lr_dist.{name}: {error}") from error
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]


def _within_from_import() -> bool:
    """Whether the code that asked for the attribute is `from lr_dist import NAME`."""
    caller = sys._getframe(2)
    return opname[caller.f_code.co_code[caller.f_lasti]] == "IMPORT_FROM"


__all__ = [
    "ExactResume",
    "ForgettingMonitor",
    "LRDistribution",
    "LayerSchedule",
    "LayerwiseLR",
    "LossAdaptiveLR",
    "RetentionMonitor",
    "__version__",
    "assign_layers",
    "load_preset",
    "param_groups",
    "recommend",
    "register_preset",
]
# `from lr_dist import *` brings what can be used here.
if all(find_spec(module) for module in _NEEDS["LayerwiseTrainerMixin"][1:]):
    __all__ += ["ForgettingMonitorCallback", "LayerwiseTrainerMixin", "RetentionMonitorCallback"]
