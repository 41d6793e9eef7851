"""The schema of a preset file, checked strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import date as calendar_date
from pathlib import Path
from typing import Any

from lr_dist.checks import is_number
from lr_dist.distribution import LRDistribution
from lr_dist.errors import PATH, InvalidPresetError, LRDistError, UnreadableFileError, listed, shown
from lr_dist.presets.plan_text import parse_plan
from lr_dist.presets.preset_schedule import PresetSchedule
from lr_dist.presets.text_checks import checked_text, checked_texts
from lr_dist.rate_plan import RatePlan, highest
from lr_dist.yaml_io import dump_yaml, load_yaml

SCHEMA_VERSION = 1
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_PURPOSE = 160
MAX_COUNT = 10**12
_KEYS = ("schema_version", "name", "purpose", "provenance")
_OPTIONAL = ("distribution", "plan", "methods", "schedule", "caution")


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
        families: the models for which it was made, as transformers names them (`model_type`: bert, vit, ...).
        layers: the numbers of layers of these models.
        batch_size: the number of examples in each step of the optimizer.
        examples: training examples of the smallest and of the largest task.
        spread: of each rate of the distribution, in the order of its values, by which factor the sources of a mean
            differ (geometric standard deviation).
        shown_for: what the source shows it for.
        not_shown_for: what the source does not show.
        translation: how the source defines the rate of each layer, and how that is written here.

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
    families: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    batch_size: int | None = None
    examples: tuple[int, int] | None = None
    spread: tuple[float, ...] = ()
    shown_for: str | None = None
    not_shown_for: str | None = None
    translation: str | None = None

    def __post_init__(self) -> None:
        for key in ("source", "model", "version"):
            object.__setattr__(self, key, checked_text(f"provenance.{key}", getattr(self, key)))
        object.__setattr__(self, "tasks", checked_texts("provenance.tasks", self.tasks))
        object.__setattr__(self, "evidence", checked_texts("provenance.evidence", self.evidence))
        for key in ("trials", "seeds"):
            _check_count(f"provenance.{key}", getattr(self, key))
        object.__setattr__(self, "date", _checked_date("provenance.date", self.date))
        if self.families not in ((), []):
            object.__setattr__(self, "families", checked_texts("provenance.families", self.families))
        object.__setattr__(self, "layers", _checked_counts("provenance.layers", self.layers))
        _check_count("provenance.batch_size", self.batch_size)
        if self.examples is not None:
            examples = _checked_counts("provenance.examples", self.examples)
            if len(examples) != 2 or examples[0] > examples[1]:
                raise InvalidPresetError(
                    "provenance.examples holds the size of the smallest and of the largest training set, as in [2490, "
                    f"392702], not {shown(self.examples)}."
                )
            object.__setattr__(self, "examples", examples)
        if not isinstance(self.spread, (list, tuple)) or not all(is_number(s) and s >= 1 for s in self.spread):
            raise InvalidPresetError(
                f"provenance.spread must be a list of factors of 1 or more, not {shown(self.spread)}."
            )
        object.__setattr__(self, "spread", tuple(float(factor) for factor in self.spread))
        for key in ("shown_for", "not_shown_for", "translation"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, checked_text(f"provenance.{key}", getattr(self, key)))

    @property
    def in_sequence(self) -> bool:
        """Whether it was found on tasks that were learned one after the other (`first>second`)."""
        return any(">" in task for task in self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, keys in the order of the attributes; optional ones only where they are known."""
        given = [f.name for f in fields(self) if f.default is MISSING or getattr(self, f.name) != f.default]
        data = {name: getattr(self, name) for name in given}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @classmethod
    def from_dict(cls, data: Any) -> Provenance:
        """Inverse of `to_dict`; the error names unknown and missing keys."""
        required = tuple(field.name for field in fields(cls) if field.default is MISSING)
        optional = tuple(field.name for field in fields(cls) if field.default is not MISSING)
        return cls(**_checked_keys("provenance", data, required, optional))


