"""The schema of a preset file, checked strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date as calendar_date
from pathlib import Path
from typing import Any

from lr_dist.distribution import LRDistribution
from lr_dist.errors import PATH, InvalidPresetError, LRDistError, UnreadableFileError, listed, shown
from lr_dist.yaml_io import dump_yaml, load_yaml

SCHEMA_VERSION = 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_PURPOSE = 160
MAX_COUNT = 10**12
_KEYS = ("schema_version", "name", "purpose", "distribution", "provenance")


@dataclass(frozen=True)
class Provenance:
    """Where a preset comes from. An unknown text is "not stated", an unknown number is None.

    Attributes:
        source: its origin: a paper, a study, a person.
        model: the model on which it was found.
        tasks: the tasks, or task pairs `first>second`, on which it was found.
        trials: the number of trials from which it was combined.
        seeds: the number of seeds of each trial.
        version: the preset's version; it changes when the rates change.
        date: the day on which it was computed, YYYY-MM-DD.
        evidence: at least one line: the command and the figures, a result file, and caveats.

    Raises:
        InvalidPresetError: a value of the wrong type or form.
    """

    source: str
    model: str
    tasks: tuple[str, ...]
    trials: int | None
    seeds: int | None
    version: str
    date: str
    evidence: tuple[str, ...]

    def __post_init__(self) -> None:
        for key in ("source", "model", "version"):
            object.__setattr__(self, key, _checked_text(f"provenance.{key}", getattr(self, key)))
        object.__setattr__(self, "tasks", _checked_texts("provenance.tasks", self.tasks))
        object.__setattr__(self, "evidence", _checked_texts("provenance.evidence", self.evidence))
        for key in ("trials", "seeds"):
            count = getattr(self, key)
            # type(): YAML has no form for subclasses of int.
            if count is not None and (type(count) is not int or not 1 <= count <= MAX_COUNT):
                raise InvalidPresetError(
                    f"provenance.{key} must be a whole number from 1 to {MAX_COUNT}, or null where it is not known, "
                    f"not {shown(count)}."
                )
        object.__setattr__(self, "date", _checked_date("provenance.date", self.date))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, keys in the order of the attributes."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Any) -> Provenance:
        """Inverse of `to_dict`; the error names unknown and missing keys."""
        return cls(**_checked_keys("provenance", data, tuple(field.name for field in fields(cls))))


@dataclass(frozen=True)
class Preset:
    """A distribution with a name, one line on what it is for, and its evidence.

    Raises:
        InvalidPresetError: a value of the wrong type or form.
    """

    name: str
    purpose: str
    distribution: LRDistribution
    provenance: Provenance

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InvalidPresetError(
                f"name {shown(self.name)} does not match {NAME.pattern}: lower-case letters, digits, '.', '_' and "
                "'-', at most 64, a letter or digit first."
            )
        object.__setattr__(self, "name", str.__str__(self.name))
        object.__setattr__(self, "purpose", _checked_text("purpose", self.purpose))
        if len(self.purpose) > MAX_PURPOSE:
            raise InvalidPresetError(
                f"purpose has {len(self.purpose)} characters; it is one line of at most {MAX_PURPOSE}. "
                "Put the rest into provenance.evidence."
            )
        if not isinstance(self.distribution, LRDistribution):
            raise InvalidPresetError(f"distribution must be an LRDistribution, not {shown(self.distribution)}.")
        if not isinstance(self.provenance, Provenance):
            raise InvalidPresetError(f"provenance must be a Provenance, not {shown(self.provenance)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what a preset file holds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "purpose": self.purpose,
            "distribution": self.distribution.to_dict(),
            "provenance": self.provenance.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "preset") -> Preset:
        """Inverse of `to_dict`; every error message starts with `source` (a file's path).

        Raises:
            InvalidPresetError: an unknown, missing or invalid key; the message names it and the source.
        """
        try:
            values = _checked_keys("the preset", data, _KEYS)
            version = values.pop("schema_version")
            if type(version) is not int or version != SCHEMA_VERSION:
                raise InvalidPresetError(
                    f"schema_version is {shown(version)}; this lr-dist reads version {SCHEMA_VERSION}."
                )
            values["distribution"] = _distribution(values["distribution"])
            values["provenance"] = Provenance.from_dict(values["provenance"])
            return cls(**values)
        except InvalidPresetError as error:
            raise InvalidPresetError(f"{source}: {error}") from error.__cause__

    def to_yaml(self) -> str:
        """The text of a preset file; the file must be called NAME.yaml."""
        return dump_yaml(self.to_dict())


def read_preset(path: str | Path) -> Preset:
    """Read and check one preset file.

    Raises:
        UnreadableFileError: missing, a folder, or without permission.
        InvalidYAMLError: not YAML, or YAML that is not allowed.
        InvalidPresetError: valid YAML, but not a preset.
    """
    return Preset.from_dict(read_data(path), source=str(path))


def read_data(path: str | Path) -> Any:
    """`load_yaml`, with a named error if the file cannot be read."""
    try:
        return load_yaml(path)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, LRDistError):
            raise
        # ValueError: a NUL byte in the path itself; TypeError: no path.
        reason = getattr(error, "strerror", None) or error
        path = str(path) if isinstance(path, Path) else path
        raise UnreadableFileError(f"{shown(path, PATH)} cannot be read: {reason}. Check the path.") from error


def _distribution(data: Any) -> LRDistribution:
    try:
        return LRDistribution.from_dict(data)
    except LRDistError as error:
        raise InvalidPresetError(f"distribution: {error}") from error


def _checked_keys(what: str, data: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidPresetError(f"{what} must be a mapping with the keys {', '.join(keys)}, not {shown(data)}.")
    unknown = [key for key in data if key not in keys]
    if unknown:
        raise InvalidPresetError(f"unknown key {listed(unknown)} in {what}; its keys are {', '.join(keys)}.")
    missing = [key for key in keys if key not in data]
    if missing:
        raise InvalidPresetError(f"missing key {', '.join(map(repr, missing))} in {what}.")
    return dict(data)


def _checked_text(key: str, value: Any) -> str:
    # isprintable refuses line breaks, and control characters that would act on a terminal.
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise InvalidPresetError(f"{key} must be one line of text without control characters, not {shown(value)}.")
    return str.__str__(value)  # a plain str: YAML has no form for its subclasses


def _checked_texts(key: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, (list, tuple)) or not values:
        raise InvalidPresetError(f"{key} must be a list of at least one text, not {shown(values)}.")
    return tuple(_checked_text(f"{key}[{i}]", value) for i, value in enumerate(values))


def _checked_date(key: str, value: Any) -> str:
    # Since Python 3.11 fromisoformat accepts other formats too, so the format is checked first.
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        try:
            calendar_date.fromisoformat(value)
            return str.__str__(value)
        except ValueError:
            pass
    raise InvalidPresetError(f"{key} must be a day as YYYY-MM-DD, not {shown(value)}.")
