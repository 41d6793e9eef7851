"""What lr-dist keeps of a trial in its user attributes: the one place that knows their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from lr_dist.distribution import LRDistribution

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True)
class SequenceScores:
    """One task sequence of a complete trial: means over the seeds.

    Attributes:
        tasks: their names, in the order of learning.
        p_o: mean score on the tasks before the last one, after the last one was learned.
        p_s: score on the last task.
        p_o_sd, p_s_sd: standard deviations over the seeds; None for one seed.
        final: score of each task after the last one.
        baseline: score of each task's majority class.
        learned: for each task whether its score is above that by more than chance.
    """

    tasks: list[str]
    p_o: float
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
        """Tasks that were left no better than their majority class, as `sst2>qqp: qqp`."""
        return [f"{self.title}: {task}" for task, ok in zip(self.tasks, self.learned, strict=True) if not ok]


@dataclass(frozen=True)
class TrialRecord:
    """A trial's user attributes as they are stored, each field under its own name. Check a study before: `checked`.

    Attributes:
        slot: of the study; None for a trial that lr-dist did not queue.
        label: of a distribution that was queued, e.g. `flat 1e-05`; None for what the sampler drew.
        reason: why the trial failed for good.
        error: what an attempt that is queued again ended with.
        distribution: what it tried, as plain data.
        environment: versions and machine.
        runs: one a seed and sequence, see `trial.run_once`.
        values_by_seed: the objectives under each seed.
        value_sd: the standard deviation of each objective over the seeds; None for one seed.
        sequences: `SequenceScores` as plain data.
        seconds: all runs together.
        worker_peak_memory_mb: of the process, at the end of the trial.
        final: of a reference: the score of each task.
    """

    slot: int | None = None
    label: str | None = None
    reason: str | None = None
    error: str | None = None
    distribution: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    runs: Sequence[dict[str, Any]] = ()
    values_by_seed: Sequence[Sequence[float]] = ()
    value_sd: Sequence[float | None] = ()
    sequences: Sequence[Mapping[str, Any]] = ()
    seconds: float | None = None
    worker_peak_memory_mb: float | None = None
    final: Sequence[float] = ()

    @classmethod
    def of(cls, trial: FrozenTrial | Trial) -> TrialRecord:
        """Read a trial; what it does not have is None or empty."""
        attrs = trial.user_attrs
        return cls(**{name: attrs[name] for name in NAMES if name in attrs})

    @property
    def is_queued(self) -> bool:
        """Whether the trial was queued with a distribution, not drawn."""
        return self.label is not None

    @property
    def tried(self) -> LRDistribution | None:
        """What the trial tried; None before it began."""
        return None if self.distribution is None else LRDistribution.from_dict(self.distribution)

    @property
    def scores(self) -> list[SequenceScores]:
        """One a task sequence; empty before the trial was complete."""
        return [SequenceScores(**{name: sequence[name] for name in SCORES}) for sequence in self.sequences]

    @property
    def precision(self) -> Any:
        """What the trial was begun in, e.g. `bf16-mixed`; None where it does not say."""
        choice = self.environment.get("precision") if isinstance(self.environment, Mapping) else None
        return choice.get("chosen") if isinstance(choice, Mapping) else None


NAMES = tuple(field.name for field in fields(TrialRecord))
SCORES = tuple(field.name for field in fields(SequenceScores))


def keep(trial: Trial, **entries: Any) -> None:
    """Write entries of a trial's record: those of `TrialRecord`, by name, as values or as plain data.

    Raises:
        TypeError: there is no such entry.
    """
    for name, value in entries.items():
        if name not in NAMES:
            raise TypeError(f"A trial's record has no {name!r}; it has {', '.join(NAMES)}.")
        trial.set_user_attr(name, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, LRDistribution):
        return value.to_dict()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return asdict(value) if isinstance(value, SequenceScores) else value
