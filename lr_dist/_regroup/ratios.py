"""Groups of one layer to which the user's optimizers gave different rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from lr_dist._regroup.placement import Placement
from lr_dist.checks import as_float
from lr_dist.names import is_layer
from lr_dist.schedulers import anchor_rates


@dataclass(frozen=True)
class OwnRatios:
    """Groups of one layer to which the user's optimizers gave different rates.

    An absolute distribution has one rate for a layer. It replaces the rate of the layer's reference group, and the
    other groups keep their ratio to it. In LoRA+, B has 16 times the rate of A; under Muon, matrices have their own.

    Attributes:
        reference: layer -> the user's rate that the distribution's rate replaces.
        others: layer -> the user's other rates.
    """

    reference: dict[str, float]
    others: dict[str, tuple[float, ...]]

    def ratio(self, layer: str, user: float) -> float:
        """The factor on the distribution's rate of `layer` for a group to which the user gave the rate `user`."""
        reference = self.reference.get(layer)
        # Equal up to the precision of a float32 tensor; a rate of 0 is refused elsewhere.
        if reference is None or user == 0 or math.isclose(user, reference, rel_tol=1e-5):
            return 1.0
        return user / reference

    @classmethod
    def of(cls, optimizers: Sequence[tuple[Optimizer, Sequence[Any]]], placement: Placement) -> OwnRatios:
        """The ratios in optimizers, each given with its schedulers; their groups need not be split yet.

        The reference of a layer is the optimizer's default `lr` if one of its groups has that rate, or else the lowest
        rate. If only embeddings or head have several rates, because the user draws the line between backbone and head
        elsewhere, it is the highest, so that no group exceeds the distribution's rate.
        """
        rates: dict[str, set[float]] = {}
        exact: dict[float, float] = {}
        defaults: set[float] = set()
        for optimizer, schedulers in optimizers:
            defaults.add(_digits(optimizer.defaults.get("lr")))
            for group, anchor in zip(optimizer.param_groups, anchor_rates(optimizer, schedulers), strict=True):
                user = _digits(user_rate(group, anchor))
                if not user > 0:
                    continue
                exact.setdefault(user, user_rate(group, anchor))
                for layer in {placement.layer[id(p)] for p in group["params"] if id(p) in placement.layer}:
                    rates.setdefault(layer, set()).add(user)
        several = {layer: values for layer, values in rates.items() if len(values) > 1}
        within = [values for layer, values in several.items() if is_layer(layer)]
        common = {min(values & defaults or values) for values in within}
        # A layer with all its weights under Muon, while other layers also have some under AdamW.
        beside = {rate for values in within for rate in values} - common
        alone = {layer: values for layer, values in rates.items() if len(values) == 1 and values <= beside}
        reference = {}
        for layer, values in several.items():
            known = values & defaults or values if is_layer(layer) else values & common
            reference[layer] = min(known) if known else max(values)
        reference |= dict.fromkeys(alone, min(common, default=math.nan))
        several |= alone
        others = {layer: tuple(sorted(values - {reference[layer]})) for layer, values in several.items()}
        return cls({layer: exact[rate] for layer, rate in reference.items()}, others)

    def describe(self) -> str:
        """A sentence that says which rates the distribution replaces; empty if there are no such groups."""
        if not self.others:
            return ""
        layer = next((layer for layer in self.others if is_layer(layer)), next(iter(self.others)))
        reference = self.reference[layer]
        kept = ", ".join(f"{rate:.3g} ({rate / reference:.3g} times)" for rate in self.others[layer])
        layers = f"{layer} and {len(self.others) - 1} more layer(s)" if len(self.others) > 1 else layer
        return (
            f"The optimizer's groups have different rates within {layers}. The rate of the distribution "
            f"replaces {reference:.3g}, and the groups with {kept} keep their ratio to it. If the distribution is "
            "meant to multiply each group's own rate, make it relative (relative=true)."
        )


def _digits(rate: Any) -> float:
    """A rate rounded to the precision of a float32 tensor; nan if it is not a number."""
    return float(f"{as_float(rate):.6g}")


def user_rate(group: Mapping[str, Any], anchor: float) -> float:
    """The rate that the user gave the group: `anchor`, or, if an earlier split set that, the rate before it."""
    # isclose, because a float32 tensor rounds the rate.
    if "user_lr" in group and "layer_lr" in group and math.isclose(group["layer_lr"], anchor, rel_tol=1e-6):
        return float(group["user_lr"])
    return anchor
