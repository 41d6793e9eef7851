"""How many layers a model can have."""

from __future__ import annotations

from lr_dist.errors import LayerCountError, shown

MAX_LAYERS = 10_000


def check_num_layers(num_layers: int) -> None:
    """Raise LayerCountError unless `num_layers` is a whole number from 1 to 10,000."""
    whole = isinstance(num_layers, int) and not isinstance(num_layers, bool)
    if not whole or not 1 <= num_layers <= MAX_LAYERS:
        raise LayerCountError(
            f"num_layers must be a whole number from 1 to {MAX_LAYERS}, not {shown(num_layers)}. "
            "`lr-dist layers --model NAME` shows how many layers a model has."
        )
