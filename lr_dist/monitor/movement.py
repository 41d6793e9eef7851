"""How far each layer has moved from its weights at the start of the fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import LayersNotFoundError, UnplacedParametersError
from lr_dist.layers import Overrides, Stacks, assign_layers, clean_name
from lr_dist.methods.anchor import Anchor


class Movement:
    """Relative L2 distance of every layer to a copy of its weights:

        |theta - theta_0| / |theta_0|, over all weights of the layer that are trained.

    Layers are the groups of `assign_layers`: `embeddings`, `layers.0`, ..., `head`. Memory: one copy of the trained
    weights; under FSDP2 each process keeps its shards.

    Args:
        overrides: regex -> group name for parameters that no rule places (see `assign_layers`).
        stacks: submodules that have a depth of their own each.
        frozen: weights that are not trained count, too.
    """

    def __init__(
        self, overrides: Overrides | None = None, stacks: Stacks | None = None, *, frozen: bool = False
    ) -> None:
        self._overrides = overrides
        self._stacks = stacks
        self._frozen = frozen
        self._start = Anchor()
        self._group_of: dict[str, str] = {}
        self._order: list[str] = []

    def place(self, module: nn.Module) -> None:
        """Find the layers.

        Raises:
            LayersNotFoundError, UnplacedParametersError: as `assign_layers`.
            LRDistError: other errors of `assign_layers`.
        """
        try:
            layer_map = assign_layers(module, self._overrides, self._stacks)
        except (LayersNotFoundError, UnplacedParametersError) as error:
            raise type(error)(f"{error} (For scores alone: movement=False.)") from error
        self._group_of = layer_map.group_of
        self._order = list(layer_map.groups)

    def hold(self, module: nn.Module) -> None:
        """Copy trainable weights that are not held yet; those of a checkpoint take the place of a copy."""
        if not self._group_of:
            self.place(module)
        chosen = ((name, p) for name, p in _named(module) if p.is_floating_point())
        self._start.hold((name, p) for name, p in chosen if p.requires_grad or self._frozen)

    @torch.no_grad()
    def by_layer(self, module: nn.Module) -> dict[str, float]:
        """Layer -> distance; a layer that is not trained, or was all 0 at the start, is left out.

        Under FSDP2 every process has to call it.
        """
        squares: dict[str, list[Any]] = {}
        for name, parameter in _named(module):
            if name not in self._start or name not in self._group_of:
                continue
            start = self._start[name].float()
            terms = [(parameter.detach().float() - start).square().sum(), start.square().sum()]
            group = self._group_of[name]
            # Of shards (DTensor) the sum is a partial one, which is reduced once a layer, in _number.
            squares[group] = [a + b for a, b in zip(squares[group], terms, strict=True)] if group in squares else terms
        found: dict[str, float] = {}
        for group in self._order:
            if group in squares:
                moved, at_start = map(_number, squares[group])
                if at_start:
                    found[group] = (moved / at_start) ** 0.5
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """The weights at the start, whole and on the CPU. Under FSDP2 every process has to call it."""
        return self._start.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Use these weights from the next `hold` on."""
        self._start.load_state_dict(state)


def _named(module: nn.Module) -> Any:
    return ((clean_name(name), parameter) for name, parameter in module.named_parameters())


def _number(value: Any) -> float:
    return float(value.full_tensor() if hasattr(value, "full_tensor") else value)
