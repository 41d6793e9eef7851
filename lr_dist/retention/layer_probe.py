"""Which layer did the forgetting: exchange one layer's weights and score the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.checks import as_float
from lr_dist.errors import ConfigurationError, ScoringError, UnsupportedWeightsError, shown
from lr_dist.layers import Overrides, Stacks
from lr_dist.retention.weights import Pair, Weights, pairs, tensors_of


@dataclass(frozen=True)
class LayerProbe:
    """The score of a model with the weights of one layer exchanged.

    Attributes:
        score: with the model's own weights.
        all_exchanged: with the weights of all layers exchanged.
        exchanged: layer -> score with the weights of this layer alone exchanged.
    """

    score: float
    all_exchanged: float
    exchanged: dict[str, float]

    @property
    def gain(self) -> dict[str, float]:
        """Layer -> what the score gains by the exchange of this layer; negative if it loses."""
        return {layer: value - self.score for layer, value in self.exchanged.items()}


def layer_probe(
    model: nn.Module,
    weights: Weights,
    score: Callable[[nn.Module], Any],
    *,
    layers: Sequence[str] | None = None,
    overrides: Overrides | None = None,
    stacks: Stacks | None = None,
) -> LayerProbe:
    """Exchange each layer's weights in turn, and score the model.

    With the model after a fine-tune and the weights before it, the gain is what the old score gets back when one layer
    returns to where it was: which layer did the forgetting. With the model before and the weights after, it is what
    the change of this layer alone costs. The layers' gains need not add up to that of all: layers interact.

        probe = layer_probe(model, before, lambda model: accuracy(model, old_task))
        max(probe.gain, key=probe.gain.get)  # the layer that did most of the forgetting

    Afterwards the model has its own weights again, bit for bit, also if `score` fails. Costs one evaluation a layer,
    two more, and a copy of the weights.

    Args:
        model: scored; its weights are exchanged in place.
        weights: the other weights: a model of the same architecture, or its state dict.
        score: model -> number. It brings the model into evaluation mode itself.
        layers: only these (`layers.0`, `head`, ...); by default all that have parameters which differ.
        overrides: see `assign_layers`.
        stacks: see `assign_layers`.

    Raises:
        ModelMismatchError: weights of another architecture.
        ConfigurationError: a layer that the model does not have.
        UnsupportedWeightsError: weights that are sharded, quantised, or on the meta device.
        ScoringError: the score is no finite number.
        DivergedError: weights that are NaN or infinite.
        LRDistError: layers that cannot be found (see `assign_layers`).
    """
    _refuse_sharded(model)
    of_layer: dict[str, list[Pair]] = {}
    for pair in pairs(weights, model, overrides=overrides, stacks=stacks):
        of_layer.setdefault(pair.group, []).append(pair)
    chosen = _chosen(of_layer, layers)
    own = _number(score(model))
    exchanged = {}
    for layer in chosen:
        with _exchanged(of_layer[layer]):
            exchanged[layer] = _number(score(model))
    with _exchanged([pair for each in of_layer.values() for pair in each]):
        everything = _number(score(model))
    return LayerProbe(own, everything, exchanged)


@contextmanager
def _exchanged(parameters: Sequence[Pair]) -> Iterator[None]:
    """The model with `before` in place of `after`; then with its own weights again."""
    kept: list[Tensor] = []
    try:
        with torch.no_grad():
            for pair in parameters:
                kept.append(pair.after.clone())
                pair.after.copy_(pair.before)  # shares the parameter's memory
        yield
    finally:
        with torch.no_grad():
            for pair, own in zip(parameters, kept, strict=False):
                pair.after.copy_(own)


def _chosen(of_layer: dict[str, list[Pair]], layers: Sequence[str] | None) -> list[str]:
    if layers is None:
        return [
            layer
            for layer, parameters in of_layer.items()
            if any(not torch.equal(pair.before.to(pair.after), pair.after) for pair in parameters)
        ]
    unknown = [layers] if isinstance(layers, str) else [layer for layer in layers if layer not in of_layer]
    if unknown:
        raise ConfigurationError(f"The layers to probe are a list of {', '.join(of_layer)}, not {shown(unknown[0])}.")
    return list(layers)


def _number(value: Any) -> float:
    number = as_float(value)
    if not math.isfinite(number):
        raise ScoringError(f"The score must be one finite number, not {shown(value)}. Look at the score function.")
    return number


def _refuse_sharded(model: nn.Module) -> None:
    sharded = next((name for name, weight in tensors_of(model).items() if hasattr(weight, "full_tensor")), None)
    if sharded is not None:
        raise UnsupportedWeightsError(
            f"{sharded} is sharded over processes (FSDP2). Load the whole model in one process and probe it there."
        )
