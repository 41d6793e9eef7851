"""The properties of a Trainer that a resumed run must share, and a check of checkpoints before they are loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lr_dist._callback.changes import unwrapped
from lr_dist._lightning import METADATA_FILENAME, L
from lr_dist.errors import UnsupportedCallbackError


def optimization(trainer: L.Trainer) -> dict[str, Any]:
    """The types of the Trainer's optimizers and schedulers, and the number of parameters in each group.

    Numbers such as the weight decay or a scheduler's length are left out: Lightning takes those from the checkpoint.
    """
    optimizers = [unwrapped(optimizer) for optimizer in trainer.optimizers]
    return {
        "optimizers": [type(optimizer).__name__ for optimizer in optimizers],
        "schedulers": [
            f"{_kind(config.scheduler)} every {config.frequency} {config.interval}(s)"
            for config in trainer.lr_scheduler_configs
        ],
        "sizes": [[len(group["params"]) for group in optimizer.param_groups] for optimizer in optimizers],
    }


def check_alone(trainer: Any, kind: type[Any]) -> None:
    """Refuse a second `LayerwiseLR`, which would split the groups of the first one again.

    Args:
        trainer: in `setup`.
        kind: the callback's class.

    Raises:
        UnsupportedCallbackError: there is more than one.
    """
    distributions = [str(callback.distribution) for callback in trainer.callbacks if isinstance(callback, kind)]
    if len(distributions) > 1:
        raise UnsupportedCallbackError(
            f"The Trainer has {len(distributions)} LayerwiseLR callbacks ({'; '.join(distributions)}), and an "
            "optimizer can follow one distribution only. Keep one of them (look also at `configure_callbacks` of the "
            "LightningModule): other rates for some layers are edits of one distribution, "
            "'decay:lr=4e-4,factor=0.7,head=1e-3'; its geometric mean with another is LRDistribution.geometric_mean."
        )


def before_weights(trainer: L.Trainer, check: Callable[[Mapping[str, Any]], None]) -> None:
    """Call `check` with a checkpoint that a fit resumes from, before its weights are loaded.

    Lightning loads the weights before it calls a callback; for a model of another depth that fails with a list of
    parameters. Sharding strategies load the optimizer's state at the same time, and fail if its groups differ.
    """
    strategy: Any = trainer.strategy
    release(strategy)
    original = strategy.load_checkpoint

    @functools.wraps(original)
    def load_checkpoint(checkpoint_path: Any, **options: Any) -> dict[str, Any]:
        if trainer.state.fn != "fit":
            return original(checkpoint_path, **options)
        if strategy.restore_checkpoint_after_setup:
            seen = _without_weights(strategy.broadcast(checkpoint_path), options.get("weights_only"))
            if seen is not None:
                check(seen)
            return original(checkpoint_path, **options)
        checkpoint = original(checkpoint_path, **options)
        check(checkpoint)
        return checkpoint

    strategy.load_checkpoint = load_checkpoint
    strategy._lr_dist_checks = True


def release(strategy: Any) -> None:
    """Undo `before_weights`."""
    if vars(strategy).pop("_lr_dist_checks", False):
        del strategy.load_checkpoint


def _without_weights(path: Any, weights_only: bool | None) -> dict[str, Any] | None:
    """A checkpoint's content, of a sharded one without weights and optimizer states; None if it cannot be read."""
    try:
        file = Path(path) / METADATA_FILENAME if Path(path).is_dir() else Path(path)
        return torch.load(file, map_location="cpu", mmap=True, weights_only=weights_only)
    except Exception:
        # The strategy reads it next, and raises the error.
        return None


def _kind(scheduler: Any) -> str:
    """A scheduler's class, and those of the schedulers in it."""
    # `lr_dist.schedulers` replaces the class of some schedulers by a subclass named Layerwise...
    name = type(scheduler).__name__.removeprefix("Layerwise")
    inner = getattr(scheduler, "_schedulers", ())
    return f"{name}({', '.join(map(_kind, inner))})" if inner else name
