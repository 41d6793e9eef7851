"""Methods that act on the model, in sequences whose stages are shared: the same results, trained or taken over."""

from __future__ import annotations

from pathlib import Path

import pytest

from lr_dist.methods import Needs
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import SequenceRun, run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage_store import StageStore

FLAT = "flat:lr=2e-3"


@pytest.fixture(scope="module")
def bench(tiny_model: str) -> Bench:
    settings = SequenceSettings(epochs=1, batch_size=16, lr=2e-3)
    return Bench.prepare(tiny_model, ["demo-sentiment", "demo-acceptability"], settings, limit=64, dev_size=60)


def run(bench: Bench, arm: str, store: StageStore | None = None) -> SequenceRun:
    return run_sequence(bench, Arm.parse(arm), 0, TestAfterStages(), store=store)


@pytest.mark.parametrize(
    ("methods", "shared"),
    [
        ("interpolate:alpha=0.5", [0, 1]),
        ("interpolate:alpha=auto,evaluations=4", [0, 1]),
        ("freeze:layers=..0.5", [0]),
        ("ema:decay=0.5", [0]),
        ("ema:decay=0.5 + interpolate:alpha=0.5", [0]),
        ("lora:rank=2 + interpolate:alpha=0.5", []),  # computes padded batches, so it shares nothing with the others
    ],
)
def test_stages_that_are_taken_over_give_what_training_gives(
    bench: Bench, methods: str, shared: list[int], tmp_path: Path
) -> None:
    arm = f"{FLAT} + {methods}"
    alone = run(bench, arm)
    store = StageStore(tmp_path, needs=Needs(held_out=True))
    run(bench, FLAT, store)
    trained, taken_over = run(bench, arm, store), run(bench, arm, store)
    assert list(trained.taken_over) == shared
    assert list(taken_over.taken_over) == [0, 1]
    assert trained.matrix == taken_over.matrix
    assert trained.methods == taken_over.methods
    # The words of held-out examples are kept, too, and rounding can differ with the number of rows.
    for row, other in zip(alone.matrix, trained.matrix, strict=True):
        assert row == pytest.approx(other, abs=0.02)
