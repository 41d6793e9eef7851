"""What a study has found so far, as numbers: what its page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidTrialsError, listed, shown
from lr_dist.search.combining.combine import PAPER_BASE, Trial, geometric_mean, geometric_spread, rank_weighted_log_mean
from lr_dist.search.combining.preset import DIGITS
from lr_dist.search.engine.slots import by_slot
from lr_dist.search.space import Space
from lr_dist.search.trials.checked import checked_identity, checked_trials, space_of
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.summary import best_trial, distribution_of, feasible

if TYPE_CHECKING:
    from optuna import Study

# Over how many of the best trials the spread is taken.
BEST = 10


@dataclass(frozen=True)
class Findings:
    """A study, read once from its storage.

    Attributes:
        name: of the study.
        identity: what it searches, see `SearchConfig.identity`.
        space: of its distributions.
        trials: one a slot, in the order of their numbers.
        retried: attempts that were lost with their worker or ended with an error, and were queued again.
        complete: the complete trials with scores, in the order of their numbers.
        ranked: those that keep the constraints, best first; empty for several objectives, which have no rank.
        best: the first of them.
        front: for several objectives, the trials that no other one beats in all of them, by the first one rising.
        mean: searched parameter -> its rank-weighted log mean over `ranked` (geometric mean over `front` for several
            objectives), rounded as in a preset; empty without trials.
        top: the trials that `spread` is over: the best ten, or the front.
        spread: searched parameter -> geometric standard deviation over `top`, a factor >= 1; empty for fewer than two.
    """

    name: str
    identity: dict[str, Any]
    space: Space
    trials: list[FrozenTrial]
    retried: list[FrozenTrial]
    complete: list[FrozenTrial]
    ranked: list[FrozenTrial]
    best: FrozenTrial | None
    front: list[FrozenTrial]
    mean: dict[str, float]
    top: list[FrozenTrial]
    spread: dict[str, float]

    @classmethod
    def of(cls, study: Study) -> Findings:
        """Read a study.

        Raises:
            InvalidTrialsError: not a study of `lr-dist search`, or one that was altered or damaged.
            StorageError: it cannot be read.
        """
        identity = checked_identity(study)
        if identity is None:
            raise InvalidTrialsError(f"{study.study_name!r} is no study of `lr-dist search`; there is nothing to show.")
        space = space_of(study.study_name, identity)
        stored = checked_trials(study)
        trials = sorted(by_slot(stored).values(), key=lambda trial: trial.number)
        standing = {trial.number for trial in trials}
        complete = [t for t in trials if t.state == TrialState.COMPLETE and TrialRecord.of(t).sequences]
        for trial in complete:
            tasks = _tasks(trial)
            if tasks != _tasks(complete[0]):
                raise InvalidTrialsError(
                    f"Trial {trial.number} of {study.study_name!r} learned {shown(tasks)}, not the tasks of trial "
                    f"{complete[0].number}: one of them was altered. Restore the study from a copy."
                )
            if set(trial.params) != set(space.searched):
                raise InvalidTrialsError(
                    f"Trial {trial.number} of {study.study_name!r} has the parameters {listed(trial.params)}, not "
                    f"those of the space {space.family}: it was altered. Restore the study from a copy."
                )
        several = len(study.directions) > 1
        ranked = [] if several else sorted((t for t in complete if feasible(t)), key=lambda t: -t.values[0])
        front = [complete[i] for i in front_of([tuple(t.values) for t in complete])] if several else []
        top = front or ranked[:BEST]
        mean = _mean(complete, ranked, front)
        return cls(
            name=study.study_name,
            identity=identity,
            space=space,
            trials=trials,
            retried=[t for t in stored if t.state == TrialState.FAIL and t.number not in standing],
            complete=complete,
            ranked=ranked,
            best=best_trial(study, complete),
            front=front,
            mean={name: float(f"{rate:.{DIGITS}g}") for name, rate in mean.items()},
            top=top,
            spread=geometric_spread([t.params for t in top]) if len(top) > 1 else {},
        )

    def with_state(self, *states: TrialState) -> list[FrozenTrial]:
        """The slots in these states."""
        return [trial for trial in self.trials if trial.state in states]

    @property
    def mean_distribution(self) -> LRDistribution | None:
        """The distribution of `mean`."""
        return self.space.distribution(self.mean) if self.mean else None

    @property
    def best_flat(self) -> FrozenTrial | None:
        """The best complete trial with one rate everywhere; None for several objectives, or where there is none."""
        return next((trial for trial in self.ranked if is_flat(trial)), None)

    @property
    def titles(self) -> list[str]:
        """The task sequences, as `sst2>qqp`; with the names of a shift's halves where a trial is complete."""
        if self.complete:
            return [scores.title for scores in TrialRecord.of(self.complete[0]).scores]
        return [">".join(str(task) for task in sequence) for sequence in self.identity["sequences"]]


def _tasks(trial: FrozenTrial) -> list[list[str]]:
    return [scores.tasks for scores in TrialRecord.of(trial).scores]


def is_flat(trial: FrozenTrial) -> bool:
    """Whether a trial has one rate everywhere, and nothing frozen."""
    return len(set(distribution_of(trial).rates(12).values())) == 1


def front_of(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the (x, y) that no other point beats, both to be maximised, by rising x.

    A point is beaten by one that is at least as high in both and higher in one; equal points stay together.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        x, y = points[index]
        if not front or y > points[front[-1]][1] or (x, y) == points[front[-1]]:
            front.append(index)
    return front[::-1]


def _mean(
    complete: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial], front: Sequence[FrozenTrial]
) -> dict[str, float]:
    if front:
        return geometric_mean([trial.params for trial in front])
    if not ranked:
        return {}
    # In the order of their numbers, as `lr-dist combine` takes them: trials of equal value keep it.
    return rank_weighted_log_mean([Trial(t.values[0], t.params) for t in complete if feasible(t)], PAPER_BASE)
