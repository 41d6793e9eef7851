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

    An absolute distribution has one rate for a layer. It stands for the layer's reference group, and the others keep
    their ratio to it: LoRA+'s B trains at 16 times the rate of A, matrices under Muon at a rate of their own.

    Attributes:
        reference: layer -> the user's rate for which the distribution's stands.
        others: layer -> the user's further rates.
    """

    reference: dict[str, float]
    others: dict[str, tuple[float, ...]]

    def ratio(self, layer: str, user: float) -> float:
        """What the distribution's rate of `layer` is multiplied with for a group with the rate `user`."""
        reference = self.reference.get(layer)
        # Equal but for the digits that a float32 tensor loses; 0 is refused elsewhere.
        if reference is None or user == 0 or math.isclose(user, reference, rel_tol=1e-5):
            return 1.0
        return user / reference

    @classmethod
    def of(cls, optimizers: Sequence[tuple[Optimizer, Sequence[Any]]], placement: Placement) -> OwnRatios:
        """The ratios in optimizers, each with its schedulers, whose groups need not be split yet.

        The reference of a layer is the rate that is the optimizer's default `lr`, or else the lowest. Where only
        embeddings or head have several rates, because a user's border between backbone and head is another, it is the
        highest: the rate of the distribution is then exceeded nowhere.
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
        several = {layer: found for layer, found in rates.items() if len(found) > 1}
        within = [found for layer, found in several.items() if is_layer(layer)]
        common = {min(found & defaults or found) for found in within}
        # A layer all of whose weights are under Muon, where others have some under AdamW.
        beside = {rate for found in within for rate in found} - common
        alone = {layer: found for layer, found in rates.items() if len(found) == 1 and found <= beside}
        reference = {}
        for layer, found in several.items():
            known = found & defaults or found if is_layer(layer) else found & common
            reference[layer] = min(known) if known else max(found)
        reference |= dict.fromkeys(alone, min(common, default=math.nan))
        several |= alone
        others = {layer: tuple(sorted(found - {reference[layer]})) for layer, found in several.items()}
        return cls({layer: exact[rate] for layer, rate in reference.items()}, others)

    def describe(self) -> str:
        """In a sentence, what the rates stand for; empty without such groups."""
        if not self.others:
            return ""
        layer = next((layer for layer in self.others if is_layer(layer)), next(iter(self.others)))
        reference = self.reference[layer]
        kept = ", ".join(f"{rate:.3g} ({rate / reference:.3g} times)" for rate in self.others[layer])
        layers = f"{layer} and {len(self.others) - 1} more layer(s)" if len(self.others) > 1 else layer
        return (
            f"The optimizer's groups have different rates within {layers}. The rate of the distribution takes the "
            f"place of {reference:.3g}, and the groups with {kept} keep their ratio to it. If the distribution is "
            "meant to multiply each group's own rate, make it relative (relative=true)."
        )


def _digits(rate: Any) -> float:
    """A rate with as many digits as a float32 tensor keeps; nan for what is not a number."""
    return float(f"{as_float(rate):.6g}")


def user_rate(group: Mapping[str, Any], anchor: float) -> float:
    """The rate that the user gave the group; where an earlier call set `anchor`, the rate from before that."""
    # isclose, because a rate in a float32 tensor has lost digits.
    if "user_lr" in group and "layer_lr" in group and math.isclose(group["layer_lr"], anchor, rel_tol=1e-6):
        return float(group["user_lr"])
    return anchor
