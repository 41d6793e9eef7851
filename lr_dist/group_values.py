"""What a scheduler that lr-dist does not know keeps for each parameter group, found by shape and value (pure torch).

timm's schedulers keep `base_values` and `warmup_steps`, others keep lists, tuples, tensors and arrays by other names.
When the groups are split, such a value needs one entry for each new group. Nothing says what an entry means, so it is
read from the numbers: what is at most the group's rate, or is called a rate, is scaled with it; equal momenta, factors
and functions are copied; all else stays as it is. A wrong guess shows in the rates, which `RateCheck` compares.
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
    """Whether `value` sets the rates of `optimizer`: a scheduler of torch, or what has the shape and name of one."""
    own = getattr(value, "__dict__", None)
    if type(own) is not dict or not _is_or_wraps(own.get("optimizer"), optimizer):
        return False
    if isinstance(value, LRScheduler):
        return True
    if isinstance(value, torch.nn.Module):
        return False
    # A wrapper of an optimizer has groups.
    if isinstance(value, Optimizer) or hasattr(value, "param_groups") or not callable(getattr(value, "step", None)):
        return False
    return any(hasattr(value, name) for name in _METHODS) or bool(_SCHEDULER.search(type(value).__name__))


def _is_or_wraps(value: Any, optimizer: Any) -> bool:
    # Lightning and accelerate hand out wrappers.
    return value is not None and (value is optimizer or getattr(value, "optimizer", None) is optimizer)


def nested_schedulers(scheduler: Any) -> list[Any]:
    """The schedulers that one keeps in its attributes, lists and maps, in this order; not those within these."""
    optimizer = getattr(scheduler, "optimizer", None)
    found = list(getattr(scheduler, "_schedulers", ()))
    for value in getattr(scheduler, "__dict__", {}).values():
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
        found.extend(part for part in parts if is_scheduler(part, optimizer) and part not in found)
    return found


def base_values(scheduler: Any, rates: Sequence[Any], default: Any) -> list[float] | None:
    """The rates from which a scheduler of a type that is not known computes the groups' rates, if it keeps them.

    Those are a value for each group that is the optimizer's default rate everywhere, or is called base or initial, and
    to which the rates are in one proportion.

    Args:
        scheduler: has been made, and may have set the rates of its first step.
        rates: the groups' rates.
        default: the rate that the optimizer was given for all groups.
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
    """Give every value that a scheduler keeps for each group an entry for each new group, in place.

    Args:
        scheduler: of a type that is not known.
        parents: for each new group, the index of the old one.
        anchors: the rate of each old group.
        scale: (index of the new group, value of the old one) -> value of the new one, if it is a rate.
        known: attributes that are seen to already.
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
        """The values of a map, of which those called by 0, 1, ... are a list."""
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
        """`values` with an entry for each new group; the same object if it is not kept for each group."""
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
        # A copy of the optimizer's list, or of its groups from before the split.
        if all(isinstance(entry, dict) and "params" in entry for entry in values):
            return type(values)(self._optimizer.param_groups)
        new = self._entries(name, values)
        return values if new is None else type(values)(new)

    def _entries(self, name: str, values: Sequence[Any]) -> list[Any] | None:
        """The entries of the new groups, or None if `values` are not one for each group."""
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
        # One entry that is no rate, [30], may be a list of milestones.
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
    # By name: numpy need not be installed.
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"


def _numbers(value: Any) -> Iterator[float | int | None]:
    """The numbers of an entry; None for what is not a number."""
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
