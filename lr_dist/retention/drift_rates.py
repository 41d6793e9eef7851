"""Rates from one short run with a flat rate: inversely to what each layer's movement cost the old tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lr_dist.distribution import LRDistribution
from lr_dist.layers import Overrides, assign_layers
from lr_dist.retention.layer_probe import layer_probe
from lr_dist.retention.weights import Weights


def drift_rates(
    model: nn.Module,
    before: Weights,
    score: Callable[[nn.Module], Any],
    lr: float,
    *,
    power: float = 0.5,
    limit: float = 10.0,
    permuted: int | None = None,
    relative: bool = False,
    overrides: Overrides | None = None,
) -> LRDistribution:
    """`LRDistribution.from_drift` of the layer probe's gains.

        before = copy.deepcopy(model)
        ...  # a short run of the new task with a flat rate
        rates = drift_rates(model, before, lambda model: accuracy(model, old_task), lr=1e-4)

    A score that is an accuracy on a few hundred examples is coarse: the mean log-likelihood of the old task's labels
    tells layers apart with fewer examples.

    Args:
        model: after the short run; unchanged afterwards.
        before: the model before it, or its state dict.
        score: model -> score on the old tasks, higher is better.
        lr: the geometric mean of the rates.
        power: how fast rates fall with the cost; 0 is flat.
        limit: no rate is above limit x lr or below lr / limit.
        permuted: seed of a permutation over depth, for a control.
        relative: whether the rates are multiples of the optimizer's own rate.
        overrides: see `assign_layers`.

    Raises:
        LRDistError: as `layer_probe` and `LRDistribution.from_drift`.
    """
    probe = layer_probe(model, before, score, overrides=overrides)
    # Layers that did not move cost nothing.
    cost = {group: probe.gain.get(group, 0.0) for group in assign_layers(model, overrides).groups}
    return LRDistribution.from_drift(cost, lr, power=power, limit=limit, permuted=permuted, relative=relative)
