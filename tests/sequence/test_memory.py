"""A worker of a search runs for days: what a run leaves behind must not pile up."""

from __future__ import annotations

import gc

from lr_dist.distribution import LRDistribution
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings


def test_the_model_of_a_run_is_gone_when_the_next_one_begins(tiny_model: str) -> None:
    settings = SequenceSettings(epochs=1, batch_size=16)
    bench = Bench.prepare(tiny_model, ("demo-sentiment", "demo-entailment"), settings, limit=32)
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
            run_sequence(
                bench.model,
                bench.tasks,
                bench.tokens,
                LRDistribution.flat(1e-3),
                seed,
                settings,
                lambda progress: alive.append(models()),
            )
    finally:
        gc.enable()
    assert max(alive) - before == 1
