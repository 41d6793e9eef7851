"""EWC, SI, MAS, LwF and RecAdam in the runner: heads, joined texts, shared stages, strengths that are too high."""

from __future__ import annotations

import csv

import pytest
import torch

from lr_dist.errors import DivergedError
from lr_dist.methods.importance import protected_parameters, sensitivity
from lr_dist.methods.task_functions import TaskFunctions
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.observers import Observer, SequenceState, TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage import Stage
from lr_dist.sequence.stage_key import context_of
from lr_dist.tasks import train_loader


@pytest.fixture(scope="module")
def bench(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A classification, a regression with texts of other lengths, and another classification."""
    folder = tmp_path_factory.mktemp("grades")
    for split, count in (("train", 60), ("validation", 30)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([f"the film was {'very ' * (i % 7)}good", 0.5 + i % 7] for i in range(count))
    settings = SequenceSettings(epochs=1, batch_size=8, precision="32-true")
    tasks = ("demo-sentiment", f"grades={folder}", "demo-entailment")
    return Bench.prepare(tiny_model, tasks, settings, limit=48)


class Weights(Observer):
    """The weights after each stage."""

    def __init__(self) -> None:
        self.after: list[dict[str, torch.Tensor]] = []

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        self.after.append({name: value.clone() for name, value in run.module.state_dict().items()})

    def moved(self, stage: int) -> float:
        """How far the backbone is from the stage before."""
        pairs = zip(self.after[stage].items(), self.after[stage - 1].values(), strict=True)
        return sum(float((a - b).square().sum()) for (name, a), b in pairs if name.startswith("backbone")) ** 0.5


def run(bench: Bench, arm: str) -> Weights:
    weights = Weights()
    run_sequence(bench, Arm.parse(arm), 0, TestAfterStages(), [weights])
    return weights


@pytest.fixture(scope="module")
def plain(bench: Bench) -> Weights:
    return run(bench, "flat:lr=1e-3")


@pytest.mark.parametrize(
    "method",
    ["ewc:strength=1e9,examples=40", "online-ewc:strength=1e9,examples=40", "si:strength=1e9", "mas:strength=1e7"],
)
def test_a_strong_pull_keeps_the_backbone_in_every_later_stage(bench: Bench, plain: Weights, method: str) -> None:
    pulled = run(bench, f"flat:lr=1e-3 + {method}")
    again = run(bench, f"flat:lr=1e-3 + {method}")
    for stage in range(3):
        assert all(
            torch.equal(a, b) for a, b in zip(pulled.after[stage].values(), again.after[stage].values(), strict=True)
        )
    assert all(torch.equal(a, b) for a, b in zip(pulled.after[0].values(), plain.after[0].values(), strict=True))
    assert pulled.moved(1) < 0.8 * plain.moved(1)
    assert pulled.moved(2) < 0.8 * plain.moved(2)
    for stage, head in ((1, "demo-sentiment"), (2, "demo-sentiment"), (2, "grades")):  # frozen after their stage
        name = f"heads.{head}.weight"
        assert torch.equal(pulled.after[stage][name], pulled.after[stage - 1][name])


def test_importances_are_those_of_texts_in_separate_rows(bench: Bench) -> None:
    """Joined texts would give the square of sums; the module joins them again afterwards."""

    class Compare(Observer):
        compared = False

        def stage_ended(self, run: SequenceState, stage: Stage) -> None:
            if stage.index:
                return
            module, head = run.module, stage.task.head
            assert module.first_position is not None
            parameters = protected_parameters(module)
            loader = train_loader(stage.tokens.train, 8, 0, run.view.pad_token_id)
            options = {"head": head, "examples": 24}
            whole = sensitivity(module, parameters, loader, TaskFunctions(), **options)
            loader = train_loader(stage.tokens.train, 8, 0, run.view.pad_token_id)
            single = {name: torch.zeros_like(p) for name, p in parameters.items()}
            with module.padded_batches():
                for batch in list(loader)[:3]:
                    for row in range(8):
                        module.eval().zero_grad()
                        module.task_outputs(
                            {k: v[row : row + 1] for k, v in batch.items()}, head
                        ).square().sum().backward()
                        for name, p in parameters.items():
                            single[name] += p.grad.abs() / 24 if p.grad is not None else 0
            module.zero_grad()
            assert module.first_position is not None
            largest = max(float(each.max()) for each in single.values())
            for name, each in whole.items():
                torch.testing.assert_close(each, single[name], rtol=1e-3, atol=1e-5 * largest)
                other = name.startswith("heads.") and "demo-sentiment" not in name
                assert other == (not each.any()) or "heads" not in name
            self.compared = True

    compare = Compare()
    run_sequence(bench, Arm.parse("flat:lr=1e-3"), 0, TestAfterStages(), [compare])
    assert compare.compared


def test_lwf_trains_the_earlier_heads_from_the_second_stage_on(bench: Bench, plain: Weights) -> None:
    distilled = run(bench, "flat:lr=1e-3 + lwf:strength=10")
    assert all(torch.equal(a, b) for a, b in zip(distilled.after[0].values(), plain.after[0].values(), strict=True))
    name = "heads.demo-sentiment.weight"
    assert torch.equal(plain.after[1][name], plain.after[0][name])
    assert not torch.equal(distilled.after[1][name], distilled.after[0][name])

    class Same(Observer):
        """The outputs of several heads at once are those of each."""

        def stage_ended(self, run: SequenceState, stage: Stage) -> None:
            batch = next(iter(train_loader(stage.tokens.train, 8, 0, run.view.pad_token_id)))
            heads = ("grades", None, "demo-sentiment")
            with torch.no_grad():
                run.module.eval()
                at_once = run.module.heads_outputs(batch, heads)
                assert all(
                    torch.equal(a, run.module.task_outputs(batch, h)) for a, h in zip(at_once, heads, strict=True)
                )
                run.module.train()

    run_sequence(bench, Arm.parse("flat:lr=1e-3"), 0, TestAfterStages(), [Same()])
    assert [context_of(bench, 0, index).last for index in range(3)] == [False, False, True]
    assert [context_of(bench, 0, index).earlier_heads for index in range(3)] == [
        (),
        ("demo-sentiment",),
        ("demo-sentiment", "grades"),
    ]


def test_rec_adam_keeps_the_backbone_while_its_pull_is_strong(bench: Bench, plain: Weights) -> None:
    kept = run(bench, "flat:lr=1e-3 + rec-adam:gamma=900,k=1,t0=1000")
    free = run(bench, "flat:lr=1e-3 + rec-adam:gamma=900,k=1,t0=0")
    assert kept.moved(1) < 1e-3 * plain.moved(1)
    assert free.moved(1) > 0.5 * plain.moved(1)
    assert not torch.equal(kept.after[1]["heads.grades.weight"], kept.after[0]["heads.grades.weight"])


def test_a_strength_that_makes_the_loss_explode_is_named_with_the_step(bench: Bench) -> None:
    with pytest.raises(DivergedError, match=r"at step \d+ of \d+ .* too much strength.*rec-adam:gamma=1000000000"):
        run_sequence(bench, Arm.parse("flat:lr=1e-3 + rec-adam:gamma=1e9,k=1,t0=3"), 0, TestAfterStages())
