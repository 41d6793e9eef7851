"""The check of a number of layers."""

from __future__ import annotations

from lr_dist.checks import check_whole
from lr_dist.errors import LayerCountError

MAX_LAYERS = 10_000


def check_num_layers(num_layers: int) -> None:
    """Raise LayerCountError unless `num_layers` is a whole number from 1 to 10,000."""
    hint = "`assign_layers(model).num_layers` is the number of layers of a model."
    check_whole("num_layers", num_layers, 1, MAX_LAYERS, error=LayerCountError, hint=hint)
