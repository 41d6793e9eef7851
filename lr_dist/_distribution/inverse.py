"""Rates that fall with a number for each layer: what earlier knowledge would lose if the layer moved."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from lr_dist._distribution.rates import check_factor, check_rate
from lr_dist.checks import as_float, is_whole
from lr_dist.errors import InvalidDistributionError, InvalidRateError, shown
from lr_dist.names import group_names

# A cost that is 0 or below (a layer whose movement did no harm) counts as this share of the largest.
LEAST_COST = 1e-3


def inverse_factors(
    values: Mapping[str, Any], *, power: float, limit: float, permuted: int | None, least: float = 0.0
) -> dict[str, float]:
    """A factor for `embeddings`, `layers.0`, ..., `layers.N-1`: (value / geometric mean of all) ^ -power.

    Args:
        values: group -> a number above 0; `head` may be among them, and is not used.
        power: 0 or more.
        limit: factors are cut to 1 / limit ... limit.
        permuted: seed of a permutation of the factors over depth; None for none.
        least: smaller values count as this share of the largest.

    Raises:
        InvalidDistributionError: not the groups of a model, or an invalid `permuted`.
        InvalidRateError: a value, `power` or `limit` out of range.
    """
    groups = _groups(values)
    power, limit = check_rate("power", power), check_factor("limit", limit)
    if limit < 1:
        raise InvalidRateError(f"limit={limit!r} must be 1 or more: no factor is above it, or below 1 / limit.")
    numbers = [as_float(values[group]) for group in groups]
    floor = least * max(numbers, default=0.0)
    if least and not floor > 0:
        raise InvalidRateError(
            f"No value is above 0 ({shown(dict(values))}): the movement of no layer cost anything, so there is nothing "
            "to lower a rate for. Use a flat rate, a longer run, or a finer score."
        )
    numbers = [max(number, floor) if math.isfinite(number) else number for number in numbers]
    for group, number in zip(groups, numbers, strict=True):
        if not math.isfinite(number) or number <= 0:
            raise InvalidRateError(
                f"The value of {group} is {shown(values[group])}; a rate that falls with it needs a finite number "
                "above 0. Use more examples, or freeze that layer and give the others' rates yourself."
            )
    logs = [math.log(number) for number in numbers]
    mean = math.fsum(logs) / len(logs)
    most = math.log(limit)
    factors = [math.exp(min(most, max(-most, -power * (each - mean)))) for each in logs]
    return dict(zip(groups, factors if permuted is None else _permuted(factors, permuted), strict=True))


def _groups(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        raise InvalidDistributionError(f"Expected a mapping of groups to numbers, not {shown(values)}.")
    layers = [name for name in values if isinstance(name, str) and name.startswith("layers.")]
    groups = group_names(max(1, len(layers)))
    wrong = [name for name in values if name not in groups] or [name for name in groups[:-1] if name not in values]
    if wrong:
        raise InvalidDistributionError(
            f"{shown(wrong[0])} is too much or missing: the numbers must be those of embeddings, layers.0, ... (and "
            f"head, which is not used); got {shown(list(values))}."
        )
    return groups[:-1]


def _permuted(factors: list[float], seed: Any) -> list[float]:
    """In another order; in the same one only if all are equal."""
    if not is_whole(seed, 0):
        raise InvalidDistributionError(f"permuted must be a seed, a whole number from 0, not {shown(seed)}.")
    generator, order = random.Random(seed), list(factors)
    while True:
        generator.shuffle(order)
        if order != factors or len(set(factors)) == 1:
            return order
