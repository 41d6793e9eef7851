"""Splits the values that an unknown scheduler stores for each parameter group, by their shape and size (pure torch).

timm's schedulers store `base_values` and `warmup_steps`; others store lists, tuples, tensors and arrays under other
names. When the groups are split, such a value needs one entry for each new group. The meaning of an entry is inferred
from its number: one that is named a rate, or is at most the group's rate, is scaled with it; equal momenta, factors and
functions are copied; everything else is unchanged. A wrong guess leads to wrong rates, which `RateCheck` reports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lr_dist.checks import is_number

_RATE = re.compile(r"(^|_)(lr|lrs|rate|rates)(_|$)|learning_?rate", re.IGNORECASE)
_NO_RATE = re.compile(r"momentum|beta|gamma|factor|mult|decay|ratio|scale|fraction|power", re.IGNORECASE)
_SCHEDULER = re.compile(r"sched|warm|anneal|lr(?![a-z])", re.IGNORECASE)
_BASE = re.compile(r"base|init", re.IGNORECASE)
_METHODS = ("get_lr", "_get_lr", "get_last_lr", "_get_closed_form_lr")


def is_scheduler(value: Any, optimizer: Any) -> bool:
    """Whether `value` is a scheduler of `optimizer`: one of torch, or an object with a scheduler's methods or name."""
    attributes = getattr(value, "__dict__", None)
    if type(attributes) is not dict or not _is_or_wraps(attributes.get("optimizer"), optimizer):
        return False
    if isinstance(value, LRScheduler):
        return True
    if isinstance(value, torch.nn.Module):
        return False
    # An object with groups is an optimizer, or a wrapper around one.
    if isinstance(value, Optimizer) or hasattr(value, "param_groups") or not callable(getattr(value, "step", None)):
        return False
    return any(hasattr(value, name) for name in _METHODS) or bool(_SCHEDULER.search(type(value).__name__))


def _is_or_wraps(value: Any, optimizer: Any) -> bool:
    # Lightning and accelerate wrap optimizers.
    return value is not None and (value is optimizer or getattr(value, "optimizer", None) is optimizer)


def nested_schedulers(scheduler: Any) -> list[Any]:
    """The schedulers in a scheduler's attributes, and in lists and maps there, in this order; one level only."""
    optimizer = getattr(scheduler, "optimizer", None)
    nested = list(getattr(scheduler, "_schedulers", ()))
    for value in getattr(scheduler, "__dict__", {}).values():
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
        nested.extend(part for part in parts if is_scheduler(part, optimizer) and part not in nested)
    return nested


def base_values(scheduler: Any, rates: Sequence[Any], default: Any) -> list[float] | None:
    """The base rates from which an unknown scheduler computes the groups' rates; None if it stores none.

    They are recognised as a list with one number for each group, all in the same proportion to the groups' rates, that
    is named base or initial or contains only the optimizer's default rate.

    Args:
        scheduler: an unknown scheduler, which may have set the rates of its first step already.
        rates: the groups' current rates.
        default: the optimizer's default rate.
    """
    for name, values in vars(scheduler).items():
        numbers = values.tolist() if isinstance(values, torch.Tensor) or _is_array(values) else values
        if not isinstance(numbers, (list, tuple)) or len(numbers) != len(rates):
            continue
        if not all(isinstance(number, float) and number > 0 for number in numbers):
            continue
        factors = [float(rate) / number for rate, number in zip(rates, numbers, strict=True)]
        meant = all(number == default for number in numbers) or bool(_BASE.search(name))
        if meant and max(factors) <= 1 and max(factors) - min(factors) <= 1e-6 * max(factors):
            return list(numbers)
    return None


def split_group_values(
    scheduler: Any,
    *,
    parents: Sequence[int],
    anchors: Sequence[float],
    scale: Callable[[int, Any], Any],
    known: Sequence[str] = (),
) -> None:
    """Split, in place, every value that a scheduler stores for each group, so that each new group has an entry.

    Args:
        scheduler: an unknown scheduler.
        parents: for each new group, the index of the old one.
        anchors: the rate of each old group.
        scale: (index of a new group, rate of its old group) -> its own rate.
        known: names of attributes that are already split.
    """
    split = _Splitter(parents, anchors, scale, getattr(scheduler, "optimizer", None))
    state = scheduler.__dict__
    split.mapping(state, skipped=("optimizer", *known))


