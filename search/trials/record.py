"""The user attributes that lr-dist stores with a trial; the only module that defines their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from lr_dist.distribution import LRDistribution
from lr_dist.rate_plan import RatePlan

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial


# Constraints of a trial, each named with the number of its sequence after it.
LOW_P_S, LOST_NATS = "p_s of sequence ", "nats lost of sequence "


@dataclass(frozen=True)
class SequenceScores:
    """The scores of a complete trial on one task sequence, as means over the seeds.

    Attributes:
        tasks: task names, in the order in which they are learned.
        p_o: mean score on the earlier tasks after the last one was learned; None for a single task.
        p_s: score on the last task.
        p_o_sd, p_s_sd: standard deviations over the seeds; None for one seed.
        final: score on each task after the last stage.
        baseline: score of each task's majority class.
        learned: for each task, whether its score is significantly above the baseline.
    """

    tasks: list[str]
    p_o: float | None
    p_s: float
    p_o_sd: float | None
    p_s_sd: float | None
    final: list[float]
    baseline: list[float]
    learned: list[bool]

    @property
    def title(self) -> str:
        """`sst2>qqp`."""
        return ">".join(self.tasks)

    @property
    def not_learned(self) -> list[str]:
        """The tasks whose final score is no better than their majority class, as `sst2>qqp: qqp`."""
        return [f"{self.title}: {task}" for task, ok in zip(self.tasks, self.learned, strict=True) if not ok]


@dataclass(frozen=True)
class TrialRecord:
    """A trial's user attributes as they are stored, under the names of the fields. Validate first: `checked`.

    Attributes:
        slot: slot in the study; None if lr-dist did not queue the trial.
        label: name of a queued distribution, e.g. `flat 1e-05`; None if the trial was sampled.
        reason: why the trial failed for good.
        error: the error of an attempt that is queued again.
        distribution: the trial's distribution, as plain data; of the first stage that is searched.
        plan: the distributions of all stages, as plain data; missing if it is the same one in all of them.
        environment: versions and machine.
        runs: one entry per seed and sequence, see `trial.run_once`.
        values_by_seed: the objectives for each seed.
        value_sd: the standard deviation of each objective over the seeds; None for one seed.
        sequences: `SequenceScores` as plain data.
        seconds: total time of all runs.
        progress: training steps that are `done`, of a `total`, and the `seconds` they took.
        worker_peak_memory_mb: peak memory of the process at the end of the trial.
        final: the score on each task; for references only.
    """

    slot: int | None = None
    label: str | None = None
    reason: str | None = None
    error: str | None = None
    distribution: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    runs: Sequence[dict[str, Any]] = ()
    values_by_seed: Sequence[Sequence[float]] = ()
    value_sd: Sequence[float | None] = ()
    sequences: Sequence[Mapping[str, Any]] = ()
    seconds: float | None = None
    progress: Mapping[str, float] | None = None
    worker_peak_memory_mb: float | None = None
    final: Sequence[float] = ()

    @classmethod
    def of(cls, trial: FrozenTrial | Trial) -> TrialRecord:
        """Read a trial's attributes; missing ones are None or empty."""
        attrs = trial.user_attrs
        return cls(**{name: attrs[name] for name in NAMES if name in attrs})

    @property
    def is_queued(self) -> bool:
        """Whether the trial was queued with a given distribution, not sampled."""
        return self.label is not None

    @property
    def tried(self) -> LRDistribution | None:
        """The trial's distribution; None before the trial has started."""
        return None if self.distribution is None else LRDistribution.from_dict(self.distribution)

    @property
    def planned(self) -> RatePlan | None:
        """The distributions of all stages; None before the trial has started."""
        if self.plan is not None:
            return RatePlan.from_dict(self.plan)
        return None if self.tried is None else RatePlan((self.tried,))

    @property
    def scores(self) -> list[SequenceScores]:
        """The scores on each task sequence; empty before the trial is complete."""
        return [SequenceScores(**{name: sequence[name] for name in SCORES}) for sequence in self.sequences]

    @property
    def precision(self) -> Any:
        """The precision in which the trial was started, e.g. `bf16-mixed`; None if it was not recorded."""
        choice = self.environment.get("precision") if isinstance(self.environment, Mapping) else None
        return choice.get("chosen") if isinstance(choice, Mapping) else None


NAMES = tuple(field.name for field in fields(TrialRecord))
SCORES = tuple(field.name for field in fields(SequenceScores))


def keep(trial: Trial, **entries: Any) -> None:
    """Store user attributes of a trial, by the names of `TrialRecord`'s fields.

    Raises:
        TypeError: an unknown name.
    """
    for name, value in entries.items():
        if name not in NAMES:
            raise TypeError(f"A trial's record has no field {name!r}; it has {', '.join(NAMES)}.")
        trial.set_user_attr(name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, (LRDistribution, RatePlan)):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return asdict(value) if isinstance(value, SequenceScores) else value