@dataclass(frozen=True)
class Preset:
    """A recipe with a name, one line on what it is for, and its evidence.

    Attributes:
        name: lower-case letters, digits, `.`, `_` and `-`.
        purpose: one line.
        distribution: the rates, for a single fit without phases; for a plan, the highest rate of each depth in its
            first stage.
        provenance: where it comes from.
        plan: the rates of every stage and phase; by default the distribution in all of them.
        methods: methods against forgetting that belong to it, in their text form: `interpolate:alpha=0.7`.
        schedule: how the source changes all rates over the steps; None if it does not belong to the recipe.
        caution: what to know before using it, for lists.

    Raises:
        InvalidPresetError: a value of the wrong type or form.
    """

    name: str
    purpose: str
    distribution: LRDistribution
    provenance: Provenance
    plan: RatePlan = None  # type: ignore[assignment]
    methods: tuple[str, ...] = ()
    schedule: PresetSchedule | None = None
    caution: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InvalidPresetError(
                f"name {shown(self.name)} does not match {NAME.pattern}: lower-case letters, digits, '.', '_' and "
                "'-', at most 64, a letter or digit first."
            )
        object.__setattr__(self, "name", str.__str__(self.name))
        object.__setattr__(self, "purpose", checked_text("purpose", self.purpose))
        if len(self.purpose) > MAX_PURPOSE:
            raise InvalidPresetError(
                f"purpose has {len(self.purpose)} characters; it is one line of at most {MAX_PURPOSE}. "
                "Put the rest into provenance.evidence."
            )
        if not isinstance(self.distribution, LRDistribution):
            raise InvalidPresetError(f"distribution must be an LRDistribution, not {shown(self.distribution)}.")
        if not isinstance(self.provenance, Provenance):
            raise InvalidPresetError(f"provenance must be a Provenance, not {shown(self.provenance)}.")
        if self.plan is None:
            object.__setattr__(self, "plan", RatePlan((self.distribution,)))
        if not isinstance(self.plan, RatePlan):
            raise InvalidPresetError(f"plan must be a RatePlan, not {shown(self.plan)}.")
        if {each.relative for each in self.plan.distributions} != {self.distribution.relative}:
            raise InvalidPresetError(
                f"The plan {shown(str(self.plan))} and the distribution {shown(str(self.distribution))} must both hold "
                "rates, or both multiples of the optimizer's rate (relative=true)."
            )
        if self.methods not in ((), []):
            object.__setattr__(self, "methods", checked_texts("methods", self.methods))
        else:
            object.__setattr__(self, "methods", ())
        if self.schedule is not None and not isinstance(self.schedule, PresetSchedule):
            raise InvalidPresetError(f"schedule must be a PresetSchedule, not {shown(self.schedule)}.")
        if self.caution is not None:
            object.__setattr__(self, "caution", checked_text("caution", self.caution))

    @property
    def is_plain(self) -> bool:
        """Whether it is one distribution for all stages, without methods."""
        return self.plan == RatePlan((self.distribution,)) and not self.methods

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what a preset file holds."""
        data: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "name": self.name, "purpose": self.purpose}
        if self.caution is not None:
            data["caution"] = self.caution
        if self.plan == RatePlan((self.distribution,)):
            data["distribution"] = self.distribution.to_dict()
        else:
            if self.distribution != highest(self.plan.stages[0]):
                data["distribution"] = self.distribution.to_dict()
            data["plan"] = self.plan.to_dict()
        if self.methods:
            data["methods"] = list(self.methods)
        if self.schedule is not None:
            data["schedule"] = self.schedule.to_dict()
        return {**data, "provenance": self.provenance.to_dict()}

    @classmethod
    def from_dict(cls, data: Any, *, source: str = "preset") -> Preset:
        """Inverse of `to_dict`; every error message starts with `source` (a file's path).

        Raises:
            InvalidPresetError: an unknown, missing or invalid key; the message names it and the source.
        """
        try:
            values = _checked_keys("the preset", data, _KEYS, _OPTIONAL)
            version = values.pop("schema_version")
            if type(version) is not int or version != SCHEMA_VERSION:
                raise InvalidPresetError(
                    f"schema_version is {shown(version)}; this lr-dist reads version {SCHEMA_VERSION}."
                )
            if "plan" in values:
                values["plan"] = _plan(values["plan"])
            elif "distribution" not in values:
                raise InvalidPresetError("missing key 'distribution' in the preset; it has a distribution or a plan.")
            if "distribution" in values:
                values["distribution"] = _distribution(values["distribution"])
            else:
                values["distribution"] = highest(values["plan"].stages[0])
            if values.get("schedule") is not None:
                values["schedule"] = PresetSchedule.from_dict(values["schedule"])
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


def _plan(data: Any) -> RatePlan:
    """A plan's text or mapping. It names no other preset: a preset must not change with another one."""
    try:
        return parse_plan(data, LRDistribution.parse) if isinstance(data, str) else RatePlan.from_dict(data)
    except LRDistError as error:
        raise InvalidPresetError(f"plan: {error}") from error


def _checked_keys(what: str, data: Any, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidPresetError(f"{what} must be a mapping with the keys {', '.join(keys)}, not {shown(data)}.")
    unknown = [key for key in data if key not in (*keys, *optional)]
    if unknown:
        allowed = ", ".join((*keys, *optional))
        raise InvalidPresetError(f"unknown key {listed(unknown)} in {what}; its keys are {allowed}.")
    missing = [key for key in keys if key not in data]
    if missing:
        raise InvalidPresetError(f"missing key {', '.join(map(repr, missing))} in {what}.")
    return dict(data)


def _check_count(key: str, count: Any) -> None:
    # type(): YAML has no form for subclasses of int.
    if count is not None and (type(count) is not int or not 1 <= count <= MAX_COUNT):
        raise InvalidPresetError(
            f"{key} must be a whole number from 1 to {MAX_COUNT}, or null where it is not known, not {shown(count)}."
        )


def _checked_counts(key: str, counts: Any) -> tuple[int, ...]:
    if not isinstance(counts, (list, tuple)) or None in counts:
        raise InvalidPresetError(f"{key} must be a list of whole numbers, not {shown(counts)}.")
    for i, count in enumerate(counts):
        _check_count(f"{key}[{i}]", count)
    return tuple(counts)


def _checked_date(key: str, value: Any) -> str:
    # Since Python 3.11 fromisoformat accepts other formats too, so the format is checked first.
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        try:
            calendar_date.fromisoformat(value)
            return str.__str__(value)
        except ValueError:
            pass
    raise InvalidPresetError(f"{key} must be a day as YYYY-MM-DD, not {shown(value)}.")
