"""Leave out what the last layer computes for tokens that are not used.

A text's vector is its first token's last hidden state, so after the last layer's attention only that token's row
counts: the output projection and the feed-forward of all others, 9/12 of the layer's products, change nothing.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from lr_dist.layers import LayerMap
from lr_dist.sequence.fast.packing import active_packing
from lr_dist.sequence.fast.probe import same_states, trying_out, two_texts


def keep_first_token(backbone: nn.Module, layers: LayerMap) -> bool:
    """Reduce the last layer to the first token, in place, if the model is similar to BERT.

    Its `last_hidden_state` is then [batch, 1, hidden]. The model is tried with and without; it is not changed if the
    first token's state differs, or if the layer has no suitable module.

    Args:
        backbone: the model.
        layers: its parameters by depth.

    Returns:
        Whether it was reduced.
    """
    place = _after_attention(backbone, layers)
    if place is None:
        return False
    before = _first_state(backbone)
    handle = place.register_forward_pre_hook(_first_only)
    try:
        same = same_states(_first_state(backbone), before)
    except Exception:  # whatever a model's own code raises on a shape that it does not expect
        same = False
    if not same:
        handle.remove()
    return same


def _after_attention(backbone: nn.Module, layers: LayerMap) -> nn.Module | None:
    """The last layer's module that takes attention's output and the layer's input, as transformers' BertSelfOutput."""
    last = layers.groups[f"layers.{layers.num_layers - 1}"]
    found = [
        module
        for name, module in backbone.named_modules()
        if type(module).__name__.endswith("SelfOutput") and any(weight.startswith(f"{name}.") for weight in last)
    ]
    if len(found) != 1 or list(inspect.signature(found[0].forward).parameters) != ["hidden_states", "input_tensor"]:
        return None
    return found[0]


def _first_only(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    hidden_states, input_tensor = inputs
    packing = active_packing()
    if packing is not None:
        return packing.first(hidden_states), packing.first(input_tensor)
    return hidden_states[:, :1], input_tensor[:, :1]


def _first_state(backbone: Any) -> Tensor:
    with trying_out(backbone):
        return backbone(**two_texts(backbone)).last_hidden_state[:, 0]
