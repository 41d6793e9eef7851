"""`StageContext`: which stage of a task sequence a method is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lr_dist._lightning import L
from lr_dist.runs.seeds import seed_of


class Score(Protocol):
    """A task's score on its held-out examples; higher is better."""

    def __call__(self, module: L.LightningModule, *, part: int | None = None) -> float:
        """Score with the module's weights.

        Args:
            module: the module that is trained.
            part: 0 or 1 for one half of the examples, so that what one half chose can be checked on the other; None for
                all.
        """


@dataclass(frozen=True)
class StageContext:
    """The stage that a fit learns.

    Attributes:
        index: number of the stage, from 0; in the first one there is no earlier task.
        task: name of the task that is learned.
        head: the head that it trains, for modules with a head a task (see `lr_dist.methods.task_functions`); None for
            modules with one head.
        seed: seed of the random draws that methods make themselves.
        held_out: task -> its score (higher is better) on examples that are not trained on and not reported; the
            earlier tasks in their order, then this one. Empty if there are none.
        earlier_heads: the heads of earlier tasks, each once, in their order; with `head` if one of them has it.
        last: whether no later stage follows, so that nothing has to be learned for one; False if that is not known.
    """

    index: int = 0
    task: str = ""
    head: str | None = None
    seed: int = 0
    held_out: Mapping[str, Score] = field(default_factory=dict)
    earlier_heads: tuple[str, ...] = ()
    last: bool = False

    def generator(self, name: str) -> torch.Generator:
        """A generator of its own for a method's draws in this stage, so that no other random number changes."""
        return torch.Generator().manual_seed(seed_of(f"{self.seed}/{self.index}/{name}", 63))
