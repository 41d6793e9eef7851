"""Optimizer parameter groups with a learning rate for each layer, for plain PyTorch and any training loop."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lr_dist._distribution.sanity import rate_warnings
from lr_dist.checks import check_finite
from lr_dist.distribution import LRDistribution, allow_distributions_in_checkpoints
from lr_dist.errors import InvalidGroupPrefixError, InvalidNoDecayError, InvalidRateError, NothingToTrainError, shown
from lr_dist.layers import LayerMap, Overrides, Stacks, assign_layers, clean_name
from lr_dist.names import NO_DECAY
from lr_dist.presets import resolve_plan
from lr_dist.rate_plan import Phases, RatePlan, first_rates

allow_distributions_in_checkpoints()

_FROZEN_BY_US = "_lr_dist_frozen"


def param_groups(
    model: nn.Module,
    distribution: str | Path | Mapping[str, Any] | LRDistribution | Phases | RatePlan,
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] | None = None,
    overrides: Overrides | None = None,
    stacks: Stacks | None = None,
    prefix: str | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer, one for each layer, in the order of depth.

    Parameters of layers with rate 0 are frozen (`requires_grad_(False)`) and left out, like those that were frozen
    before; a layer without trainable parameters has no group.

        optimizer = torch.optim.AdamW(param_groups(model, "decay:lr=4e-4,factor=0.7", weight_decay=0.01))

    Args:
        model: a transformer, or a module that contains one.
        distribution: a preset's name, a YAML path, `family:key=value,...`, or a distribution. Groups do not change
            over time, so of a rate plan (`A @ 20% > B | C`) they get the first phase of the first stage (A; a gradual
            phase with all its layers). For the second stage pass `resolve_plan(plan).stage(1)`.
        lr: the optimizer's own rate; a relative distribution multiplies it, an absolute one does not use it.
        weight_decay: weight decay of the decayed parameters. If it is above 0, each layer has a second group
            `NAME/no_decay` with weight decay 0.
        no_decay: regexes (`re.search` on the parameter's name, without prefixes of wrappers) of the parameters
            without weight decay. By default those with fewer than two dimensions: biases and the weights of norms.
        overrides: ordered regex -> group name, for parameters that no rule places (see `assign_layers`).
        stacks: submodules that each have their own depth (see `assign_layers`); groups are called
            `vision_model/layers.0`, and each submodule gets the distribution for its own number of layers.
        prefix: prefix of the group names, as `vision` in `vision/layers.0`, for an optimizer with groups from several
            calls.

    Returns:
        Dicts with `name` (`embeddings`, `layers.0`, ..., `head`), `params`, `lr` and `weight_decay`.

    Warns:
        RateRangeWarning: a rate above 0.1 or below 1e-8.
        StuckLayersWarning: a layer with less than 1e-3 of the rate of the fastest layer below the head.

    Raises:
        InvalidRateError: a relative distribution without `lr`, or a rate or weight decay that is not a number >= 0.
        InvalidGroupPrefixError: a `prefix` that is empty, has a slash, or is given together with `stacks`.
        InvalidNoDecayError: a `no_decay` regex that is malformed or matches no parameter.
        NothingToTrainError: no trainable parameter is left.
        LRDistError: what `assign_layers` and `resolve_plan` raise.
    """
    given = resolved = first_rates(resolve_plan(distribution).stage(0))
    weight_decay = check_finite("weight_decay", weight_decay, error=InvalidRateError)
    if resolved.relative:
        if lr is None:
            raise InvalidRateError(
                f"The distribution {resolved} is relative, so it multiplies the optimizer's own rate. Pass that rate: "
                "param_groups(model, distribution, lr=...)."
            )
        resolved = resolved.absolute(check_finite("lr", lr, error=InvalidRateError))
    if prefix is not None and (not isinstance(prefix, str) or not prefix or "/" in prefix or stacks is not None):
        raise InvalidGroupPrefixError(
            f"prefix is a text without a slash, such as 'vision', not {shown(prefix)}; it cannot be combined with "
            "`stacks`, which has its own names: stacks={'vision': 'vision_model', ...}."
        )
    layer_map = assign_layers(model, overrides, stacks)
    rates = layer_map.rates(resolved.rates)
    parameters = dict(model.named_parameters())
    undecayed = _undecayed(parameters, no_decay)

    freeze_layers(model, layer_map, rates)
    groups: list[dict[str, Any]] = []
    for layer, names in layer_map.groups.items():
        trainable = [name for name in names if parameters[name].requires_grad]
        # Without weight decay the two groups would be equal.
        rest = [name for name in trainable if weight_decay and name in undecayed]
        decayed = [name for name in trainable if name not in set(rest)]
        for title, members, decay in ((layer, decayed, weight_decay), (layer + NO_DECAY, rest, 0.0)):
            if members:
                params = [parameters[name] for name in members]
                title = f"{prefix}/{title}" if prefix else title
                groups.append({"name": title, "params": params, "lr": rates[layer], "weight_decay": decay})
    if not groups:
        raise NothingToTrainError(
            f"No parameter of {type(model).__name__} is left to train: the distribution {resolved} and the "
            "requires_grad flags of the model freeze every layer. Give one layer a rate above 0."
        )
    for warning in rate_warnings(given, rates, base_lr=lr if given.relative else None):
        warnings.warn(warning, stacklevel=2)
    return groups


def freeze_layers(model: nn.Module, layer_map: LayerMap, rates: Mapping[str, float]) -> None:
    """Set requires_grad to False in the layers with rate 0.

    A layer with another rate that an earlier call froze becomes trainable again; parameters that the user froze stay
    frozen.

    Args:
        model: the module that `layer_map` was made from.
        layer_map: the layer of each parameter.
        rates: the rate of each layer.
    """
    layer_of = layer_map.group_of
    for name, parameter in model.named_parameters():
        layer = layer_of.get(name)
        if layer is None:
            continue
        if rates[layer] == 0 and parameter.requires_grad:
            parameter.requires_grad_(False)
            setattr(parameter, _FROZEN_BY_US, True)
        elif rates[layer] != 0 and getattr(parameter, _FROZEN_BY_US, False):
            parameter.requires_grad_(True)
            delattr(parameter, _FROZEN_BY_US)


def _undecayed(parameters: Mapping[str, nn.Parameter], patterns: Sequence[str] | None) -> set[str]:
    """Names of the parameters without weight decay."""
    if patterns is None:
        return {name for name, parameter in parameters.items() if parameter.ndim < 2}
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise InvalidNoDecayError(f"no_decay takes a list of regexes, not {shown(patterns)}: no_decay=[r'bias$'].")
    undecayed: set[str] = set()
    for pattern in patterns:
        try:
            matches = {name for name in parameters if re.search(pattern, clean_name(name))}
        # OverflowError: a{99999999999}; RecursionError: thousands of brackets.
        except (re.error, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidNoDecayError(
                f"no_decay holds {shown(pattern)}, which is not a regex: {shown(str(error))}."
            ) from error
        if not matches:
            raise InvalidNoDecayError(
                f"The no_decay regex {shown(pattern)} matches no parameter of the model. Its parameters are named like "
                f"{', '.join(list(parameters)[:3])}, ..."
            )
        undecayed |= matches
    return undecayed
