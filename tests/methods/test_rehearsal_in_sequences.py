"""Rehearsal in the runner: several tasks of both kinds, one head each."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from comparison import FLAT, config_of

from lr_dist.errors import ConfigurationError
from lr_dist.methods.buffer import Memory, RehearsalBuffer
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
        ("replay:size=20,only=grades+mrpc", "'mrpc' is no task of the sequence"),
        # The size is compared with the task of which examples are kept.
        ("der:size=61,only=grades", "the first task of grades has 25"),
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


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A task with the classes of demo-sentiment, that trains its head."""
    folder = tmp_path_factory.mktemp("films")
    for split, count in (("train", 60), ("validation", 30)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows(
                [f"a {'good' if i % 2 else 'bad'} film {i}", "positive" if i % 2 else "negative"] for i in range(count)
            )
    return {"name": "films", "path": str(folder), "head": "demo-sentiment"}


@pytest.mark.parametrize("method", ["replay:ratio=0.5", "der:ratio=0.3", "a-gem:examples=8"])
def test_only_the_named_task_is_rehearsed_by_the_head_that_it_shares(
    tiny_model: str, films: dict[str, str], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[str, str | None, int]] = []
    add = RehearsalBuffer.add

    def noted(buffer: RehearsalBuffer, *arguments: Any) -> Memory:
        memory = add(buffer, *arguments)
        kept.append((memory.task, memory.head, len(buffer)))
        return memory

    monkeypatch.setattr(RehearsalBuffer, "add", noted)
    settings = SequenceSettings(epochs=1, batch_size=8, precision="32-true")
    bench = Bench.prepare(tiny_model, (films, "demo-sentiment", "demo-entailment"), settings, limit=24)
    heads = Heads()
    arm = Arm.parse(f"flat:lr=1e-3 + {method},size=10,only=films")
    run_sequence(bench, arm, 0, TestAfterStages(), [heads])
    assert kept == [("films", "demo-sentiment", 10)]
    assert set(heads.after[0]) == {"demo-sentiment", "demo-entailment"}
    # Without rehearsal it would not change while another head learns.
    assert not torch.equal(heads.after[2]["demo-sentiment"], heads.after[1]["demo-sentiment"])


def test_the_tasks_to_rehearse_are_a_part_of_the_text_form() -> None:
    for written in ("a+b", "a"):
        (method,) = Arm.parse(f"flat:lr=1e-3 + replay:only={written}").build_methods()
        (again,) = Arm.parse(f"flat:lr=1e-3 + {method}").build_methods()
        assert again.settings()["only"] == written
    # Arms of finished runs keep their names.
    assert "only" not in str(Arm.parse("flat:lr=1e-3 + replay:size=9").build_methods()[0])


def test_names_of_tasks_to_rehearse_are_joined_by_plus() -> None:
    with pytest.raises(ConfigurationError, match="joined by \\+"):
        Arm.parse("flat:lr=1e-3 + replay:only=sst2+").build_methods()
