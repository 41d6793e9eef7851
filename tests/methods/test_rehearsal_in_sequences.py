"""Rehearsal in the runner: several tasks of both kinds, one head each."""

from __future__ import annotations

import csv

import pytest
import torch
from comparison import FLAT, config_of

from lr_dist.errors import ConfigurationError
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.compare import Comparison
from lr_dist.sequence.observers import Observer, SequenceState, TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage import Stage


@pytest.fixture(scope="module")
def grades(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A regression, as `--tasks` takes it."""
    folder = tmp_path_factory.mktemp("grades")
    for split, count in (("train", 60), ("validation", 30)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([f"the film was {'very ' * (i % 7)}good", 0.5 + i % 7] for i in range(count))
    return f"grades={folder}"


@pytest.fixture(scope="module")
def bench(tiny_model: str, grades: str) -> Bench:
    """A classification, a regression with texts of other lengths, and another classification."""
    settings = SequenceSettings(epochs=1, batch_size=8, precision="32-true")
    tasks = ("demo-sentiment", grades, "demo-entailment")
    return Bench.prepare(tiny_model, tasks, settings, limit=48)


class Heads(Observer):
    """The heads' weights after each stage."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        self.after.append({name: head.weight.detach().clone() for name, head in run.module.heads.items()})


@pytest.mark.parametrize(
    "method", ["replay:ratio=0.5,size=20,policy=reservoir", "der:ratio=0.3,size=20", "a-gem:size=32"]
)
def test_earlier_heads_learn_along_with_the_new_one(bench: Bench, method: str) -> None:
    heads, frozen = Heads(), Heads()
    first = run_sequence(bench, Arm.parse(f"flat:lr=1e-3 + {method}"), 0, TestAfterStages(), [heads])
    again = run_sequence(bench, Arm.parse(f"flat:lr=1e-3 + {method}"), 0, TestAfterStages())
    without = run_sequence(bench, Arm.parse("flat:lr=1e-3"), 0, TestAfterStages(), [frozen])
    assert first.matrix == again.matrix
    assert first.matrix[:2] == without.matrix[:2]  # the first stage is the same
    assert first.matrix[2:] != without.matrix[2:]
    for stage, head in ((1, "demo-sentiment"), (2, "demo-sentiment"), (2, "grades")):
        assert torch.equal(frozen.after[stage][head], frozen.after[stage - 1][head])
        assert not torch.equal(heads.after[stage][head], heads.after[stage - 1][head])
    assert torch.equal(heads.after[1]["demo-entailment"], heads.after[0]["demo-entailment"])


def test_a_buffer_larger_than_the_first_task_is_refused_before_training(bench: Bench) -> None:
    heads = Heads()
    with pytest.raises(ConfigurationError, match="size=500 examples are to be kept, and the first task has 48"):
        run_sequence(bench, Arm.parse("flat:lr=1e-3 + replay"), 0, TestAfterStages(), [heads])
    assert heads.after == []


def test_balanced_classes_of_a_regression_are_refused_before_its_training(bench: Bench) -> None:
    heads = Heads()
    arm = Arm.parse("flat:lr=1e-3 + replay:size=20,policy=balanced")
    with pytest.raises(ConfigurationError, match="balanced needs one class an example"):
        run_sequence(bench, arm, 0, TestAfterStages(), [heads])
    assert len(heads.after) == 1


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("replay", "size=500 examples are to be kept, and the first task has 96"),
        ("der:size=97", "size=97 examples are to be kept, and the first task has 96"),
        ("a-gem:size=40,policy=balanced", "grades is a regression"),
    ],
)
def test_a_comparison_refuses_them_before_any_arm_is_trained(
    tiny_model: str, grades: str, method: str, says: str
) -> None:
    config = config_of(
        tiny_model, tasks=("demo-sentiment", grades), distributions=(FLAT,), arms=(f"{FLAT} + {method}",)
    )
    with pytest.raises(ConfigurationError, match=says):
        Comparison.prepare(config)
