"""How far each layer's weights lie from where they were: what a fine-tune changed, before any text is read."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lr_dist.layers import Overrides, Stacks
from lr_dist.retention.weights import Weights, pairs


def drift(
    before: Weights,
    after: Weights,
    *,
    like: nn.Module | None = None,
    overrides: Overrides | None = None,
    stacks: Stacks | None = None,
) -> dict[str, float]:
    """The relative L2 distance of every layer between two models of one architecture:

        |theta_after - theta_before| / |theta_before|, over all parameters of the layer.

    Sums are taken in float64, one parameter after the other, so it needs no memory beside the two models.

        drift(AutoModel.from_pretrained("before"), AutoModel.from_pretrained("after"))

    Args:
        before: the model as it was, or its state dict.
        after: the model as it is, or its state dict.
        like: a model of the architecture (on the meta device, too); needed only if both are state dicts.
        overrides: regex -> group, for parameters that no rule places (see `assign_layers`).
        stacks: submodules that each have a depth of their own (see `assign_layers`).

    Returns:
        `embeddings`, `layers.0`, ..., `head` -> distance, 0 or more. Layers without parameters, and those whose weights
        were all 0 before, are left out.

    Raises:
        ModelMismatchError: they are not of one architecture; the message names the parameters that differ.
        ConfigurationError: two state dicts without `like`.
        UnsupportedWeightsError: weights on the meta device, or quantised.
        DivergedError: weights that are NaN or infinite.
        LRDistError: layers that cannot be found (see `assign_layers`).
    """
    moved: dict[str, float] = {}
    size: dict[str, float] = {}
    for pair in pairs(before, after, like=like, overrides=overrides, stacks=stacks):
        moved[pair.group] = math.hypot(moved.get(pair.group, 0.0), _distance(pair.after, pair.before))
        size[pair.group] = math.hypot(size.get(pair.group, 0.0), _norm(pair.before))
    return {group: moved[group] / size[group] for group in size if size[group] > 0}


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(_wide(tensor)))


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(_wide(one) - _wide(other)))


def _wide(tensor: Tensor) -> Tensor:
    """In float64, where the device has it (Apple's GPUs do not)."""
    return (tensor.cpu() if tensor.device.type != "cpu" else tensor).double()
