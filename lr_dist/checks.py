"""What counts as a number, and how an error says that a value is not the one that is needed."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard

from lr_dist.errors import LRDistError, shown


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a real number, NumPy's scalars included; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Whether it is an int from `least` to `most`; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def as_float(value: Any) -> float:
    """A number, or a tensor of one element, as a float; nan for anything else, texts and booleans included."""
    if isinstance(value, (str, bytes, bytearray, bool)):
        return math.nan
    try:
        return float(value)
    # RuntimeError: a tensor of several elements; OverflowError: 10**400.
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def check_whole(
    what: str, value: Any, least: int, most: int | None = None, *, error: type[LRDistError], hint: str = ""
) -> int:
    """`value`, if it is a whole number from `least` to `most`.

    Args:
        what: the name under which the user gave it.
        value: anything.
        least: the lowest that is valid.
        most: the highest; without it, there is none.
        error: the class to raise.
        hint: a sentence on what to do instead.

    Raises:
        LRDistError: an `error`, naming `what` and the value.
    """
    if is_whole(value, least, math.inf if most is None else most):
        return int(value)
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise error(f"{what} must be a whole number {bounds}, not {shown(value)}.{hint and ' '}{hint}")


def check_strength(what: str, value: Any, *, error: type[LRDistError]) -> float:
    """`value` as a float, if it can multiply gradients: from 0 to 1e30, beyond which float32 soon ends.

    Raises:
        LRDistError: an `error`, naming `what` and the value.
    """
    number = check_finite(what, value, error=error)
    if number > 1e30:
        raise error(f"{what} must be at most 1e30, not {shown(value)}: gradients would overflow.")
    return number


def check_finite(what: str, value: Any, *, error: type[LRDistError], positive: bool = False, hint: str = "") -> float:
    """`value` as a float, if it is a finite number of at least 0, or (`positive`) greater than 0.

    Args:
        what: the name under which the user gave it.
        value: anything.
        error: the class to raise.
        positive: whether 0 is invalid.
        hint: a sentence on what to do instead.

    Raises:
        LRDistError: an `error`, naming `what` and the value.
    """
    number = as_float(value) if is_number(value) else math.nan
    if math.isfinite(number) and (number > 0 or (number == 0 and not positive)):
        return number + 0.0  # -0.0 becomes 0.0
    bound = "greater than 0" if positive else "of at least 0"
    raise error(f"{what} must be a finite number {bound}, not {shown(value)}.{hint and ' '}{hint}")
