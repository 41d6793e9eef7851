"""Checks of a family's name and of its keys and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lr_dist._distribution.families import FAMILIES, Family
from lr_dist._distribution.rates import check_factor, check_rate, check_rates
from lr_dist.errors import InvalidDistributionError, listed, shown
from lr_dist.names import did_you_mean


def family_of(name: Any) -> Family:
    """The family of this name.

    Raises:
        InvalidDistributionError: no family has this name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        hint = did_you_mean(name, FAMILIES)
        raise InvalidDistributionError(f"Unknown family {shown(name)}.{hint} The families are {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def completed(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values with the family's defaults; their numbers are not checked yet.

    Raises:
        InvalidDistributionError: a key that the family lacks, two that exclude each other, or one that is missing.
    """
    family = family_of(name)
    unknown = [key for key in given if key not in family.keys]
    if unknown:
        hint = " A ratio for any number of layers: decay:lr=4e-4,total=0.02." if "total" in unknown else ""
        raise InvalidDistributionError(
            f"{name} has no key {listed(unknown)}; its keys are {', '.join(family.keys)}.{hint}"
        )
    instead = {key: other for key, other in family.instead.items() if key in given}
    for key, other in instead.items():
        if other in given:
            raise InvalidDistributionError(
                f"{name} takes {other} or {key}, not both; it was given {other}={shown(given[other])} and "
                f"{key}={shown(given[key])}."
            )
    values = {**(family.defaults or {}), **given}
    missing = [key for key in family.rate_keys + family.factor_keys if key not in {*values, *instead.values()}]
    if missing:
        ways = {other: f"{other} or {key}" for key, other in family.instead.items()}
        raise InvalidDistributionError(
            f"{name} needs {', '.join(ways.get(key, key) for key in missing)}; it was given "
            f"{', '.join(values) or 'nothing'}."
        )
    return values


def checked_numbers(family: Family, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Values that `completed` has returned, as floats and tuples, in the family's order.

    Raises:
        InvalidRateError: a rate or factor that is negative, NaN, infinite or not a number.
    """
    checked: list[tuple[str, Any]] = []
    for key in family.rate_keys:
        checked.append((key, check_rates(key, given[key]) if key == "layers" else check_rate(key, given[key])))
    checked += [(key, check_factor(key, given[key])) for key in (*family.factor_keys, *family.instead) if key in given]
    return tuple(checked)
