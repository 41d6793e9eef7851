"""`RatePlan`: the learning-rate distribution of each stage of a task sequence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidDistributionError, shown

SEPARATOR = " | "


@dataclass(frozen=True)
class RatePlan:
    """A distribution for each stage; the last one holds in all later stages.

    In text, `A` alone holds in all stages; `A | B` is A in the first stage and B in all later ones.

    Attributes:
        stages: one or more distributions.

    Raises:
        InvalidDistributionError: no distribution, or an element that is not a distribution.
    """

    stages: tuple[LRDistribution, ...]

    def __post_init__(self) -> None:
        if not self.stages or not all(isinstance(stage, LRDistribution) for stage in self.stages):
            raise InvalidDistributionError(
                f"A rate plan is a tuple of one distribution or more, not {shown(self.stages)}."
            )
        stages = self.stages
        # A | B | B and A | B are the same plan.
        while len(stages) > 1 and stages[-1] == stages[-2]:
            stages = stages[:-1]
        object.__setattr__(self, "stages", tuple(stages))

    def stage(self, index: int) -> LRDistribution:
        """The distribution of stage `index`, counted from 0."""
        return self.stages[min(index, len(self.stages) - 1)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex); for a plan of one distribution it is that of the distribution, as in results of schema 1."""
        if len(self.stages) == 1:
            return self.stages[0].fingerprint
        content = json.dumps([stage.fingerprint for stage in self.stages])
        return hashlib.sha256(content.encode()).hexdigest()

    def __str__(self) -> str:
        return SEPARATOR.join(map(str, self.stages))
