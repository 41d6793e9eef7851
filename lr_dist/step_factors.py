"""Factors on an optimizer's rates that hold only during a step (pure torch).

A factor must not stay in `group["lr"]`: chainable schedulers compute the next rate from the last one, so it would be
multiplied in again at every step, and a checkpoint would carry it into the resumed run. So each group's rate is
multiplied when `optimizer.step` begins, and restored, to the last bit, when it ends. Schedulers, checkpoints and code
that reads the rate between two steps never see the factors.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from lr_dist.checks import check_finite
from lr_dist.errors import InvalidRateError, UnsupportedOptimizerError
from lr_dist.names import layer_of

# The attribute of the optimizer that holds its factors. Copies and pickles of an optimizer lack it, as they lack its
# hooks: torch copies only the state and the groups.
_ATTRIBUTE = "_lr_dist_step_factors"

Factors = float | Mapping[str, float]


class StepFactors:
    """The named factors of one optimizer; at every step each group's rate is multiplied by their product.

        factors = StepFactors.of(optimizer)
        factors.set("mine", {"embeddings": 0.1, "head": 2.0})
        optimizer.step()  # the groups `embeddings` and `head` step with other rates
        factors.remove("mine")

    A rate in a tensor (fused and capturable optimizers read it on the device) is multiplied in place. If other code
    writes a rate while the factors are applied, that rate stays.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Use `StepFactors.of` instead: an optimizer has only one such object."""
        self._optimizer = weakref.ref(optimizer)
        self._factors: dict[str, Factors] = {}
        self._applied: list[_Applied] = []
        self._in_step = False
        self._shown = False

    @classmethod
    def of(cls, optimizer: Optimizer) -> StepFactors:
        """The factors of `optimizer`, the same object at every call.

        Raises:
            UnsupportedOptimizerError: not an optimizer of torch (such as a wrapper of one), or one without rates.
        """
        existing = getattr(optimizer, "__dict__", {}).get(_ATTRIBUTE)
        if existing is not None:
            return existing
        _check(optimizer)
        factors = cls(optimizer)
        setattr(optimizer, _ATTRIBUTE, factors)
        optimizer.register_step_pre_hook(factors._step_begins)
        optimizer.register_step_post_hook(factors._step_ends)
        optimizer.register_state_dict_pre_hook(factors._saving_begins)
        optimizer.register_state_dict_post_hook(factors._saving_ends)
        _guard(optimizer)
        return factors

    def set(self, name: str, factors: Factors) -> None:
        """Add the factors `name`, or replace them; during a step they take effect at once.

        Args:
            name: identifies the factors, e.g. the name of the class that computes them. Products are computed in the
                order of the names, so that their last bit does not depend on the order of the calls.
            factors: one number (>= 0) for every group; or a map from group name to number, in which
                `layers.0/no_decay` finds `layers.0`, and a group that is not in it has the factor 1.

        Raises:
            InvalidRateError: a factor that is negative, NaN, infinite or not a number.
        """
        if isinstance(factors, Mapping):
            checked: Factors = {
                key: check_finite(f"the factor of {key}", value, error=InvalidRateError)
                for key, value in factors.items()
            }
        else:
            checked = check_finite(f"the factor {name}", factors, error=InvalidRateError)
        self._factors[name] = checked
        self._update()

    def remove(self, name: str) -> None:
        """Remove the factors `name`, if there are any."""
        self._factors.pop(name, None)
        self._update()

    def product(self, group: Mapping[str, Any]) -> float:
        """The product of all factors for one parameter group."""
        return math.prod(_factor(self._factors[name], group.get("name", "")) for name in sorted(self._factors))

    def show(self) -> None:
        """Apply the factors to the groups' rates until `hide` or the end of the next step.

        For monitors that read `group["lr"]` before the step. No scheduler may step in the meantime.
        """
        self._shown = True
        self._update()

    def hide(self) -> None:
        """Undo `show`. Within a step the factors stay applied."""
        self._shown = False
        self._update()

    @classmethod
    @contextmanager
    def paused(cls, optimizer: Optimizer) -> Iterator[None]:
        """A context in which the rates of `optimizer` are without factors, to be read and written."""
        factors = optimizer.__dict__.get(_ATTRIBUTE)
        if factors is None:
            yield
            return
        factors._restore()
        try:
            yield
        finally:
            factors._update()

    # How they are applied --------------------------------------------------------------------------------

    def _update(self) -> None:
        self._restore()
        if self._in_step or self._shown:
            self._apply()

    def _apply(self) -> None:
        optimizer = self._optimizer()
        if optimizer is None or not self._factors:
            return
        _unshare_rates(optimizer)
        for group in optimizer.param_groups:
            factor = self.product(group)
            if factor != 1:
                self._applied.append(_Applied.to(group, factor))

    def _restore(self) -> None:
        while self._applied:
            self._applied.pop().undo()

    def _end(self) -> None:
        self._in_step = self._shown = False
        self._restore()

    # Hooks of the optimizer ------------------------------------------------------------------------------

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._in_step = True
        self._update()

    def _step_ends(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._end()

    def _saving_begins(self, optimizer: Optimizer) -> None:
        self._restore()

    def _saving_ends(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        if self._in_step or self._shown:
            # The state dict holds the groups' own tensors, which are about to change again.
            for group in state_dict["param_groups"]:
                if isinstance(group.get("lr"), torch.Tensor):
                    group["lr"] = group["lr"].clone()
            self._apply()


@dataclass(frozen=True)
class _Applied:
    """A group whose rate is currently multiplied by a factor."""

    group: dict[str, Any]
    before: Any
    written: Any
    version: int

    @classmethod
    def to(cls, group: dict[str, Any], factor: float) -> _Applied:
        rate = group["lr"]
        if isinstance(rate, torch.Tensor):
            before = rate.clone()
            rate.detach().mul_(factor)
            return cls(group, before, rate, rate._version)
        group["lr"] = rate * factor
        return cls(group, rate, group["lr"], 0)

    def undo(self) -> None:
        """Restore the rate, unless other code has written another one."""
        rate = self.group.get("lr")
        if isinstance(self.written, torch.Tensor):
            # Compare the version, because comparing the number would wait for the device.
            if rate is self.written and rate._version == self.version:
                rate.detach().copy_(self.before)
        elif not isinstance(rate, torch.Tensor) and rate == self.written:
            self.group["lr"] = self.before


def _check(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer) or "param_groups" not in optimizer.__dict__:
        raise UnsupportedOptimizerError(
            f"StepFactors needs an optimizer of torch, not {type(optimizer).__name__}. Pass the optimizer itself "
            "where this is a wrapper around one (`wrapper.optimizer`)."
        )
    for index, group in enumerate(optimizer.param_groups):
        if group.get("lr") is None:
            raise UnsupportedOptimizerError(
                f"{type(optimizer).__name__} has no learning rate in parameter group {index} (`lr` is missing or "
                "None), so there is nothing to multiply. Give it a rate (Adafactor: lr=..., relative_step=False)."
            )


def _guard(optimizer: Optimizer) -> None:
    """Restore the rates also if a step raises an error, after which torch calls no hook.

    Like torch's schedulers, this replaces the optimizer's `step` by a wrapper. The wrapper holds the optimizer weakly,
    as theirs do, because a reference cycle would keep the optimizer's state in memory.
    """
    before = optimizer.step
    inner = getattr(before, "__func__", None) or _ignoring_self(before)
    reference = weakref.ref(optimizer)

    @functools.wraps(inner)
    def unbound(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        try:
            return inner(optimizer, *args, **kwargs)
        except BaseException:
            StepFactors.of(optimizer)._end()
            raise

    @functools.wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        return unbound(reference(), *args, **kwargs)  # type: ignore[arg-type]

    # A scheduler that is built later wraps `step.__func__`.
    step.__func__ = unbound  # type: ignore[attr-defined]
    optimizer.step = step  # type: ignore[method-assign]


def _ignoring_self(step: Any) -> Any:
    """A scheduler's wrapper of `step`, which is bound to its optimizer, as a function that takes the optimizer too."""

    @functools.wraps(step)
    def inner(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    return inner


def _factor(factors: Factors, name: str) -> float:
    if not isinstance(factors, Mapping):
        return factors
    return factors.get(name, factors.get(layer_of(name), 1.0))


def _unshare_rates(optimizer: Optimizer) -> None:
    """Give each group its own tensor; by default torch shares one, which would be multiplied several times."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            if id(group["lr"]) in seen:
                group["lr"] = group["lr"].clone()
            seen.add(id(group["lr"]))
