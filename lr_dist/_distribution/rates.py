"""Checks of learning rates and factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lr_dist.checks import is_number
from lr_dist.errors import InvalidRateError, shown

MAX_RATES = 10_000
# Within these bounds no product or mean of two rates is rounded to 0 or to infinity.
SMALLEST, LARGEST = 1e-300, 1e300


def check_rate(what: str, value: Any) -> float:
    """`value` as a float that can be a learning rate: finite and >= 0.

    Raises:
        InvalidRateError: naming `what` and the value.
    """
    number = _number(what, value)
    if not math.isfinite(number) or number < 0:
        raise InvalidRateError(f"{what}={shown(value)} is not a learning rate: it must be finite and 0 or more.")
    if number != 0:
        _check_range(what, number)
    return number + 0.0  # -0.0 becomes 0.0


def check_rates(what: str, values: Any) -> tuple[float, ...]:
    """A list of learning rates, at least one and at most 10,000."""
    # Bytes are a sequence of whole numbers too, but never meant as rates.
    if isinstance(values, (str, bytes, bytearray, memoryview)) or not isinstance(values, Sequence) or not values:
        raise InvalidRateError(f"{what} must be a list of at least one number, not {shown(values)}.")
    if len(values) > MAX_RATES:
        raise InvalidRateError(f"{what} holds {len(values):,} numbers; at most {MAX_RATES:,} are read.")
    return tuple(check_rate(f"{what}[{i}]", value) for i, value in enumerate(values))


def check_factor(what: str, value: Any) -> float:
    """`value` as a float that is finite and > 0."""
    number = _number(what, value)
    if not math.isfinite(number) or number <= 0:
        raise InvalidRateError(f"{what}={shown(value)} must be finite and greater than 0.")
    _check_range(what, number)
    return number


def scaled(what: str, value: Any, factor: float) -> Any:
    """A rate or a tuple of rates times `factor`.

    Raises:
        InvalidRateError: a product is infinite, or is rounded to 0.
    """
    if isinstance(value, tuple):
        return tuple(scaled(what, item, factor) for item in value)
    result = value * factor
    if not math.isfinite(result) or (result == 0 and value != 0):
        raise InvalidRateError(f"{what}={value!r} times {factor!r} leaves the range of floating-point numbers.")
    return result


def _number(what: str, value: Any) -> float:
    if not is_number(value):
        raise InvalidRateError(f"{what}={shown(value)} is not a number; write it like 2e-5.")
    try:
        number = float(value)
    except OverflowError:
        raise InvalidRateError(f"{what} is too large for a floating-point number.") from None
    # A rate that is rounded to 0 would freeze a layer that nobody asked to freeze.
    if number == 0 and value != 0:
        raise InvalidRateError(f"{what} is too small for a floating-point number; use {SMALLEST:g} or more, or 0.")
    return number


def _check_range(what: str, number: float) -> None:
    if not SMALLEST <= number <= LARGEST:
        raise InvalidRateError(f"{what}={number!r} is out of range; use {SMALLEST:g} to {LARGEST:g}.")
