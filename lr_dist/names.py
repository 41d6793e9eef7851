"""The names of the groups, in the order of depth."""

from __future__ import annotations


def group_names(num_layers: int) -> list[str]:
    """The N + 2 group names from the input to the output: `embeddings`, `layers.0` ... `layers.N-1`, `head`."""
    return ["embeddings", *(f"layers.{i}" for i in range(num_layers)), "head"]
