"""Warnings about implausible rates of an optimizer that was split by layer (pure torch)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch.optim import ASGD, SGD, Optimizer

from lr_dist._callback.precision import STEPS_OF_THE_RATE, local, unchanged
from lr_dist._distribution.sanity import HIGHEST, LOWEST, brief, named, rate_warnings
from lr_dist.distribution import LRDistribution
from lr_dist.errors import StuckLayersWarning
from lr_dist.names import layer_of

# A step of SGD is rate x gradient: 0.1 is usual, and rates above 1 occur.
_HIGHEST_OF_SGD = 10.0
# Weights sampled from each parameter.
_SAMPLE = 4096
_MANY_DIGITS = (torch.float32, torch.float64)


def describe_left_out(methods: Sequence[str]) -> str:
    """Text of a PresetMethodsWarning."""
    calls = ", ".join(f"build_method({text!r})" for text in methods)
    return (
        f"The preset also has the methods {', '.join(methods)}, and only its rates are used here. Add them to the "
        f"Trainer's callbacks, callbacks=[LayerwiseLR(...), {calls}] (from lr_dist.methods import build_method), or "
        "pass get_preset(NAME).plan to use the rates alone."
    )


def optimizer_warnings(optimizer: Optimizer, distribution: LRDistribution) -> list[UserWarning]:
    """Warnings about rates out of range and layers that cannot move, to be issued once, before the first step.

    Args:
        optimizer: its groups were split by `regroup`.
        distribution: the distribution of the rates.
    """
    rates: dict[str, float] = {}
    users: dict[str, float] = {}
    for group in optimizer.param_groups:
        layer, rate = layer_of(group["name"]), float(group["layer_lr"])
        if rate >= rates.get(layer, -1.0):
            rates[layer], users[layer] = rate, float(group["user_lr"])
    moving = {layer: rate for layer, rate in rates.items() if rate}
    if not moving:
        return []
    fastest = max(moving, key=lambda layer: moving[layer])
    issues = rate_warnings(
        distribution,
        rates,
        base_lr=users[fastest] if distribution.relative else None,
        optimizer=type(optimizer).__name__,
        highest=highest_rate(optimizer),
        step_is_rate=isinstance(optimizer, STEPS_OF_THE_RATE),
    )
    return issues + _rounded_away(optimizer, rates)


def highest_rate(optimizer: Optimizer) -> float:
    """The rate above which something is probably wrong.

    0.1 for Adam and its kin; 10 for SGD; for other optimizers a hundred times the default in their signature, if
    that is more than 0.1 (Adadelta's and Prodigy's is 1).
    """
    if isinstance(optimizer, STEPS_OF_THE_RATE):
        return HIGHEST
    if isinstance(optimizer, (SGD, ASGD)):
        return _HIGHEST_OF_SGD
    parameter = inspect.signature(type(optimizer)).parameters.get("lr")
    default = None if parameter is None else parameter.default
    return max(HIGHEST, 100 * default) if isinstance(default, (int, float)) else HIGHEST


def _rounded_away(optimizer: Optimizer, rates: dict[str, float]) -> list[UserWarning]:
    """A warning for layers in which a step of the rate is rounded away in most weights, so that they never change.

    A weight w in float32 keeps its value if less than half its spacing, about |w| x 6e-8, is subtracted. bfloat16 and
    float16 are the task of `lost_steps`; rates below LOWEST have their own warning.
    """
    if not isinstance(optimizer, STEPS_OF_THE_RATE):
        return []
    same, total = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
    for group in optimizer.param_groups:
        layer, rate = layer_of(group["name"]), float(group["layer_lr"])
        for parameter in group["params"] if rate >= LOWEST else ():
            if parameter.requires_grad and parameter.dtype in _MANY_DIGITS:
                sample = _sample(parameter)
                same[layer] += unchanged(sample, rate)
                total[layer] += sample.numel()
    lost = [layer for layer in rates if 2 * same[layer] > total[layer]]
    if not lost:
        return []
    lowest = min(lost, key=lambda layer: rates[layer])
    return [
        StuckLayersWarning(
            f"A step at the learning rate of {named(lost, rates)} (the lowest: {brief(rates[lowest])}, {lowest}) is "
            "rounded away in most of the weights, which are too large for it: only weight decay changes them, "
            "however many steps are taken. Raise the rate, or freeze the layers with the rate 0."
        )
    ]


def _sample(parameter: torch.nn.Parameter) -> torch.Tensor:
    weight = local(parameter).reshape(-1)
    return weight[:: max(1, weight.numel() // _SAMPLE)]
