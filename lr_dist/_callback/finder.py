"""The rate that Lightning's LearningRateFinder suggests, as the anchor of a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lr_dist._callback.company import callbacks_of
from lr_dist._lightning import BatchSizeFinder, L, LearningRateFinder
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ResumeMismatchError
from lr_dist.schedulers import Split, anchor_rates, rewrite_schedulers, scaled_group_keys


def finders(trainer: L.Trainer) -> list[LearningRateFinder]:
    """The LearningRateFinders of `trainer`, that of `Tuner.lr_find` while it runs included."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, LearningRateFinder)]


def suggestions(trainer: L.Trainer) -> list[float]:
    """What the finders of `trainer` have found."""
    found = [finder.optimal_lr.suggestion() for finder in finders(trainer) if finder.optimal_lr]
    return [float(rate) for rate in found if rate is not None]


def found_rate(candidates: Sequence[float], optimizer: Optimizer, schedulers: Sequence[Any]) -> float | None:
    """The one of the suggestions that is the optimizer's own rate.

    A finder among the callbacks writes its suggestion into `lr` of every group; after `Tuner.lr_find` the module's
    own `configure_optimizers` reads it. A finder that only looks (`update_attr=False`), or whose suggestion the user
    replaced, has no say.
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
    """Let `rate` be what the optimizer and its schedules mean by "the learning rate" in every group.

    A finder writes `lr` alone, which the first step of most schedules overwrites: they compute from rates that they
    keep themselves. Floors that were given as a rate (`eta_min`, `min_lr`) stay.

    Args:
        rate: takes the place of the groups' `anchor_rates`.
        optimizer: its groups change in place.
        schedulers: the optimizer's schedulers; they change in place, and their factors stay.

    Raises:
        ZeroRateError: a schedule of a rate of 0.
    """
    groups = optimizer.param_groups
    # The rates from before the finder's. Of several schedules' the lowest is the one that holds: each was built on
    # what the earlier ones had made of the rate.
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

    LLRD calls its highest rate, the head's, *the* learning rate.
    """
    if distribution.relative:
        return distribution
    highest = max(distribution.rates(num_layers).values())
    return distribution.scale(rate / highest) if highest else distribution


def describe(distribution: LRDistribution, rate: float) -> str:
    """What became of the suggestion `rate`, in a sentence."""
    if distribution.relative:
        return f"LayerwiseLR: the rate {rate:.3g} that LearningRateFinder found is multiplied layer by layer."
    return (
        f"LayerwiseLR: the rate {rate:.3g} that LearningRateFinder found is the highest of the distribution, whose "
        "rates were scaled and keep their ratios."
    )


def resumes_a_fit(trainer: L.Trainer) -> bool:
    """Whether a checkpoint that is being loaded is one that a fit resumes from, not a tuner's own."""
    return trainer.state.fn == "fit" and not is_own_checkpoint_of_a_tuner(trainer)


def is_own_checkpoint_of_a_tuner(trainer: L.Trainer) -> bool:
    """Whether the checkpoint being loaded is the one by which LearningRateFinder or BatchSizeFinder undo their run."""
    return Path(str(trainer.ckpt_path or "")).name.startswith((".lr_find_", ".scale_batch_size_"))


def check_resumed_without_tuner(trainer: L.Trainer) -> None:
    """Refuse to resume beside a tuner: Lightning then forgets the checkpoint's steps, optimizer and schedules.

    The tuners restore a checkpoint of their own at the end of their run, which releases the one that is resumed, so
    that training starts again at step 0 with the checkpoint's weights.

    Raises:
        ResumeMismatchError: there is a LearningRateFinder or a BatchSizeFinder.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, (LearningRateFinder, BatchSizeFinder)):
            raise ResumeMismatchError(
                f"Lightning cannot resume from {trainer.ckpt_path} beside {type(callback).__name__}: when its search "
                "ends, the checkpoint's step count, optimizer and schedules are lost, and training starts again at "
                "step 0. Remove that callback to resume; the rates that it found are in the checkpoint."
            )
