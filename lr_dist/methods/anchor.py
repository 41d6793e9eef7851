"""The weights that a method compares with: a copy, kept as each process holds its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import ConfigurationError


class Anchor:
    """Copies of some parameters, by name.

    Under FSDP2 each process keeps its shard. Checkpoints hold whole tensors, so they load under another strategy and
    another number of processes.
    """

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}
        self._whole: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name]

    def __setitem__(self, name: str, weight: Tensor) -> None:
        """Replace what is held; as each process holds the parameter."""
        self._whole.pop(name, None)
        self._weights[name] = weight

    def names(self) -> set[str]:
        """The parameters that are held or will be taken from a checkpoint."""
        return {*self._weights, *self._whole}

    @torch.no_grad()
    def hold(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Copy the parameters that are not held yet; those of a checkpoint take the place of a copy.

        Args:
            parameters: name (`clean_name`) and parameter, as the strategy has wrapped it.

        Raises:
            ConfigurationError: a parameter has another shape than the one that is held: it is another model.
        """
        for name, parameter in parameters:
            if name in self._whole:
                self._weights[name] = _like(parameter, name, self._whole.pop(name))
            elif name not in self._weights:
                self._weights[name] = parameter.detach().clone()
            elif self._weights[name].shape != parameter.shape:
                raise _other_model(name, self._weights[name], parameter)
            elif hasattr(self._weights[name], "full_tensor") != hasattr(parameter, "full_tensor"):
                # The next stage runs under another strategy.
                self._weights[name] = _like(parameter, name, _whole(self._weights[name]))
            elif self._weights[name].device != parameter.device:  # the next stage runs somewhere else
                self._weights[name] = self._weights[name].to(parameter.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors on the CPU. Every process has to call it: shards are gathered."""
        return {**self._whole, **{name: _whole(weight).cpu() for name, weight in self._weights.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Use these weights as soon as `hold` is told of their parameters."""
        self._weights, self._whole = {}, dict(state)


def _whole(weight: Any) -> Tensor:
    """The tensor of which a DTensor (FSDP2) is a part."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _like(parameter: Any, name: str, whole: Tensor) -> Tensor:
    if whole.shape != parameter.shape:
        raise _other_model(name, whole, parameter)
    weight = whole.to(device=parameter.device, dtype=parameter.dtype, copy=True)
    if not hasattr(parameter, "full_tensor"):
        return weight
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(weight, parameter.device_mesh, parameter.placements)


def _other_model(name: str, held: Tensor, parameter: Tensor) -> ConfigurationError:
    return ConfigurationError(
        f"The method holds the weights of another model: {name} has the shape {tuple(held.shape)} there, and "
        f"{tuple(parameter.shape)} here. Make a new instance for a new model."
    )
