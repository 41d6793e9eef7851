"""Which weights of the informed model are carried over to the task."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lr_dist.errors import ConfigurationError
from lr_dist.layers import assign_layers

ALL, HEAD, BACKBONE = "all", "head", "backbone"


def groups_of(part: str, num_layers: int) -> list[str]:
    """The groups of a part: all, head, backbone, lowest-K (embeddings too), highest-K (head too); K may be `half`.

    Raises:
        ConfigurationError: more layers than the model has.
    """
    groups = ["embeddings", *(f"layers.{index}" for index in range(num_layers)), "head"]
    if part in (ALL, HEAD, BACKBONE):
        return {ALL: groups, HEAD: groups[-1:], BACKBONE: groups[:-1]}[part]
    end, _, text = part.partition("-")
    count = num_layers // 2 if text == "half" else int(text)
    if count > num_layers:
        raise ConfigurationError(f"{part}: the model has {num_layers} layers. Give at most {num_layers}.")
    return groups[: count + 1] if end == "lowest" else groups[num_layers - count + 1 :]


def transfer(module: nn.Module, weights: Mapping[str, Tensor], part: str) -> list[str]:
    """Copy the weights of a part into the module; all others stay.

    Args:
        module: with heads and backbone as pre-trained.
        weights: name -> tensor of the trained module. Heads that `module` does not have are left out.
        part: see `groups_of`.

    Returns:
        The names of the parameters that were copied.
    """
    layers = assign_layers(module)
    names = [name for group in groups_of(part, layers.num_layers) for name in layers.groups[group]]
    parameters = dict(module.named_parameters(remove_duplicate=False))
    copied = [name for name in names if name in weights]
    for name in copied:
        parameters[name].data.copy_(weights[name])
    return copied
