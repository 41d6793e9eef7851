"""Methods against forgetting, one file each; `build_method("l2-sp:alpha=0.01")` makes one."""

from __future__ import annotations

import math
from collections.abc import Callable

from lr_dist.errors import ConfigurationError
from lr_dist.sequence.methods.base import Method
from lr_dist.sequence.methods.l2_sp import L2SP

METHODS: dict[str, Callable[..., Method]] = {Method.name: Method, L2SP.name: L2SP}


def build_method(text: str) -> Method:
    """A fresh method from its text form `name` or `name:key=value,...`.

    Raises:
        ConfigurationError: unknown name or key, or a value that is not a number >= 0.
    """
    name, _, rest = text.partition(":")
    if name not in METHODS:
        raise ConfigurationError(f"Unknown method {name!r}; there are {', '.join(METHODS)}.")
    values: dict[str, float] = {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        try:
            values[key.strip()] = float(value)
        except ValueError:
            raise ConfigurationError(f"{item!r} in the method {text!r} is not key=number.") from None
        if not math.isfinite(values[key.strip()]) or values[key.strip()] < 0:
            raise ConfigurationError(f"{item!r} in the method {text!r} must be finite and 0 or more.")
    try:
        return METHODS[name](**values)
    except TypeError as error:
        raise ConfigurationError(f"The method {text!r} cannot be built: {error}.") from error


__all__ = ["METHODS", "L2SP", "Method", "build_method"]
