"""Methods against forgetting, in addition to the rates: Lightning callbacks, one file each.

`build_method("l2-sp:alpha=0.01")` makes one from its text form.
"""

from __future__ import annotations

from lr_dist.checks import check_finite
from lr_dist.errors import ConfigurationError, shown
from lr_dist.methods.base import Method, Needs
from lr_dist.methods.l2_sp import L2SP

METHODS: dict[str, type[Method]] = {method.name: method for method in (L2SP,)}


def build_method(text: str) -> Method:
    """Make a method from its text form, `name` or `name:key=value,...`.

    Raises:
        ConfigurationError: unknown name or key, or a value that is not a finite number of 0 or more.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    if name not in METHODS:
        raise ConfigurationError(f"There is no method {shown(name)}; the methods are {', '.join(METHODS)}.")
    values: dict[str, float] = {}
    for item in filter(None, rest.split(",")):
        key, _, value = (part.strip() for part in item.partition("="))
        try:
            values[key] = float(value)
        except ValueError:
            raise ConfigurationError(f"{shown(item)} in the method {shown(text)} must read key=number.") from None
        check_finite(f"{key} in the method {shown(text)}", values[key], error=ConfigurationError)
    try:
        return METHODS[name](**values)
    except TypeError as error:
        keys = ", ".join(METHODS[name]().settings())
        raise ConfigurationError(f"The method {shown(text)} is not valid: {name} has the settings {keys}.") from error


__all__ = ["METHODS", "L2SP", "Method", "Needs", "build_method"]
