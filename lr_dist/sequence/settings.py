"""How each task of a sequence is trained and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from lr_dist._distribution.schedule import SCHEDULES
from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError
from lr_dist.names import one_of
from lr_dist.runs.precision import PRECISIONS

# Increase it when a change of the code makes old runs incomparable with new ones.
RUN_VERSION = 4
SPLITS = ("validation", "dev")
# Settings of version 0.1, which are part of every identity. Later ones are left out if they have their default.
_FIRST_SETTINGS = (
    *("epochs", "batch_size", "max_length", "lr", "weight_decay", "warmup", "schedule", "precision", "evaluate_on"),
)


@dataclass(frozen=True)
class SequenceSettings:
    """Training settings that are the same for every task of a sequence.

    Raises:
        ConfigurationError: a value out of range.
    """

    epochs: int = 3
    """Passes over each task's training examples."""

    batch_size: int = 32
    """Training examples per optimizer step."""

    max_length: int = 128
    """Maximum number of tokens per example; longer ones are cut."""

    lr: float = 1e-5
    """The optimizer's learning rate; only relative distributions use it, which multiply it."""

    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; 0, as in arXiv 2404.01317, makes it Adam."""

    warmup: float = 0.1
    """Share of each task's steps in which the rate rises linearly, from 0 to below 1."""

    schedule: str = "cosine"
    """Rate after the warm-up: cosine or linear (both fall to 0), or constant; it starts again with each task."""

    precision: str = "auto"
    """Precision of training: 32-true, bf16-mixed, or auto (the faster one on the machine)."""

    evaluate_on: str = "validation"
    """Split to score on: validation (the official one, for reported results) or dev (taken from train, for
    searching)."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("max_length", 8)):
            check_whole(name, getattr(self, name), least, error=ConfigurationError)
        check_finite("lr", self.lr, positive=True, error=ConfigurationError)
        check_finite("weight_decay", self.weight_decay, error=ConfigurationError)
        if not 0 <= self.warmup < 1:
            raise ConfigurationError(f"warmup is a share of the steps from 0 to below 1, not {self.warmup}.")
        for name, allowed in (("schedule", SCHEDULES), ("precision", PRECISIONS), ("evaluate_on", SPLITS)):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} must be {one_of(allowed, getattr(self, name))}")

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
