"""Checks of the texts in a preset file."""

from __future__ import annotations

from typing import Any

from lr_dist.errors import InvalidPresetError, shown


def checked_text(key: str, value: Any) -> str:
    """One line of text, as a plain `str`.

    Raises:
        InvalidPresetError: another type, an empty text, line breaks or control characters.
    """
    # isprintable refuses line breaks, and control characters that would act on a terminal.
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise InvalidPresetError(f"{key} must be one line of text without control characters, not {shown(value)}.")
    return str.__str__(value)  # a plain str: YAML has no form for its subclasses


def checked_texts(key: str, values: Any) -> tuple[str, ...]:
    """At least one line of text.

    Raises:
        InvalidPresetError: no list, an empty one, or an element that is not one line of text.
    """
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidPresetError(f"{key} must be a list of at least one text, not {shown(values)}.")
    return tuple(checked_text(f"{key}[{i}]", value) for i, value in enumerate(values))
