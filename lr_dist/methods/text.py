"""The text form of a method, `name:key=value,...`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from lr_dist.checks import check_finite
from lr_dist.errors import ConfigurationError, shown
from lr_dist.methods.base import Method, Setting
from lr_dist.names import did_you_mean

# Commas within parentheses belong to the value: `alpha=(linear:low=0.3,high=0.9)`.
_COMMA = re.compile(r",(?![^()]*\))")


def parse_method(text: str, methods: Mapping[str, type[Method]]) -> Method:
    """Make a method from its text form.

    Values are numbers, words, or, in parentheses, the text form of a distribution.

    Args:
        text: `name` or `name:key=value,...`.
        methods: name -> class.

    Raises:
        ConfigurationError: unknown name or key, or an invalid value.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    if name not in methods:
        raise ConfigurationError(
            f"There is no method {shown(name)}; the methods are {', '.join(methods)}.{did_you_mean(name, methods)}"
        )
    values: dict[str, Setting] = {}
    for item in filter(None, _COMMA.split(rest)):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key or not value:
            raise ConfigurationError(f"{shown(item)} in the method {shown(text)} must read key=value.")
        values[key] = _value(value, f"{key} in the method {shown(text)}")
    keys = _keys(methods[name])
    unknown = next((key for key in values if key not in keys), None)
    if unknown is not None:
        allowed = f"has the settings {', '.join(keys)}" if keys else "has no settings"
        raise ConfigurationError(f"The method {shown(text)} is not valid: {name} {allowed}, and no {shown(unknown)}.")
    return methods[name](**values)


def _keys(method: type[Method]) -> list[str]:
    """The settings of a text form: the constructor's arguments that are not keyword-only."""
    parameters = inspect.signature(method.__init__).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


def _value(text: str, what: str) -> Setting:
    if text.startswith("(") and text.endswith(")"):
        return text[1:-1]
    try:
        number = float(text)
    except ValueError:
        return text
    check_finite(what, number, error=ConfigurationError)
    return int(number) if re.fullmatch(r"\d+", text) else number
