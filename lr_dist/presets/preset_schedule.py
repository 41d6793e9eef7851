"""The schedule that belongs to a recipe from the literature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lr_dist.checks import is_number
from lr_dist.errors import InvalidPresetError, listed, shown
from lr_dist.names import one_of
from lr_dist.presets.text_checks import checked_text

SHAPES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class PresetSchedule:
    """How a recipe changes all rates together over the steps of a fit. It describes; it does not train.

    Attributes:
        shape: after the warm-up: `linear` or `cosine` down to `end`, or `constant`.
        warmup: share of the steps with a linearly rising factor.
        end: factor at the last step.
        epochs: passes over the training data, if the source names them.
        note: what these numbers leave out.

    Raises:
        InvalidPresetError: a value of the wrong type or out of range.
    """

    shape: str
    warmup: float = 0.0
    end: float = 0.0
    epochs: float | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InvalidPresetError(f"schedule.shape must be {one_of(SHAPES, self.shape)}")
        for key in ("warmup", "end"):
            value = getattr(self, key)
            if not is_number(value) or not 0 <= value < 1:
                raise InvalidPresetError(f"schedule.{key} must be a number from 0 to below 1, not {shown(value)}.")
        if self.epochs is not None and not (is_number(self.epochs) and self.epochs > 0):
            raise InvalidPresetError(f"schedule.epochs must be a number above 0, not {shown(self.epochs)}.")
        if self.note is not None:
            object.__setattr__(self, "note", checked_text("schedule.note", self.note))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what has its default is left out."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in data.items() if key == "shape" or value != defaults[key]}

    @classmethod
    def from_dict(cls, data: Any) -> PresetSchedule:
        """Inverse of `to_dict`.

        Raises:
            InvalidPresetError: no mapping, no shape, or an unknown key.
        """
        keys = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or "shape" not in data:
            raise InvalidPresetError(f"schedule must be a mapping with the key shape, not {shown(data)}.")
        unknown = [key for key in data if key not in keys]
        if unknown:
            raise InvalidPresetError(f"unknown key {listed(unknown)} in schedule; its keys are {', '.join(keys)}.")
        return cls(**data)

    def __str__(self) -> str:
        warmup = f"{100 * self.warmup:.3g}% warm-up, then " if self.warmup else ""
        falls = "constant" if self.shape == "constant" else f"{self.shape} to {self.end:.3g}"
        epochs = "" if self.epochs is None else f", {self.epochs:g} epochs"
        return f"{warmup}{falls}{epochs}" + (f" ({self.note})" if self.note else "")
