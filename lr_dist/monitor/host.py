"""What the monitor needs to know of the Trainer that it runs in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Host:
    """Where a model is scored.

    Attributes:
        device: where the model is.
        replicas: among how many processes the batches of a loader are divided.
        rank: which of them this one is.
        precision: makes the context in which the Trainer runs a forward pass (autocast).
        share: gives every process the first one's value.
    """

    device: torch.device
    replicas: int = 1
    rank: int = 0
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    share: Callable[[Any], Any] = lambda value: value


def moved_to(batch: Any, device: torch.device) -> Any:
    """`batch` with its tensors on `device`; what has no tensors stays as it is."""
    if hasattr(batch, "to"):  # tensors, BatchEncoding, PackedSequence, graphs
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: moved_to(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved_to(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved_to(value, device) for value in batch)
    return batch
