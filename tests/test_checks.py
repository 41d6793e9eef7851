"""What counts as a number, the same in every part of the package."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from lr_dist.checks import as_float, check_finite, check_whole, is_number, is_whole
from lr_dist.errors import ConfigurationError, InvalidRateError, LRDistError

NUMBERS = [0, -1, 2.5, math.inf, np.float32(0.5), np.float64(2), np.int64(3), Fraction(1, 2), 10**400]
NO_NUMBERS = [None, True, False, np.bool_(True), "1", b"1", [1], 1j, torch.tensor(1.0), np.array([1.0])]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_no_numbers(value: Any) -> None:
    assert not is_number(value)
    assert not is_whole(value)
    with pytest.raises(InvalidRateError, match="weight_decay must be a finite number of at least 0, not "):
        check_finite("weight_decay", value, error=InvalidRateError)


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3.0), (np.float32(0.5), 0.5), (torch.tensor([0.25]), 0.25), (torch.tensor(2), 2.0), (Fraction(1, 4), 0.25)],
    ids=repr,
)
def test_as_float(value: Any, number: float) -> None:
    assert as_float(value) == number


@pytest.mark.parametrize(
    "value", [None, True, "1", b"1", [1], torch.ones(2), 10**400, object()], ids=lambda value: type(value).__name__
)
def test_what_is_not_one_number_becomes_nan(value: Any) -> None:
    assert math.isnan(as_float(value))


@pytest.mark.parametrize(
    ("value", "least", "most", "bounds"),
    [
        (0, 1, None, "of at least 1"),
        (2.0, 1, None, "of at least 1"),
        (11, 1, 10, "from 1 to 10"),
        (True, 1, 10, "from 1 to 10"),
    ],
)
def test_the_error_says_what_is_needed(value: Any, least: int, most: int | None, bounds: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_whole("epochs", value, least, most, error=ConfigurationError, hint="Leave it out.")
    assert str(raised.value) == f"epochs must be a whole number {bounds}, not {value!r}. Leave it out."


def test_valid_numbers_are_returned() -> None:
    assert check_whole("epochs", 10, 1, 10, error=ConfigurationError) == 10
    number = check_finite("lr", np.float32(0.5), error=InvalidRateError)
    assert (number, type(number)) == (0.5, float)
    assert math.copysign(1, check_finite("lr", -0.0, error=InvalidRateError)) == 1
    with pytest.raises(InvalidRateError, match=r"^lr must be a finite number greater than 0, not 0\.$"):
        check_finite("lr", 0, positive=True, error=InvalidRateError)


def settings(**values: Any) -> object:
    from lr_dist.sequence.settings import SequenceSettings

    return SequenceSettings(**values)


def comparison(**values: Any) -> object:
    from lr_dist.sequence.compare_config import CompareConfig

    return CompareConfig(**{"model": "m", "tasks": ("a", "b"), "distributions": ("flat:lr=1e-5",), **values})


def schedule(**values: Any) -> object:
    from lr_dist.layer_schedule import LayerSchedule

    return LayerSchedule(**values)


def method(**values: Any) -> object:
    from lr_dist.methods import L2SP

    return L2SP(**values)


def loss_adaptive(**values: Any) -> object:
    from lr_dist.loss_adaptive import LossAdaptiveLR

    return LossAdaptiveLR(**values)


@pytest.mark.parametrize(
    ("make", "name", "kind"),
    [
        (settings, "epochs", "whole"),
        (settings, "batch_size", "whole"),
        (settings, "max_length", "whole"),
        (settings, "lr", "finite"),
        (settings, "weight_decay", "finite"),
        (comparison, "limit", "whole"),
        (schedule, "every_n_epochs", "whole"),
        (schedule, "every_n_steps", "whole"),
        (method, "alpha", "finite"),
        (method, "beta", "finite"),
        (loss_adaptive, "momentum", "finite"),
        (loss_adaptive, "f_max", "finite"),
    ],
)
@pytest.mark.parametrize("value", [True, "1", math.nan, -1, [1]], ids=repr)
def test_every_setting_refuses_the_same_values_in_the_same_words(
    make: Callable[..., object], name: str, kind: str, value: Any
) -> None:
    with pytest.raises(LRDistError, match=rf"{name} must be a {kind} number (of at least \d+|greater than 0), not "):
        make(**{name: value})


@pytest.mark.parametrize("seeds", [(), (0, 0), (True,), ("0",), (-1,), (0.5,), ([1],)], ids=repr)
def test_seeds_are_distinct_whole_numbers(seeds: Any) -> None:
    with pytest.raises(ConfigurationError, match="seeds must be distinct whole numbers from 0, at least one, not "):
        comparison(seeds=seeds)


def test_settings_with_numbers_are_as_before() -> None:
    assert json.dumps(settings(lr=1, weight_decay=0.5).to_dict()).startswith('{"epochs": 3')  # type: ignore[attr-defined]
