"""The depth of each parameter object of a module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from lr_dist.layers import LayerMap


@dataclass(frozen=True)
class Placement:
    """The depth of each parameter object of a module.

    Attributes:
        layer: `id(parameter)` -> group name.
        name: `id(parameter)` -> the parameter's name.
        order: the group names in the order of depth.
        layer_map: the map from which these were made.
    """

    layer: dict[int, str]
    name: dict[int, str]
    order: tuple[str, ...]
    layer_map: LayerMap

    @classmethod
    def of(cls, module: nn.Module, layer_map: LayerMap) -> Placement:
        """The placement of `module`'s parameters; `layer_map` must be made from the same module."""
        # Duplicates are kept, because a tied weight has several names, of which the map holds one.
        names = [(name, id(p)) for name, p in module.named_parameters(remove_duplicate=False)]
        layer_of = layer_map.group_of
        layer = {key: layer_of[name] for name, key in names if name in layer_of}
        return cls(layer, {key: name for name, key in reversed(names)}, tuple(layer_map.groups), layer_map)


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
