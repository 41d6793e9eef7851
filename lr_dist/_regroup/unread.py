"""Factors in parameter groups that no optimizer of torch reads, such as timm's `lr_scale`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.optim import Optimizer

# What a schedule of timm or of another library multiplies a group's rate by.
_SCALES = ("lr_scale", "lr_mult", "lr_multiplier", "lr_factor")


def unread_scales(optimizers: Sequence[Optimizer]) -> dict[str, list[float]]:
    """Key -> the different values of a factor in the parameter groups that no optimizer of torch reads."""
    scales: dict[str, list[float]] = {}
    for key in _SCALES:
        values = [
            group[key] for o in optimizers for group in o.param_groups if isinstance(group.get(key), (int, float))
        ]
        if any(value != 1 for value in values):
            scales[key] = sorted({float(value) for value in values})
    return scales


def describe_unread(scales: Mapping[str, Sequence[float]]) -> str:
    """A warning's text: the factors that `unread_scales` found have no effect."""
    shown_scales = "; ".join(f"{key!r}: {', '.join(f'{v:.3g}' for v in values[:6])}" for key, values in scales.items())
    return (
        f"Parameter groups of the optimizer carry factors ({shown_scales}) that no optimizer of torch reads, so "
        "they change no rate. The distribution replaces timm's layer_decay: leave that out when the groups are made. "
        "timm's own schedulers do read `lr_scale`, and would apply it on top of the distribution."
    )
