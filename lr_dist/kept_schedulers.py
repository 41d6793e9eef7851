"""Finds schedulers that a module holds and steps itself, without returning them to the training loop (pure torch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from lr_dist.group_values import is_scheduler, nested_schedulers

# How deep to search: an attribute, a list or map in it, or an attribute of a plain helper object.
_DEPTH = 4
# Longer containers are taken for data, and not searched.
_LONGEST = 256
_BUILTIN = (str, bytes, int, float, complex, bool, type(None), type, torch.Tensor, torch.dtype, torch.device)


def kept_schedulers(owners: Iterable[Any], optimizer: Optimizer, known: Iterable[Any] = ()) -> list[Any]:
    """The schedulers of `optimizer` that are reachable from the attributes of `owners` and their submodules.

    Args:
        owners: objects that may step a scheduler: modules, callbacks.
        optimizer: the optimizer of the schedulers.
        known: schedulers to leave out, with those nested in them.

    Returns:
        Each scheduler once, in the order of the attributes; those nested in another one are left out.
    """
    seen: set[int] = set()
    schedulers: list[Any] = []
    for owner in owners:
        parts = owner.modules() if isinstance(owner, torch.nn.Module) else [owner]
        for part in parts:
            for value in vars(part).values():
                _search(value, optimizer, _DEPTH, seen, schedulers)
    left_out = {id(inner) for scheduler in [*known, *schedulers] for inner in _all_within(scheduler)}
    left_out |= {id(scheduler) for scheduler in known}
    return [scheduler for scheduler in schedulers if id(scheduler) not in left_out]


def _all_within(scheduler: Any) -> Iterator[Any]:
    for inner in nested_schedulers(scheduler):
        yield inner
        yield from _all_within(inner)


def _search(value: Any, optimizer: Optimizer, depth: int, seen: set[int], found: list[Any]) -> None:
    if isinstance(value, _BUILTIN) or id(value) in seen:
        return
    seen.add(id(value))
    if is_scheduler(value, optimizer):
        found.append(value)
    elif depth:
        for part in _parts(value):
            _search(part, optimizer, depth - 1, seen, found)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values() if len(value) <= _LONGEST else ()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value if len(value) <= _LONGEST else ()
    # Models, optimizers and objects of libraries are not searched: they may be large, or compute when they are read.
    kind = type(value)
    if isinstance(value, (torch.nn.Module, Optimizer)) or kind.__module__.split(".")[0] in _LIBRARIES:
        return ()
    attributes = getattr(value, "__dict__", None)
    return list(attributes.values()) if type(attributes) is dict and not callable(value) else ()


_LIBRARIES = (
    "accelerate",
    "builtins",
    "collections",
    "datasets",
    "lightning",
    "lightning_fabric",
    "logging",
    "lr_dist",
    "numpy",
    "pandas",
    "pytorch_lightning",
    "tokenizers",
    "torch",
    "torchmetrics",
    "transformers",
)
