"""A worker of a search runs for days: what a run leaves behind must not pile up."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable

import pytest

from lr_dist.distribution import LRDistribution
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.observers import ReportProgress, TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings


@pytest.fixture
def bench(tiny_model: str) -> Bench:
    settings = SequenceSettings(epochs=1, batch_size=16)
    return Bench.prepare(tiny_model, ("demo-sentiment", "demo-entailment"), settings, limit=32)


def learn(bench: Bench, seed: int, report: Callable[[object], None] = lambda progress: None) -> None:
    arm = Arm.of(LRDistribution.flat(1e-3))
    run_sequence(bench, arm, seed, TestAfterStages(report), [ReportProgress(report)])


def test_the_model_of_a_run_is_gone_when_the_next_one_begins(bench: Bench) -> None:
    alive: list[int] = []

    def models() -> int:
        # Not isinstance, which takes weak proxies for what they stand for.
        return sum(type(thing) is SequenceClassifier for thing in gc.get_objects())

    gc.collect()
    before = models()
    # The collector comes when many small objects were made, which a training step hardly does.
    gc.disable()
    try:
        for seed in range(3):
            learn(bench, seed, lambda progress: alive.append(models()))
    finally:
        gc.enable()
    assert max(alive) - before == 1


def test_an_interrupt_while_that_is_cleared_away_is_not_lost(bench: Bench) -> None:
    class Pressed:
        """Garbage that only the collector finds; what its destructor raises, Python drops."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    Pressed()
    with pytest.raises(KeyboardInterrupt):
        learn(bench, 0)
