"""Factors in parameter groups that neither torch nor Lightning reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.optim import Optimizer

# What a schedule of timm or of another library multiplies a group's rate by.
_SCALES = ("lr_scale", "lr_mult", "lr_multiplier", "lr_factor")


def unread_scales(optimizers: Sequence[Optimizer]) -> dict[str, list[float]]:
    """Factors in parameter groups that neither torch nor Lightning reads, by their key (timm: `lr_scale`)."""
    found: dict[str, list[float]] = {}
    for key in _SCALES:
        values = [
            group[key] for o in optimizers for group in o.param_groups if isinstance(group.get(key), (int, float))
        ]
        if any(value != 1 for value in values):
            found[key] = sorted({float(value) for value in values})
    return found


def describe_unread(scales: Mapping[str, Sequence[float]]) -> str:
    """What becomes of the factors that `unread_scales` found, in a sentence or two."""
    shown_scales = "; ".join(f"{key!r}: {', '.join(f'{v:.3g}' for v in values[:6])}" for key, values in scales.items())
    return (
        f"Parameter groups of the optimizer carry factors ({shown_scales}) that torch, Lightning and transformers do "
        "not read, so they change no rate. The rates of the distribution take the place of timm's layer_decay: leave "
        "it out when the groups are made. timm's own schedulers do read `lr_scale`, and would multiply by it beside "
        "the distribution."
    )
