"""Run a model in the middle of its training so that the training does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from lr_dist._callback.random_state import RandomState, loader_generators

_SEED = 0


@contextmanager
def undisturbed(module: nn.Module, device: torch.device, loaders: Iterable[Any]) -> Iterator[None]:
    """Evaluation mode, no gradients, and random numbers of its own.

    Afterwards every submodule is in the mode in which it was, and the generators of Python, numpy, torch, the device
    and the given loaders continue where they were. Inside, the random numbers are the same each time and in every
    process: a shuffled loader has one order, and an augmented one the same augmentations.

    Args:
        module: the model, as the strategy has wrapped it.
        device: where it is.
        loaders: what is read inside.
    """
    generators = loader_generators(loaders)
    before = RandomState.now(device, generators)
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        _seed(device)
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        reshard(module)
        before.restore(device, generators)


def reshard(module: nn.Module) -> None:
    """Let FSDP2 hold its shards again: after a forward pass without a backward pass the root's weights stay whole."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _seed(device: torch.device) -> None:
    # torch.manual_seed would seed every device, and only this one is restored.
    random.seed(_SEED)
    np.random.seed(_SEED)
    torch.default_generator.manual_seed(_SEED)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(_SEED)
