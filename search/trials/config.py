"""The configuration of a study, and the part of it that identifies the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lr_dist.errors import ConfigurationError, shown
from lr_dist.search.space import Space
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.tasks.registry import split_shift

MODES = ("relative", "sum", "constrained", "pareto")
TaskSpec = str | Mapping[str, Any]
# The smallest allowed flat reference rate; the largest is 1.
LEAST_RATE = 1e-9


@dataclass(frozen=True)
class Goal:
    """The objective of a study, computed from the scores after the whole sequence was learned.

    - `relative`: the sum of the tasks' scores, each rescaled so that 0 is the majority class (or chance) and 1 is the
      score of that task learned alone at its best flat rate.
    - `sum`: p_o + p_s, the objective of arXiv 2404.01317, for comparison with the paper. It rewards not learning the
      second task if its majority class is large.
    - `constrained`: p_o, with p_s at most `tolerance` below that of the tuned flat rate.
    - `pareto`: p_o and p_s as two objectives; nothing is pruned.

    Attributes:
        mode: one of the above.
        tolerance: for `constrained`, in the score's unit (0.01 is one percentage point).
        reference_rates: the flat rates to choose the best from: for each task alone in `relative`, for the whole
            sequence in `constrained`.

    Raises:
        ConfigurationError: an unknown mode, a negative tolerance, or invalid reference rates.
    """

    mode: str = "relative"
    tolerance: float = 0.01
    reference_rates: tuple[float, ...] = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3)

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
class SearchConfig:
    """The configuration of a search.

    Attributes:
        model: `minilm`, a hub name or a path.
        sequences: one or more task sequences; a trial learns each of them, and its value is the mean over them.
        space: the search space.
        goal: the objective.
        trials: total number of trials of the study, including the queued ones.
        seeds: a trial runs once per seed; the mean over the seeds is maximised.
        limit, dev_size, data_dir, data_seed: as for a comparison.
        settings: how each task is trained; by default it is scored on `dev`.
        queued: distributions to run before sampling starts, in addition to flat rates and the shipped presets.
        sampler_seed: seed of the sampler; None for a random one.
        methods: text forms of the methods against forgetting that every trial and reference uses.

    Raises:
        ConfigurationError: no tasks, or a number out of range.
    """

    model: str
    sequences: tuple[tuple[TaskSpec, ...], ...]
    space: Space = field(default_factory=Space)
    goal: Goal = field(default_factory=Goal)
    trials: int = 50
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    dev_size: int | float | None = None
    data_dir: str | None = None
    data_seed: int = 0
    settings: SequenceSettings = field(default_factory=lambda: replace(SequenceSettings(), evaluate_on="dev"))
    queued: tuple[TaskSpec, ...] = ()
    sampler_seed: int | None = None
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sequences or not all(self.sequences):
            raise ConfigurationError("Nothing to learn: give --tasks, e.g. --tasks sst2 qqp.")
        for sequence in self.sequences:
            if len(sequence) < 2 and split_shift(sequence[0])[1] is None:
                raise ConfigurationError(
                    f"A sequence needs two tasks or more, or a shift such as sst2@length; got {list(sequence)}."
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
