"""The results of a study, as shown on its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from lr_dist._distribution.families import COMPOSED
from lr_dist._distribution.sanity import readable
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidTrialsError, listed, shown
from lr_dist.presets import resolve_plan
from lr_dist.rate_plan import Phases, RatePlan
from lr_dist.search.combining.combine import (
    PAPER_BASE,
    ScoredRates,
    geometric_mean,
    geometric_spread,
    rank_weighted_log_mean,
)
from lr_dist.search.combining.preset import DIGITS
from lr_dist.search.engine.slots import by_slot
from lr_dist.search.space import Space
from lr_dist.search.space.space import is_flat
from lr_dist.search.trials.checked import checked_identity, checked_trials, space_of
from lr_dist.search.trials.config import OWN
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.summary import best_trial, distribution_of, feasible, plan_of

if TYPE_CHECKING:
    from optuna import Study

# The spread is computed over this many of the best trials.
BEST = 10


@dataclass(frozen=True)
class Findings:
    """The results of a study, read once from its storage.

    Attributes:
        name: of the study.
        identity: its configuration, see `SearchConfig.identity`.
        space: its search space.
        trials: one per slot, sorted by number.
        retried: attempts that were lost with their worker or raised an error, and were queued again.
        complete: the complete trials with scores, sorted by number.
        ranked: the feasible ones, best first; empty for several objectives, which have no ranking.
        best: the first of `ranked`.
        front: for several objectives, the Pareto front, sorted by the first objective in ascending order.
        mean: searched parameter -> its rank-weighted log mean over `ranked` (geometric mean over `front` for several
            objectives), rounded as in a preset; empty without trials.
        top: the trials over which `spread` is computed: the best ten, or the front.
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
            raise InvalidTrialsError(f"{study.study_name!r} is not a study of `lr-dist search`.")
        space = space_of(study.study_name, identity)
        stored = checked_trials(study)
        trials = sorted(by_slot(stored).values(), key=lambda trial: trial.number)
        current = {trial.number for trial in trials}
        own = identity["goal"]["mode"] == OWN
        complete = [t for t in trials if t.state == TrialState.COMPLETE and (own or TrialRecord.of(t).sequences)]
        for trial in complete:
            tasks = _tasks(trial)
            if tasks != _tasks(complete[0]):
                raise InvalidTrialsError(
                    f"Trial {trial.number} of {study.study_name!r} learned {shown(tasks)}, not the tasks of trial "
                    f"{complete[0].number}: one of them was altered. Restore the study from a backup."
                )
            # A program can ask for parameters that are not of the space.
            names, searched = set(trial.params), set(space.searched)
            if not names >= searched or (names > searched and not own):
                raise InvalidTrialsError(
                    f"Trial {trial.number} of {study.study_name!r} has the parameters {listed(trial.params)}, not "
                    f"those of the space {space.family}: it was altered. Restore the study from a backup."
                )
        several = len(study.directions) > 1
        ranked = [] if several else sorted((t for t in complete if feasible(t)), key=lambda t: -t.values[0])
        front = [complete[i] for i in front_of([tuple(t.values) for t in complete])] if several else []
        top = front or ranked[:BEST]
        mean = _mean(complete, ranked, front, space.searched)
        return cls(
            name=study.study_name,
            identity=identity,
            space=space,
            trials=trials,
            retried=[t for t in stored if t.state == TrialState.FAIL and t.number not in current],
            complete=complete,
            ranked=ranked,
            best=best_trial(study, complete),
            front=front,
            mean={name: float(f"{rate:.{DIGITS}g}") for name, rate in mean.items()},
            top=top,
            spread=geometric_spread([_searched(t, space.searched) for t in top]) if len(top) > 1 else {},
        )

    def with_state(self, *states: TrialState) -> list[FrozenTrial]:
        """The slots in these states."""
        return [trial for trial in self.trials if trial.state in states]

    def searched_plan(self, trial: FrozenTrial) -> RatePlan:
        """The distributions of the stages whose rates are searched."""
        plan = plan_of(trial)
        return RatePlan(plan.stages[1:]) if "first" in self.identity and len(plan.stages) > 1 else plan

    def with_first(self, plan: RatePlan) -> RatePlan:
        """A plan of the stages that are searched, with the given rates of the first stage before it."""
        first = self.identity.get("first")
        return plan if first is None else RatePlan((resolve_plan(first).stages[0], *plan.stages))

    @property
    def mean_distribution(self) -> RatePlan | None:
        """The rates of `mean`, of all stages that are searched."""
        return self.space.plan(self.mean) if self.mean else None

    @property
    def best_flat(self) -> FrozenTrial | None:
        """The best flat trial that is complete and feasible; None if there is none, or for several objectives."""
        return next((trial for trial in self.ranked if is_flat_trial(trial)), None)

    @property
    def objectives(self) -> list[str]:
        """A short name for each value of a trial."""
        several = {"pareto": ["p_o", "p_s"], "retention": ["score", "minus nats lost"]}
        return several.get(self.identity["goal"]["mode"], ["value"])

    @property
    def titles(self) -> list[str]:
        """The task sequences, as `sst2>qqp`; a shift's halves are named once a trial is complete."""
        if self.complete and self.identity["goal"]["mode"] != OWN:
            return [scores.title for scores in TrialRecord.of(self.complete[0]).scores]
        return [">".join(str(task) for task in sequence) for sequence in self.identity["sequences"]]


def _tasks(trial: FrozenTrial) -> list[list[str]]:
    return [scores.tasks for scores in TrialRecord.of(trial).scores]


def is_flat_trial(trial: FrozenTrial) -> bool:
    """Whether a trial has one rate everywhere in the stages that are searched, with nothing frozen."""
    searched = plan_of(trial).stages[-1]
    return searched == distribution_of(trial) and is_flat(distribution_of(trial))


def named(plan: RatePlan) -> RatePlan:
    """The plan as it is shown: rates in three digits, and `flat:lr=1e-4` for a stage whose rates are all 1e-4."""
    return RatePlan(tuple(_named(stage) for stage in plan.stages))


def _named(stage: LRDistribution | Phases) -> LRDistribution | Phases:
    if not isinstance(stage, LRDistribution) or stage.family in COMPOSED:
        return stage
    if not is_flat(stage):
        return LRDistribution.parse(readable(str(stage)))
    return LRDistribution.flat(float(f"{next(iter(stage.rates(12).values())):.12g}"), relative=stage.relative)


def front_of(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the Pareto front of points (x, y), both maximised, in ascending order of x.

    A point is dominated by one that is at least as high in both and higher in one; equal points do not dominate.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        x, y = points[index]
        if not front or y > points[front[-1]][1] or (x, y) == points[front[-1]]:
            front.append(index)
    return front[::-1]


def _mean(
    complete: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial], front: Sequence[FrozenTrial], names: Sequence[str]
) -> dict[str, float]:
    if front:
        return geometric_mean([_searched(trial, names) for trial in front])
    if not ranked:
        return {}
    # Sorted by number, like `lr-dist combine`, so that ties are broken in the same way.
    scored = [ScoredRates(t.values[0], _searched(t, names)) for t in complete if feasible(t)]
    return rank_weighted_log_mean(scored, PAPER_BASE)


def _searched(trial: FrozenTrial, names: Sequence[str]) -> dict[str, float]:
    return {name: trial.params[name] for name in names}
