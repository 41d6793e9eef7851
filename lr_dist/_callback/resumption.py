"""What of a Trainer must stay as it was when a run is resumed, and a look at the checkpoint before it is used."""

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
    """The kinds of the Trainer's optimizers and schedulers, and how many parameters each group holds.

    Numbers such as a weight decay or a scheduler's length are not among them: Lightning takes those from the
    checkpoint.
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
        UnsupportedCallbackError: there are several.
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
    """Let `check` see a checkpoint that a fit resumes from, before its weights are loaded.

    Lightning loads them before it calls a callback, and with a model of another depth that fails with a list of
    parameters. Strategies that shard load the optimizer's state at the same time, and fail in the middle of that where
    its groups are others.
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
    """What a checkpoint holds beside weights and optimizer states; None if it cannot be read."""
    try:
        file = Path(path) / METADATA_FILENAME if Path(path).is_dir() else Path(path)
        return torch.load(file, map_location="cpu", mmap=True, weights_only=weights_only)
    except Exception:
        # The strategy, which reads it next, says what is wrong with it.
        return None


def _kind(scheduler: Any) -> str:
    """A scheduler's class, and those of the schedulers in it."""
    # `schedulers` gives some of them a class of ours, depending on their options.
    name = type(scheduler).__name__.removeprefix("Layerwise")
    inner = getattr(scheduler, "_schedulers", ())
    return f"{name}({', '.join(map(_kind, inner))})" if inner else name
