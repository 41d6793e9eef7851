"""Run one trial: learn every sequence with the trial's distribution under every seed, and store the results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from optuna import TrialPruned
from optuna.pruners import WilcoxonPruner
from optuna.trial import Trial

from lr_dist.distribution import LRDistribution
from lr_dist.rate_plan import RatePlan
from lr_dist.search.trials.config import LEAST_RATE, SearchConfig
from lr_dist.search.trials.objective import Reference, p_o, p_s, partial, value, violation
from lr_dist.search.trials.record import LOST_NATS, LOW_P_S, SequenceScores, TrialRecord, keep
from lr_dist.search.trials.workload import TrialProgress
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.environment import describe_environment, peak_memory_mb
from lr_dist.sequence.interrupts import interruptible, interrupts_held_back
from lr_dist.sequence.measures import MakeMeasure
from lr_dist.sequence.metrics import was_learned
from lr_dist.sequence.observers import EpochEnd, Observer, SequenceState, TestAfterEpochs
from lr_dist.sequence.runner import SequenceRun, count_steps, run_sequence
from lr_dist.sequence.stage import Stage
from lr_dist.sequence.stage_store import StageStore

# Of a run's metrics, see `lr_dist.retention.measure`.
LOST = "retention_lost"


class SequenceObjective:
    """The objective function of a study, called with a trial.

    Runs that a killed worker has finished for the same slot are reused.

    Args:
        config: of the study.
        benches: one per sequence.
        references: one per sequence.
        store: of the first stages, see `first_stages`; None to learn them in every trial.
        measures: what is measured in every run; their metrics are kept with it.
    """

    def __init__(
        self,
        config: SearchConfig,
        benches: Sequence[Bench],
        references: Sequence[Reference],
        store: StageStore | None = None,
        measures: Sequence[MakeMeasure] = (),
    ) -> None:
        self.config = config
        self.measures = tuple(measures)
        self.store = store
        self.benches = list(benches)
        self.references = list(references)

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        """Run the trial; its user attributes then hold distribution, runs, scores, spread and versions.

        Raises:
            TrialPruned: the pruner stopped it.
            DivergedError: a loss became NaN or infinite.
        """
        goal = self.config.goal
        suggested = self.config.space.suggest_plan(trial)
        plan = self.config.with_first(suggested)
        arm = Arm(str(plan), plan, self.config.methods)
        keep(trial, distribution=suggested.stages[0], **({"plan": plan} if len(plan.stages) > 1 else {}))
        keep(trial, environment=describe_environment(self.benches[0].choices()))
        runs = list(TrialRecord.of(trial).runs)
        progress = _Progress(trial, self.benches, self.config.seeds)
        by_instance = isinstance(trial.study.pruner, WilcoxonPruner)
        for place, seed in enumerate(self.config.seeds):
            before = 0.0
            for index, (bench, reference) in enumerate(zip(self.benches, self.references, strict=True)):
                run = next((r for r in runs if r["seed"] == seed and r["sequence"] == index), None)
                if run is not None:
                    progress.skip_run(bench)
                else:
                    by_epoch = place == 0 and not by_instance
                    prune = self._pruning(trial, index, before) if by_epoch else _no_pruning
                    measures = [make() for make in self.measures]
                    observers = [progress, *measures]
                    run = {"sequence": index, **run_once(bench, arm, seed, prune, self.store, observers)}
                    for measure in measures:
                        run["metrics"] = {**run.get("metrics", {}), **measure.metrics()}
                    runs.append(run)
                    keep(trial, runs=runs)
                if by_instance:
                    # Also the runs of a lost trial, which is queued again as a new one.
                    instance = place * len(self.benches) + index
                    _report(trial, value(goal, reference, run["final"])[0], instance)
                if not goal.several:
                    before += value(goal, reference, run["final"])[0]
        return self._value(trial, runs)

    def _pruning(self, trial: Trial, index: int, before: float) -> Callable[[EpochEnd], None]:
        """A function that reports the intermediate value after every epoch, and prunes the trial if Hyperband says so.

        The step counts the epochs of the tasks whose rates are searched, so trials are compared at the same point of
        the sequence: a first task that is given, or has given rates, is the same in all trials.
        """
        goal, epochs = self.config.goal, self.config.settings.epochs
        given = 1 if self.config.first is not None else self.benches[index].first_trained
        first = sum(len(bench.tasks) - given for bench in self.benches[:index]) * epochs

        def on_epoch_end(end: EpochEnd) -> None:
            if goal.several or end.task < given:
                return
            intermediate = before + partial(goal, self.references[index], end.scores)
            _report(trial, intermediate, first + (end.task - given) * epochs + end.epoch + 1)

        return on_epoch_end

    def _value(self, trial: Trial, runs: Sequence[dict[str, Any]]) -> tuple[float, ...]:
        goal, seeds = self.config.goal, self.config.seeds
        by_seed = []
        for seed in seeds:
            done = [next(r for r in runs if (r["seed"], r["sequence"]) == (seed, i)) for i in self._indices]
            each = [
                value(goal, ref, run["final"], run.get("metrics", {}).get(LOST))
                for ref, run in zip(self.references, done, strict=True)
            ]
            by_seed.append(tuple(statistics.fmean(column) for column in zip(*each, strict=True)))
        keep(
            trial,
            values_by_seed=by_seed,
            value_sd=[_sd(column) for column in zip(*by_seed, strict=True)],
            sequences=[self._sequence(i, runs) for i in self._indices],
            seconds=round(sum(run["seconds"] for run in runs), 3),
            worker_peak_memory_mb=peak_memory_mb(),
        )
        for index in self._indices:
            excess = violation(goal, self.references[index], _mean_final(index, runs))
            if excess is not None:
                trial.set_constraint(f"{LOW_P_S}{index}", excess)
            if self.config.retention is not None and goal.mode != "retention":
                lost = [run["metrics"][LOST] for run in runs if run["sequence"] == index]
                trial.set_constraint(f"{LOST_NATS}{index}", statistics.fmean(lost) - self.config.most_lost)
        return tuple(statistics.fmean(column) for column in zip(*by_seed, strict=True))

    def _sequence(self, index: int, runs: Sequence[dict[str, Any]]) -> SequenceScores:
        """The scores on one sequence, as means over the seeds, and whether each task was learned."""
        bench = self.benches[index]
        finals = [run["final"] for run in runs if run["sequence"] == index]
        mean = _mean_final(index, runs)
        split = bench.settings.evaluate_on
        return SequenceScores(
            tasks=[task.name for task in bench.tasks],
            p_o=p_o(mean),
            p_s=p_s(mean),
            p_o_sd=_sd([value for final in finals if (value := p_o(final)) is not None]),
            p_s_sd=_sd([p_s(final) for final in finals]),
            final=mean,
            baseline=list(bench.baseline),
            learned=[
                was_learned(score, low, len(getattr(task, split)))
                for score, low, task in zip(mean, bench.baseline, bench.tasks, strict=True)
            ],
        )

    @property
    def _indices(self) -> range:
        return range(len(self.benches))


class ReferenceObjective:
    """The objective function of a reference study: a flat rate on one sequence, or on one task alone.

    Args:
        bench: the sequence, or the task.
        config: of the study.
        store: of the first stages.
    """

    def __init__(self, bench: Bench, config: SearchConfig, store: StageStore | None = None) -> None:
        self.bench = bench
        self.config = config
        self.store = store

    def __call__(self, trial: Trial) -> tuple[float, ...]:
        """The sum over the tasks of score minus majority class, as a mean over the seeds."""
        lr = trial.suggest_float("lr", LEAST_RATE, 1.0, log=True)
        keep(trial, environment=describe_environment(self.bench.choices()))
        plan = RatePlan((LRDistribution.flat(lr),))
        if len(self.bench.tasks) > 1:
            plan = self.config.with_first(plan)
        arm = Arm(str(plan), plan, self.config.methods)
        watching = [_Progress(trial, [self.bench], self.config.seeds)]
        runs = [run_once(self.bench, arm, seed, store=self.store, observers=watching) for seed in self.config.seeds]
        keep(trial, runs=runs)
        final = [statistics.fmean(column) for column in zip(*(run["final"] for run in runs), strict=True)]
        keep(trial, final=final)
        return (sum(score - low for score, low in zip(final, self.bench.baseline, strict=True)),)


def _report(trial: Trial, intermediate: float, step: int) -> None:
    """Report an intermediate value.

    Raises:
        TrialPruned: the pruner stops the trial.
    """
    with interrupts_held_back():
        trial.report(intermediate, step)
        # Called for queued trials as well, because Hyperband compares only with trials for which it was called; but
        # queued trials are the controls, so they always run to the end.
        should_prune = trial.should_prune()
    if should_prune and not TrialRecord.of(trial).is_queued:
        raise TrialPruned


def run_once(
    bench: Bench,
    arm: Arm,
    seed: int,
    epoch_tested: Callable[[EpochEnd], None] = lambda end: None,
    store: StageStore | None = None,
    observers: Sequence[Observer] = (),
) -> dict[str, Any]:
    """One run as plain data; `final` holds the scores on all tasks after the last stage. Ctrl-C can interrupt it."""
    with interruptible():
        run: SequenceRun = run_sequence(bench, arm, seed, TestAfterEpochs(epoch_tested), observers, store=store)
    return {
        "seed": seed,
        # Recorded per run, because the runs of one trial can come from two workers.
        "precision": bench.settings.precision,
        "matrix": run.matrix,
        "final": run.matrix[-1],
        "scores": run.scores[-1],
        "seconds": round(run.seconds, 3),
        "train_seconds": round(run.train_seconds, 3),
        # What methods chose by evaluation, such as the alpha of interpolate:alpha=auto.
        **({"methods": run.methods} if any(run.methods) else {}),
        **({"taken_over_seconds": round(run.taken_over_seconds, 3)} if run.taken_over else {}),
        "tokens": run.tokens,
    }


class _Progress(Observer):
    """Stores a trial's progress after every epoch, from which the time left is estimated."""

    needs_training = False

    def __init__(self, trial: Trial, benches: Sequence[Bench], seeds: Sequence[int]) -> None:
        self._trial = trial
        self._progress = TrialProgress(len(seeds) * sum(count_steps(b.tokens, b.settings) for b in benches))

    def skip_run(self, bench: Bench) -> None:
        """A run is finished already."""
        self._progress.skip(count_steps(bench.tokens, bench.settings))

    def epoch_ended(self, run: SequenceState, stage: Stage, epoch: int) -> None:
        settings = run.bench.settings
        self._progress.add(count_steps([stage.tokens], settings) // settings.epochs)
        with interrupts_held_back():
            keep(self._trial, progress=self._progress.to_dict())

    def stage_taken_over(self, run: SequenceState, stage: Stage, steps: int) -> None:
        self._progress.skip(steps)


def _no_pruning(end: EpochEnd) -> None:
    """Do nothing: only the first seed of a trial is compared with other trials."""


def _mean_final(sequence: int, runs: Sequence[dict[str, Any]]) -> list[float]:
    finals = [run["final"] for run in runs if run["sequence"] == sequence]
    return [statistics.fmean(column) for column in zip(*finals, strict=True)]


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
