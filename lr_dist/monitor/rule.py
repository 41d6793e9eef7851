"""Rules over what is measured: bounds (`old >= 0.98`) and weighted sums (`0.5*old + 0.5*val_acc`)."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lr_dist.errors import ConfigurationError, shown

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NAME = r"[A-Za-z_][\w./@-]*"
_BOUND = re.compile(rf"\s*({_NAME})\s*(>=|<=|>|<)\s*({_NUMBER})\s*")
_TERM = re.compile(rf"\s*(?:({_NUMBER})\s*\*\s*)?({_NAME})\s*")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Bounds:
    """Conditions that all have to hold."""

    text: str
    conditions: tuple[tuple[str, str, float], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The values that it reads."""
        return tuple(name for name, _, _ in self.conditions)

    def hold(self, values: Mapping[str, float]) -> bool:
        """Whether they hold for these values; never for NaN."""
        return all(_COMPARE[sign](values[name], bound) for name, sign, bound in self.conditions)


@dataclass(frozen=True)
class WeightedSum:
    """A sum to be maximised."""

    text: str
    terms: tuple[tuple[float, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The values that it reads."""
        return tuple(name for _, name in self.terms)

    def total(self, values: Mapping[str, float]) -> float:
        """The sum for these values."""
        return sum(weight * values[name] for weight, name in self.terms)


def parse_rule(what: str, text: Any) -> Bounds | WeightedSum:
    """Read a rule: bounds joined by `and`, or a weighted sum with spaces around + and -.

    Args:
        what: the name of the option, for errors.
        text: what the user gave.

    Raises:
        ConfigurationError: neither of the two.
    """
    if isinstance(text, str) and any(sign in text for sign in "<>="):
        matches = [_BOUND.fullmatch(part) for part in re.split(r"\s+and\s+", text)]
        if all(matches):
            found = [match.groups() for match in matches if match]
            return Bounds(text, tuple((name, sign, float(bound)) for name, sign, bound in found))
    elif isinstance(text, str):
        first, *rest = re.split(r"\s+([+-])\s+", text)
        signs = [1.0, *(-1.0 if sign == "-" else 1.0 for sign in rest[::2])]
        terms = [_TERM.fullmatch(part) for part in (first, *rest[1::2])]
        if all(terms):
            pairs = [match.groups() for match in terms if match]
            weights = [
                sign * float(1 if weight is None else weight) for sign, (weight, _) in zip(signs, pairs, strict=True)
            ]
            if all(map(math.isfinite, weights)):
                return WeightedSum(text, tuple((w, name) for w, (_, name) in zip(weights, pairs, strict=True)))
    raise ConfigurationError(
        f"{what} must read like 'old >= 0.98', 'forgotten/sst2 <= 0.02 and old/qqp > 0.7' or '0.5*old + 0.5*val_acc', "
        f"not {shown(text)}."
    )


def parse_bounds(what: str, text: Any) -> Bounds:
    """Read bounds.

    Raises:
        ConfigurationError: something else.
    """
    rule = parse_rule(what, text)
    if isinstance(rule, WeightedSum):
        raise ConfigurationError(f"{what} must compare a value with a number, as in 'old < 0.95', not {shown(text)}.")
    return rule
