"""The configuration of a study, and the part of it that identifies the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lr_dist.errors import ConfigurationError, shown
from lr_dist.search.space import Space
from lr_dist.sequence.base_config import SequenceConfig
from lr_dist.sequence.settings import SequenceSettings

MODES = ("relative", "sum", "constrained", "pareto")
# Those with a p_o, which a single task does not have.
TWO_TASKS = ("constrained", "pareto")
TaskSpec = str | Mapping[str, Any]
# The smallest allowed flat reference rate; the largest is 1.
LEAST_RATE = 1e-9


@dataclass(frozen=True)
class Goal:
    """The objective of a study, computed from the scores after the whole sequence was learned.

    - `relative`: the sum of the tasks' scores, each rescaled so that 0 is the majority class (or chance) and 1 is the
      score of that task learned alone at its best flat rate. In a search on a single task, which needs no common
      scale: its score minus the majority class's.
    - `sum`: p_o + p_s, the objective of arXiv 2404.01317, for comparison with the paper. It rewards not learning the
      second task if its majority class is large.
    - `constrained`: p_o, with p_s at most `tolerance` below that of the tuned flat rate.
    - `pareto`: p_o and p_s as two objectives; nothing is pruned.

    A single task has no p_o: `sum` is then its score, and `constrained` and `pareto` need two tasks.

    Raises:
        ConfigurationError: an unknown mode, a negative tolerance, or invalid reference rates.
    """

    mode: str = field(default="relative", metadata={"option": "objective"})
    """What to maximise: relative, sum, constrained or pareto (p_o and p_s both)."""

    tolerance: float = 0.01
    """For the objective constrained: how far p_s may be below the tuned flat rate's (0.01 is one percentage point)."""

    reference_rates: tuple[float, ...] = field(
        default=(2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3), metadata={"brackets": True}
    )
    """Flat rates to try for the reference, [1e-4, 2e-4]; the best is taken: for relative of each task alone, for
    constrained of the whole sequence."""

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise ConfigurationError(f"The objective must be one of {', '.join(MODES)}, not {shown(self.mode)}.")
        if not (_is_number(self.tolerance) and 0 <= self.tolerance <= 1):
            raise ConfigurationError(
                f"tolerance must be in the score's unit, from 0 to 1, not {shown(self.tolerance)}."
            )
        rates = self.reference_rates
        if not rates or not all(_is_number(rate) and LEAST_RATE <= rate <= 1 for rate in rates):
            raise ConfigurationError(
                f"reference_rates must be one or more learning rates from {LEAST_RATE:g} to 1, not {shown(rates)}."
            )
        if len(set(rates)) < len(rates):
            raise ConfigurationError(f"reference_rates contains duplicates: {shown(rates)}.")

    def to_dict(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"mode": self.mode}
        if self.mode == "constrained":
            settings["tolerance"] = self.tolerance
        if self.mode in ("relative", "constrained"):
            settings["reference_rates"] = list(self.reference_rates)
        return settings


@dataclass(frozen=True)
class SearchConfig(SequenceConfig):
    """The configuration of a search.

    Raises:
        ConfigurationError: no tasks, an objective that needs two tasks for a single one, or a number out of range.
    """

    sequences: tuple[tuple[TaskSpec, ...], ...] = ()
    """Several task sequences instead of one, [[sst2, qqp], [qqp, sst2]]: each trial learns all of them, and its score
    is the mean."""

    space: Space = field(default_factory=Space)
    goal: Goal = field(default_factory=Goal)

    trials: int = 50
    """Number of trials of the whole study, over all workers and starts, queued ones included."""

    seeds: tuple[int, ...] = (0,)
    """Random seeds: each trial makes one run per seed, and its score is their mean."""

    queued: tuple[TaskSpec, ...] = ()
    """Distributions to try first; one outside the space is tried as the nearest inside it."""

    sampler_seed: int | None = None
    """Seed of the sampler, which makes the trials of a single worker repeatable; by default another one each time."""

    settings: SequenceSettings = field(
        default_factory=lambda: replace(SequenceSettings(), evaluate_on="dev"), kw_only=True
    )

    def __post_init__(self) -> None:
        if not self.sequences or not all(self.sequences):
            raise ConfigurationError("Nothing to learn: give --tasks, e.g. --tasks sst2 qqp.")
        for sequence in self.sequences:
            if self.goal.mode in TWO_TASKS and len(sequence) < 2 and not _is_shift(sequence[0]):
                raise ConfigurationError(
                    f"The objective {self.goal.mode} weighs an earlier task against a later one, and {list(sequence)} "
                    "is a single task. Use --objective relative or sum, or give two tasks or a shift such as "
                    "sst2@length."
                )
        if self.start is not None and len({str(sequence[0]) for sequence in self.sequences}) > 1:
            raise ConfigurationError(
                f"The start {self.start} has learned one task, and the sequences begin with different ones. Let all "
                "begin with its task, or search from each start in a study of its own."
            )
        if not _is_whole(self.trials) or self.trials < 1:
            raise ConfigurationError(f"trials must be a whole number from 1, not {shown(self.trials)}.")
        if not self.seeds or not all(_is_whole(seed) and seed >= 0 for seed in self.seeds):
            raise ConfigurationError(f"seeds must be one or more whole numbers from 0, not {shown(self.seeds)}.")
        if self.methods:
            # Imported here: methods are Lightning callbacks, and reading a study must not import Lightning.
            from lr_dist.methods import build_method

            for method in self.methods:
                build_method(method)
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds contains duplicates: {shown(self.seeds)}.")
        if self.sampler_seed is not None and not (_is_whole(self.sampler_seed) and 0 <= self.sampler_seed < 2**32):
            raise ConfigurationError(
                f"sampler_seed must be a whole number from 0 to 2^32 - 1, not {shown(self.sampler_seed)}."
            )

    @property
    def directions(self) -> list[str]:
        """Optuna's direction for each objective."""
        return ["maximize"] * (2 if self.goal.mode == "pareto" else 1)

    def identity(self, weights: str, data: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The configuration that must stay the same within a study; `trials`, `queued` and `sampler_seed` may change.

        Args:
            weights: fingerprint of the model's weights.
            data: fingerprints of the tasks of each sequence.
        """
        return {
            "model": self.model,
            "weights": weights,
            "sequences": [[task if isinstance(task, str) else dict(task) for task in s] for s in self.sequences],
            "data": [list(fingerprints) for fingerprints in data],
            "space": self.space.to_dict(),
            "goal": self.goal.to_dict(),
            "seeds": list(self.seeds),
            "limit": self.limit,
            "settings": self.settings.identity(self.methods),
        }


def _is_shift(task: TaskSpec) -> bool:
    # Tasks need NumPy, which would double the time of `lr-dist --help`.
    from lr_dist.tasks.registry import split_shift

    return split_shift(task)[1] is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
