"""Evaluation mode for a while, as it was before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards every part is in the mode in which it was."""
    training = [part for module in modules for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The parts whose statistics a further pass in training mode would change."""
    return [part for part in module.modules() if isinstance(part, _BATCH_NORMS)]
