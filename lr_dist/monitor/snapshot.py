"""A copy of a model's weights that can be put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.layers import clean_name
from lr_dist.methods.anchor import Anchor


class Snapshot:
    """All parameters and buffers, where the model holds them: under FSDP2 each process keeps its shards."""

    def __init__(self) -> None:
        self._copy = Anchor()

    @classmethod
    def of(cls, module: nn.Module) -> Snapshot:
        """Copy the weights."""
        snapshot = cls()
        snapshot.adopt(module)
        return snapshot

    def adopt(self, module: nn.Module) -> None:
        """Bring weights of a checkpoint to the devices and the sharding of `module`."""
        self._copy.hold(_tensors(module))

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Put the weights back into `module`, in place."""
        for name, tensor in _tensors(module):
            if name in self._copy:
                tensor.detach().copy_(self._copy[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors on the CPU by clean name. Under FSDP2 every process has to call it."""
        return self._copy.state_dict()

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Snapshot:
        """The inverse of `state_dict`; call `adopt` before `restore`."""
        snapshot = cls()
        snapshot._copy.load_state_dict(state)
        return snapshot


def _tensors(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for named in (module.named_parameters(), module.named_buffers()):
        for name, tensor in named:
            yield clean_name(name), tensor