class _Splitter:
    def __init__(
        self, parents: Sequence[int], anchors: Sequence[float], scale: Callable[[int, Any], Any], optimizer: Any
    ) -> None:
        self._parents, self._anchors, self._scale = parents, anchors, scale
        self._optimizer = optimizer

    def mapping(self, values: MutableMapping[Any, Any], skipped: Sequence[str] = (), name: str = "") -> None:
        """Split the values of a map; a map with the keys 0, 1, ... is treated as a list."""
        if values and list(values) == list(range(len(self._anchors))):
            new = self.value(name, list(values.values()))
            if len(new) == len(self._parents):
                values.clear()
                values.update(enumerate(new))
            return
        for key, value in list(values.items()):
            if key in skipped:
                continue
            if type(value) is dict:
                self.mapping(value, name=str(key))
            else:
                new = self.value(str(key), value)
                if new is not value:
                    values[key] = new

    def value(self, name: str, values: Any) -> Any:
        """`values` with an entry for each new group; the same object if it has no entry for each old group."""
        size = len(self._anchors)
        if isinstance(values, torch.Tensor) or _is_array(values):
            if values.ndim == 0 or len(values) != size or isinstance(values, torch.nn.Parameter):
                return values
            new = self._entries(name, values.tolist())
            if new is None:
                return values
            if isinstance(values, torch.Tensor):
                return torch.tensor(new, dtype=values.dtype, device=values.device)
            array = values[[0] * len(new)]
            array[:] = new
            return array
        if type(values) not in (list, tuple) or len(values) != size:
            return values
        # A copy of the optimizer's list of groups, made before the split.
        if all(isinstance(entry, dict) and "params" in entry for entry in values):
            return type(values)(self._optimizer.param_groups)
        new = self._entries(name, values)
        return values if new is None else type(values)(new)

    def _entries(self, name: str, values: Sequence[Any]) -> list[Any] | None:
        """The new groups' entries; None if `values` does not hold one entry for each group."""
        copied = [values[parent] for parent in self._parents]
        if all(callable(value) and not hasattr(value, "step") for value in values):
            return copied
        # A schedule of the weight decay.
        groups = getattr(self._optimizer, "param_groups", ())
        if len(groups) == len(copied) and all(
            isinstance(value, float) and value == group.get("weight_decay") != group.get("lr")
            for value, group in zip(copied, groups, strict=True)
        ):
            return copied
        numbers = [list(_numbers(value)) for value in values]
        if any(None in entry or not entry for entry in numbers):
            return None
        if self._are_rates(name, numbers):
            return [_each(value, partial(self._scale, index)) for index, value in enumerate(copied)]
        # A single number that is not a rate, as in [30], may be a list of milestones.
        momenta = bool(_NO_RATE.search(name))
        alike = len(values) > 1 and all(entry == numbers[0] for entry in numbers)
        return copied if momenta or alike else None

    def _are_rates(self, name: str, numbers: Sequence[Sequence[Any]]) -> bool:
        # Whole numbers are steps or epochs.
        if not all(isinstance(number, float) or number == 0 for entry in numbers for number in entry):
            return False
        if _RATE.search(name):
            return True
        below = all(
            0 <= number <= anchor * (1 + 1e-6)
            for entry, anchor in zip(numbers, self._anchors, strict=True)
            for number in entry
        )
        return below and not _NO_RATE.search(name)


def _is_array(value: Any) -> bool:
    # Compared by name, because numpy need not be installed.
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _numbers(value: Any) -> Iterator[float | int | None]:
    """The numbers in an entry; None for each part that is not a number."""
    if isinstance(value, torch.Tensor):
        yield from value.reshape(-1).tolist()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif is_number(value):
        yield value
    else:
        yield None


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with every number in it changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(_each(item, change) for item in value)
    return change(value)
