"""Checks that an optimizer's groups can be split by layer, and that their rates are finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.optim import LBFGS, Optimizer

from lr_dist._regroup.holders import MAX_NAMES
from lr_dist._regroup.placement import Placement, parameters_of
from lr_dist.checks import as_float
from lr_dist.errors import InvalidRateError, OptimizerCoverageError, UnsupportedOptimizerError, shown


def check_optimizer(optimizer: Optimizer, placement: Placement) -> None:
    kind = type(optimizer).__name__
    if isinstance(optimizer, LBFGS):
        raise UnsupportedOptimizerError(
            "LBFGS supports only one parameter group, so layers cannot have different rates. Use another optimizer, "
            "such as torch.optim.AdamW."
        )
    # Compared by name, because importing it needs torch.distributed, which not every build of torch has.
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        raise UnsupportedOptimizerError(
            "ZeroRedundancyOptimizer shards its parameter groups when it is built, so they cannot be split by layer "
            "afterwards. Use FSDP to shard the optimizer's state, or a plain optimizer."
        )
    inner = [o for value in vars(optimizer).values() for o in _optimizers_in(value)]
    # A property that joins the groups of several optimizers returns a new list each time.
    joined = optimizer.param_groups is not optimizer.param_groups
    if joined or any(o.param_groups is not optimizer.param_groups for o in inner):
        kinds = ", ".join(type(o).__name__ for o in inner) or "others"
        raise UnsupportedOptimizerError(
            f"{kind} passes its parameters to inner optimizers with their own groups ({kinds}), so rates in its groups "
            "would have no effect. Use one optimizer for all parameters, such as AdamW; or build the inner optimizers "
            "from lr_dist.param_groups, and let nothing else split them."
        )
    if any(group.get("lr") is None for group in optimizer.param_groups):
        raise UnsupportedOptimizerError(
            f"{kind} has a parameter group without a learning rate (`lr` is missing or None), so it cannot have one "
            "for each layer. Give it a rate (Adafactor: lr=..., relative_step=False)."
        )
    unplaced = [p for p in parameters_of(optimizer) if id(p) not in placement.layer]
    if unplaced:
        titles = [placement.name.get(id(p), f"(not in the module, shape {tuple(p.shape)})") for p in unplaced]
        more = f" and {len(titles) - MAX_NAMES} more" if len(titles) > MAX_NAMES else ""
        remedy = 'Give them an optimizer of their own, or place them: overrides={"regex": "head"}.'
        if all(id(p) not in placement.name for p in unplaced):
            remedy = "Make the optimizer from the parameters of the model that is trained, after the last change to it."
        raise OptimizerCoverageError(
            f"{kind}, which holds the transformer's layers, also holds parameters without a depth: "
            f"{', '.join(titles[:MAX_NAMES])}{more}. {remedy}"
        )


def check_rates(group: Mapping[str, Any], keys: Sequence[str], owner: str) -> None:
    """Raise InvalidRateError unless each of the group's rates is a finite number.

    Not `>= 0`: the last step of torch's OneCycleLR can be at -1e-17, and a user's lambda may be negative.
    """
    for key in keys:
        value = group.get(key, 0.0)
        if not math.isfinite(as_float(value)):
            raise InvalidRateError(f"{owner} has {key}={shown(value)}. A rate is a finite number of 0 or more.")


def _optimizers_in(value: Any) -> Iterator[Optimizer]:
    if isinstance(value, Optimizer):
        yield value
    elif isinstance(value, Mapping):
        yield from (item for item in value.values() if isinstance(item, Optimizer))
    elif isinstance(value, (list, tuple, set)):
        yield from (item for item in value if isinstance(item, Optimizer))
