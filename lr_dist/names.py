"""The names of the groups, in the order of depth."""

from __future__ import annotations

import re

# `vision/layers.0/no_decay`: a tower, where there are several; the layer; a part of it.
_LAYER = re.compile(r"((?:[^/]+/)?(?:embeddings|layers\.\d+|head))(?:/|$)")


def group_names(num_layers: int, prefix: str = "") -> list[str]:
    """The N + 2 group names from the input to the output: `embeddings`, `layers.0` ... `layers.N-1`, `head`.

    Args:
        num_layers: N.
        prefix: a tower's name, put before each with a slash: `vision/layers.0`.
    """
    names = ["embeddings", *(f"layers.{i}" for i in range(num_layers)), "head"]
    return [f"{prefix}/{name}" for name in names] if prefix else names


def layer_of(group: str) -> str:
    """The layer that an optimizer's group belongs to: `vision/layers.0` of `vision/layers.0/no_decay`."""
    match = _LAYER.match(group)
    return match[1] if match else group.split("/")[0]


def is_layer(layer: str) -> bool:
    """Whether it is one of the transformer's layers, neither embeddings nor head."""
    return layer.rpartition("/")[2].startswith("layers.")
