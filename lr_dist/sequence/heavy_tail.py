"""`heavy-tail:lr=1e-4` in an arm: rates from the spectra of the model's weights, without a search."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from lr_dist._distribution.spectrum import spectral_rates
from lr_dist.checks import check_finite
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, InvalidRateError, shown
from lr_dist.sequence.arm import SEPARATOR, Arm

_NAME = "heavy-tail"
# As far as the rates' text goes: until a stage, a phase, a length or a factor follows.
_TEXT = re.compile(rf"(?<![\w-]){_NAME}(?![\w-])(?::([^|>@*]*))?")
_KEYS = ("lr", "s1", "s2")

Spec = str | Mapping[str, Any] | Arm


def needs_weights(spec: Spec) -> bool:
    """Whether the rates of an arm follow from the weights of the model."""
    rates = _rates(spec)
    return isinstance(rates, str) and _TEXT.search(rates) is not None


def check_settings(spec: Spec) -> None:
    """Refuse invalid settings, before a model is loaded.

    Raises:
        ConfigurationError: an unknown key, or no `lr`.
        InvalidRateError: a value that is not a finite number of at least 0.
    """
    for match in _TEXT.finditer(str(_rates(spec))):
        _settings(match)


def with_rates_of(spec: Spec, backbone: nn.Module) -> Spec:
    """The arm with `heavy-tail:lr=...,s1=0.5,s2=1.5` replaced by the rates of `LRDistribution.from_spectrum`.

    They are rounded to six digits, so that they, and the identity of a run, are the same on every machine. The label
    stays the text.

    Raises:
        InvalidRateError: `lr`, `s1` or `s2` out of range.
        UnsupportedWeightsError: weights that have no spectrum.
    """
    if isinstance(spec, Arm) or not needs_weights(spec):
        return spec
    rates = str(_rates(spec)).strip()
    written = _TEXT.sub(lambda match: f"{_distribution(_settings(match), backbone)} ", rates)
    if isinstance(spec, str):
        methods = [part.strip() for part in spec.split(SEPARATOR)[1:]]
        return {"label": spec.strip(), "rates": written, "methods": methods}
    return {"label": SEPARATOR.join([rates, *map(str, spec.get("methods", ()))]), **spec, "rates": written}


def _rates(spec: Spec) -> Any:
    if isinstance(spec, Mapping):
        return spec.get("rates")
    return spec.split(SEPARATOR)[0] if isinstance(spec, str) else None


def _settings(match: re.Match[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for item in filter(None, (match[1] or "").strip().split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in _KEYS or not value:
            raise ConfigurationError(
                f"{shown(item)} in {shown(match[0].strip())} is not valid: {_NAME} has the settings "
                f"{', '.join(_KEYS)}, each written as key=value."
            )
        try:
            values[key] = check_finite(f"{key} of {_NAME}", float(value), error=InvalidRateError)
        except ValueError as error:
            if isinstance(error, InvalidRateError):
                raise
            raise ConfigurationError(f"{key} of {shown(match[0].strip())} is a number, not {shown(value)}.") from None
    if "lr" not in values:
        raise ConfigurationError(f"{shown(match[0].strip())} has no rate; write {_NAME}:lr=1e-4.")
    return values


def _distribution(settings: Mapping[str, float], backbone: nn.Module) -> LRDistribution:
    lr = settings["lr"]
    rates = spectral_rates(backbone, lr, settings.get("s1", 0.5), settings.get("s2", 1.5))
    return LRDistribution.from_layers(embeddings=lr, layers=[float(f"{rate:.6g}") for rate in rates], head=lr)
