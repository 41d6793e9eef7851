"""The weights that a monitor compares with: those at the start of the fit, or given ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from lr_dist.errors import ModelMismatchError
from lr_dist.layers import clean_name
from lr_dist.retention.weights import Weights, tensors_of


class Reference:
    """Weights of an earlier model, under the names that they have in the model in training.

    Args:
        weights: a model, or a state dict. It is copied.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = {name: tensor.cpu().clone() for name, tensor in tensors_of(weights).items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of names and weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._weights.items()):
            digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def of(self, module: nn.Module) -> dict[str, Tensor]:
        """The weights by the module's clean names, whatever attribute holds the model there.

        Raises:
            ModelMismatchError: parameters of the module that the reference lacks, or of another shape.
        """
        wanted = {clean_name(name): parameter for name, parameter in module.named_parameters()}
        prefix = self._prefix(wanted)
        named = {prefix + name: tensor for name, tensor in self._weights.items()}
        missing = [name for name in wanted if name not in named]
        other = [name for name, p in wanted.items() if name in named and named[name].shape != p.shape]
        if missing or other:
            names = missing or other
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelMismatchError(
                f"The reference is not of the architecture that is trained: {', '.join(names[:3])}{more} "
                f"{'is missing in it' if missing else 'has another shape there'}. Give the model that the training "
                "began with, or leave `reference` out to compare with the weights at the start."
            )
        return {name: named[name] for name in wanted}

    def _prefix(self, wanted: Mapping[str, object]) -> str:
        """What stands before the reference's names in the module: `model.` in most LightningModules."""
        first = next(iter(self._weights), "")
        ends = [name.removesuffix(first) for name in wanted if name == first or name.endswith(f".{first}")]
        return max(ends, key=lambda prefix: sum(prefix + name in wanted for name in self._weights), default="")
