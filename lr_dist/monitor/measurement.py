"""One measurement: scores and movement after so many steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """What was measured after `step` steps of the optimizer.

    Attributes:
        step: steps that the optimizer has taken.
        epoch: epochs that were completed.
        old: task -> score.
        forgotten: task -> what it has lost since the fit began; negative if it has become better.
        moved: layer -> relative L2 distance to its weights when the fit began.
        seconds: what the measurement took.
        new: metrics of the new task that it was judged by.
    """

    step: int
    epoch: int
    old: Mapping[str, float]
    forgotten: Mapping[str, float]
    moved: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    new: Mapping[str, float] = field(default_factory=dict)

    def logged(self) -> dict[str, float]:
        """`old/TASK`, `forgotten/TASK` and `moved/LAYER`."""
        parts = {"old": self.old, "forgotten": self.forgotten, "moved": self.moved}
        return {f"{kind}/{name}": value for kind, values in parts.items() for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_dict`."""
        return cls(**data)
