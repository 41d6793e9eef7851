"""`Draws`: which stored examples are replayed at which step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Draws:
    """Goes through the stored examples in random order, again and again, each time in another order.

    Args:
        generator: of random numbers; its state is part of `state`.
        stage: number of the stage that it serves.
    """

    def __init__(self, generator: torch.Generator, stage: int) -> None:
        self.stage = stage
        self._generator = generator
        self._new = 0
        self._due = 0
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    def due(self, ratio: float, new: int) -> int:
        """How many examples are due after `new` new ones, so that after every step `floor(ratio * all new)` were."""
        self._new += new
        # 0.29 * 100 is 28.999999999999996.
        due = math.floor(ratio * self._new + 1e-9) - self._due
        self._due += due
        return due

    def take(self, number: int, total: int) -> Tensor:
        """The next `number` of the indices 0 to `total - 1` [number]."""
        if len(self._order) != total:
            self._order, self._position = self._shuffled(total), 0
        parts = []
        while number:
            if self._position == total:
                self._order, self._position = self._shuffled(total), 0
            parts.append(self._order[self._position : self._position + number])
            self._position += len(parts[-1])
            number -= len(parts[-1])
        return torch.cat(parts)

    def _shuffled(self, total: int) -> Tensor:
        return torch.randperm(total, generator=self._generator)

    def state(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "generator": self._generator.get_state(),
            "new": self._new,
            "due": self._due,
            "order": self._order,
            "position": self._position,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Draws:
        generator = torch.Generator()
        generator.set_state(state["generator"])
        draws = cls(generator, state["stage"])
        draws._new, draws._due = state["new"], state["due"]
        draws._order, draws._position = state["order"], state["position"]
        return draws
