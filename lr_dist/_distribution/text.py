"""The text form of a distribution, `family:key=value,...`, for command lines and configuration files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from lr_dist._distribution.edits import Edit
from lr_dist._distribution.families import COMPOSED, FAMILIES
from lr_dist.errors import InvalidDistributionError, InvalidRateError, shown
from lr_dist.names import is_group_name

# A text can match in one way only: with \d+\.?\d* a long one would take quadratic time.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
EXAMPLES = "flat:lr=2e-5, decay:lr=4e-4,factor=0.7, flat:lr=1e-4,freeze=embeddings..layers.3"


def is_text_form(text: str) -> bool:
    """Whether `text` starts like `family:`."""
    return ":" in text and re.fullmatch(r"[A-Za-z_]+", text.split(":", 1)[0].strip()) is not None


def split(text: str) -> tuple[str, dict[str, Any], bool, tuple[Edit, ...]]:
    """`text` as (family, values, relative, edits); the values are not checked against the family yet.

    Raises:
        InvalidDistributionError: malformed text.
    """
    if not isinstance(text, str) or not is_text_form(text):
        raise InvalidDistributionError(
            f"{shown(text)} is not a distribution; write family:key=value,... as in {EXAMPLES}."
        )
    family, _, rest = text.partition(":")
    family = family.strip()
    if family in COMPOSED:
        raise InvalidDistributionError(f"{family} has no text form; write it into a YAML file and give its path.")
    family_keys = FAMILIES[family].keys if family in FAMILIES else ()
    values: dict[str, Any] = {}
    relative = False
    edits: list[Edit] = []
    seen: set[str] = set()
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise InvalidDistributionError(f"{shown(item)} in {shown(text)} is not key=value; examples: {EXAMPLES}.")
        if key in seen and key != "freeze" and ".." not in key:
            raise InvalidDistributionError(f"{shown(key)} occurs twice in {shown(text)}; give it once.")
        seen.add(key)
        if key in family_keys:
            values[key] = _value(key, value)
        elif key == "relative":
            relative = _boolean(value)
        elif key == "freeze":
            first, _, last = value.partition("..")
            edits.append(Edit(_end(first), _end(last or first), 0.0))
        elif is_group_name(key):
            edits.append(Edit(key, key, _number(key, value)))
        elif ".." in key:
            first, _, last = key.partition("..")
            edits.append(Edit(_end(first), _end(last), _number(key, value)))
        else:
            values[key] = value  # the family's check raises an error with the valid keys
    return family, values, relative, tuple(edits)


def join(family: str, values: Mapping[str, Any], relative: bool, edits: Sequence[Edit]) -> str:
    """The text form; a composed family, which has none, is shown as `geometric_mean(...)`."""
    if family in COMPOSED:
        head = f"{family}({'; '.join(str(part) for part in values['of'])})"
        parts = (
            [] if len(set(values.get("weights", ()))) < 2 else [f"weights={'/'.join(map(short, values['weights']))}"]
        )
    else:
        head = family
        parts = [
            f"{key}={'/'.join(map(short, value)) if isinstance(value, tuple) else short(value)}"
            for key, value in values.items()
        ]
        if relative:
            parts.append("relative=true")
    named = set(values)
    for edit in edits:
        first, last = (end if isinstance(end, str) else short(end) for end in (edit.first, edit.last))
        if edit.rate == 0:
            parts.append(f"freeze={first}..{last}")
        elif isinstance(edit.first, str) and first == last and first not in named:
            parts.append(f"{first}={short(edit.rate)}")
            named.add(first)  # a key may occur once, a range several times
        else:
            parts.append(f"{first}..{last}={short(edit.rate)}")
    return f"{head}:{','.join(parts)}" if parts else head


def short(number: float) -> str:
    """A float's shortest exact text, `4e-4` rather than `0.0004`."""
    return (
        repr(number).removesuffix(".0")
        if 0.01 <= number < 1e6 or number == 0
        else f"{Decimal(repr(number)).normalize():e}"
    )


def _value(key: str, value: str) -> Any:
    if key == "layers":
        return tuple(_number(key, item) for item in value.split("/"))
    return _number(key, value)


def _number(key: str, value: str) -> float:
    if not _NUMBER.fullmatch(value.strip()):
        raise InvalidRateError(f"{shown(key)}={shown(value)} is not a finite number; write it like lr=2e-5.")
    number = float(value)
    # A number that is rounded to 0 would freeze a layer.
    if number == 0 and re.match(r"[+-]?[.0]*[1-9]", value.strip()):
        raise InvalidRateError(
            f"{shown(key)}={shown(value)} is too small for a floating-point number; write 0 to freeze."
        )
    return number


def _end(text: str) -> str | float:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else text


def _boolean(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise InvalidDistributionError(f"relative={shown(value)} must be true or false.")
    return value.lower() == "true"
