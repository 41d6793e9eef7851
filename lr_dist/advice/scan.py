"""A short scan of flat rates, and the plan scaled to the best one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lr_dist.advice.recommendation import Recommendation
from lr_dist.distribution import LRDistribution
from lr_dist.errors import ConfigurationError, DivergedError
from lr_dist.runs.numbers import number
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.metrics import above_baseline
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings

# Around the level of the plan; the ends are a factor of 16 apart.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Scanned:
    """A flat rate and its score.

    Attributes:
        lr: the rate.
        score: mean over the tasks after the last one was learned, 0 for the majority class and 1 for no error; None if
            the run diverged.
    """

    lr: float
    score: float | None

    def __str__(self) -> str:
        return f"{self.lr:g}: " + ("diverged" if self.score is None else number(self.score))


def scan(
    recommendation: Recommendation,
    model: str,
    *,
    settings: SequenceSettings | None = None,
    data_dir: str | None = None,
    factors: Sequence[float] = FACTORS,
    seed: int = 0,
    listener: Callable[[Scanned], None] = lambda scanned: None,
) -> tuple[Recommendation, list[Scanned]]:
    """Learn the tasks with flat rates around the recommended level, score them on dev, and scale the plan to the best.

    Args:
        recommendation: of the case.
        model: name or folder of the model; the fine-tuned one, if there is one.
        settings: of the training; scores are always on dev, so that the official validation stays untouched.
        data_dir: folder with GLUE.
        factors: of the level of the plan.
        seed: of all runs, so that they share heads, order of examples and dropout.
        listener: is told each result.

    Returns:
        The scaled recommendation, and the scores in the order of the rates.

    Raises:
        ConfigurationError: every rate diverged, or learned no more than the majority class.
        LRDistError: a task or model that cannot be loaded.
    """
    case = recommendation.case
    given = SequenceSettings(epochs=2, batch_size=case.batch_size) if settings is None else settings
    on_dev = SequenceSettings(**{**given.to_dict(), "evaluate_on": "dev"})
    bench = Bench.prepare(model, case.tasks, on_dev, limit=case.examples, data_dir=data_dir)
    results = []
    for factor in sorted(factors):
        lr = float(f"{recommendation.level * factor:.3g}")
        results.append(Scanned(lr, _score(bench, lr, seed)))
        listener(results[-1])
    scored = [result for result in results if result.score is not None]
    best = max(scored, key=lambda result: result.score or 0.0, default=None)
    if best is None or (best.score or 0.0) <= 0:
        raise ConfigurationError(
            "No flat rate of the scan learned more than the majority class ("
            + ", ".join(f"{result.lr:g}" for result in results)
            + "). Use more examples or epochs, or check the task."
        )
    listed = ", ".join(map(str, results))
    edge = " It is at an end of the scan: the best rate may lie beyond." if best in (results[0], results[-1]) else ""
    reason = (
        f"Scanned here (dev, one seed, {on_dev.epochs} epochs; 0 is the majority class, 1 no error): {listed}. The "
        f"geometric mean of the layers' rates is now {best.lr:g}, the best flat rate.{edge} One seed does not tell "
        "neighbours apart."
    )
    return recommendation.scaled_to(best.lr, reason), results


def _score(bench: Bench, lr: float, seed: int) -> float | None:
    try:
        outcome = run_sequence(bench, Arm.of(LRDistribution.flat(lr)), seed, TestAfterStages(), [])
    except DivergedError:
        return None
    return statistics.fmean(above_baseline(outcome.full_matrix(), bench.baseline)[-1])
