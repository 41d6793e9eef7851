"""Named tensors as one vector, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lr_dist.errors import InfluenceError, listed


@dataclass(frozen=True)
class Layout:
    """Which entries of a vector belong to which named tensor.

    Attributes:
        shapes: name -> shape, in the order of the vector.
    """

    shapes: Mapping[str, torch.Size]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Layout:
        """The layout of these tensors.

        Raises:
            InfluenceError: no tensors, or tensors that are not float64: in float32, the second derivatives of small
                models are not accurate enough to be inverted.
        """
        if not parameters:
            raise InfluenceError("A stage without parameters has no influence. Give its parameters by name.")
        other = [name for name, value in parameters.items() if value.dtype != torch.float64]
        if other:
            raise InfluenceError(
                f"Exact influence is computed in float64; {listed(other)} are not. Convert them: value.double()."
            )
        return cls({name: value.shape for name, value in parameters.items()})

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    def vector(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tensors as one vector [size]."""
        return torch.cat([parameters[name].reshape(-1) for name in self.shapes])

    def tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """The named tensors of a vector [size]."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def places(self, names: Collection[str]) -> Tensor:
        """Positions in the vector of the tensors of these names, int64, in the order of `names`."""
        starts, position = {}, 0
        for name, shape in self.shapes.items():
            starts[name] = position
            position += shape.numel()
        parts = [torch.arange(starts[name], starts[name] + self.shapes[name].numel()) for name in names]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def rest(self, names: Sequence[str]) -> list[str]:
        """The other names."""
        return [name for name in self.shapes if name not in names]
