"""The rate that Lightning's LearningRateFinder suggests, as the anchor of a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lr_dist._callback.other_callbacks import callbacks_of
from lr_dist._lightning import BatchSizeFinder, L, LearningRateFinder
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ResumeMismatchError
from lr_dist.schedulers import Split, anchor_rates, rewrite_schedulers, scaled_group_keys


def finders(trainer: L.Trainer) -> list[LearningRateFinder]:
    """The LearningRateFinders of `trainer`, including the one of a running `Tuner.lr_find`."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, LearningRateFinder)]


def suggestions(trainer: L.Trainer) -> list[float]:
    """The rates that the finders of `trainer` suggest."""
    suggested = [finder.optimal_lr.suggestion() for finder in finders(trainer) if finder.optimal_lr]
    return [float(rate) for rate in suggested if rate is not None]


def found_rate(candidates: Sequence[float], optimizer: Optimizer, schedulers: Sequence[Any]) -> float | None:
    """The suggestion that the optimizer uses as its rate; None if it uses none of them.

    A finder among the callbacks writes its suggestion into `lr` of every group; after `Tuner.lr_find` the module's
    `configure_optimizers` reads it. With `update_attr=False`, or if the user replaced the suggestion, the optimizer has
    another rate, and the suggestion is ignored.
    """
    if not candidates or any(group.get("lr") is None for group in optimizer.param_groups):
        return None
    written = [float(group["lr"]) for group in optimizer.param_groups]
    meant = anchor_rates(optimizer, schedulers)
    return next((rate for rate in candidates if _are_all(rate, written) or _are_all(rate, meant)), None)


def _are_all(suggestion: float, rates: Sequence[float]) -> bool:
    # A rate in a float32 tensor has lost digits.
    return all(math.isclose(suggestion, rate, rel_tol=1e-6) for rate in rates)


def anchor_at(rate: float, optimizer: Optimizer, schedulers: Sequence[Any]) -> None:
    """Make `rate` the rate of every group where the schedule's factor is 1.

    A finder writes `lr` only. Most schedulers overwrite that in their first step, because they compute from rates that
    they store themselves. Floors that were given as a rate (`eta_min`, `min_lr`) stay.

    Args:
        rate: replaces the groups' `anchor_rates`.
        optimizer: its groups change in place.
        schedulers: the optimizer's schedulers; they change in place, and their factors stay.

    Raises:
        ZeroRateError: a group's rate is 0, which no factor scales to `rate`.
    """
    groups = optimizer.param_groups
    # Undo the finder's rates. Of several schedulers' last rates the lowest is the current one, because each scheduler
    # was built on the rates that the earlier ones had set.
    scheduled = [s._last_lr for s in schedulers if len(getattr(s, "_last_lr", ())) == len(groups)]
    if scheduled:
        for index, group in enumerate(groups):
            group["lr"] = min(rates[index] for rates in scheduled)
    same = (rate,) * len(groups)
    anchors = tuple(anchor_rates(optimizer, schedulers))
    split = Split(parents=tuple(range(len(groups))), anchors=anchors, rates=same, user_rates=same)
    keys = scaled_group_keys(schedulers)
    for index, group in enumerate(groups):
        for key in keys:
            if key in group:
                group[key] = split.scale(index, group[key])
        if "layer_lr" in group:
            group.update(layer_lr=rate, user_lr=rate)
    rewrite_schedulers(schedulers, split)


def anchored(distribution: LRDistribution, rate: float, num_layers: int) -> LRDistribution:
    """`distribution` with `rate` as its highest rate; a relative one as is, because it multiplies `rate` anyway.

    In LLRD, "the learning rate" is the highest one, the head's.
    """
    if distribution.relative:
        return distribution
    highest = max(distribution.rates(num_layers).values())
    return distribution.scale(rate / highest) if highest else distribution


def describe(distribution: LRDistribution, rate: float) -> str:
    """A sentence that says how the suggestion `rate` is used."""
    if distribution.relative:
        return f"LayerwiseLR: the rate {rate:.3g} that LearningRateFinder found is multiplied layer by layer."
    return (
        f"LayerwiseLR: the rate {rate:.3g} that LearningRateFinder found is now the highest rate of the distribution; "
        "the others were scaled with it."
    )


def resumes_a_fit(trainer: L.Trainer) -> bool:
    """Whether a checkpoint that is being loaded is one that a fit resumes from, not a tuner's own."""
    return trainer.state.fn == "fit" and not is_own_checkpoint_of_a_tuner(trainer)


def is_own_checkpoint_of_a_tuner(trainer: L.Trainer) -> bool:
    """Whether the checkpoint being loaded is the one by which LearningRateFinder or BatchSizeFinder undo their run."""
    return Path(str(trainer.ckpt_path or "")).name.startswith((".lr_find_", ".scale_batch_size_"))


def check_resumed_without_tuner(trainer: L.Trainer) -> None:
    """Refuse to resume together with a tuner: Lightning would lose the checkpoint's steps, optimizer and schedules.

    At the end of their search the tuners restore their own checkpoint, which drops the one that is being resumed.
    Training would start at step 0 with the checkpoint's weights.

    Raises:
        ResumeMismatchError: there is a LearningRateFinder or a BatchSizeFinder.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, (LearningRateFinder, BatchSizeFinder)):
            raise ResumeMismatchError(
                f"Lightning cannot resume from {trainer.ckpt_path} together with {type(callback).__name__}: when its "
                "search ends, the checkpoint's step count, optimizer and schedules are lost, and training starts again "
                "at step 0. Remove that callback to resume; the checkpoint holds the rates that it found."
            )
