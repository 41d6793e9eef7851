"""How each task of a sequence is trained and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError
from lr_dist.runs.precision import PRECISIONS

SCHEDULES = ("cosine", "linear", "constant")
SPLITS = ("validation", "dev")
# Settings of version 0.1, which are part of every identity. Later ones are left out if they have their default.
_FIRST_SETTINGS = (
    *("epochs", "batch_size", "max_length", "lr", "weight_decay", "warmup", "schedule", "precision", "evaluate_on"),
)


@dataclass(frozen=True)
class SequenceSettings:
    """Training settings that are the same for every task of a sequence.

    Attributes:
        epochs: passes over each task's training examples.
        batch_size: examples per step.
        max_length: maximum number of tokens per example; longer ones are cut.
        lr: the optimizer's own rate, which only relative distributions use.
        weight_decay: AdamW's decoupled decay; 0 (the default, as in arXiv 2404.01317) makes it Adam.
        warmup: share of each task's steps with a linearly rising rate.
        schedule: after the warm-up, `cosine` or `linear` to 0, or `constant`; restarted for each task.
        precision: `auto` (the faster one on this machine, see `lr_dist.runs.precision`), or Lightning's `32-true` or
            `bf16-mixed`.
        evaluate_on: `validation` (the official split, for evidence) or `dev` (drawn from train, for searching).

    Raises:
        ConfigurationError: a value out of range.
    """

    epochs: int = 3
    batch_size: int = 32
    max_length: int = 128
    lr: float = 1e-5
    weight_decay: float = 0.0
    warmup: float = 0.1
    schedule: str = "cosine"
    precision: str = "auto"
    evaluate_on: str = "validation"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("max_length", 8)):
            check_whole(name, getattr(self, name), least, error=ConfigurationError)
        check_finite("lr", self.lr, positive=True, error=ConfigurationError)
        check_finite("weight_decay", self.weight_decay, error=ConfigurationError)
        if not 0 <= self.warmup < 1:
            raise ConfigurationError(f"warmup is a share of the steps from 0 to below 1, not {self.warmup}.")
        for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("evaluate_on", SPLITS)):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self, methods: Sequence[str] = ()) -> dict[str, Any]:
        """The settings that are part of a run's identity.

        A setting of a later version is left out if it has its default, so that runs, studies and references that
        were finished before it existed stay valid.
        """
        defaults = {field.name: field.default for field in fields(self)}
        kept = {
            name: value for name, value in self.to_dict().items() if name in _FIRST_SETTINGS or value != defaults[name]
        }
        return {**kept, "method": " + ".join(methods) or "finetune"}
