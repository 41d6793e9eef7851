"""Joint training: what its batches are, that it starts from the weights before the first stage, and its refusals."""

from __future__ import annotations

from collections import Counter

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lr_dist.errors import ConfigurationError
from lr_dist.methods import Joint
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.joint_loader import HEAD, JointLoader
from lr_dist.sequence.observers import Observer, SequenceState, TestAfterStages
from lr_dist.sequence.runner import count_steps, run_sequence
from lr_dist.sequence.settings import SequenceSettings
from lr_dist.sequence.stage import Stage
from lr_dist.tasks import train_loader

FLAT = "flat:lr=1e-3"


@pytest.fixture(scope="module")
def bench(tiny_model: str) -> Bench:
    settings = SequenceSettings(epochs=3, batch_size=8, precision="32-true")
    return Bench.prepare(tiny_model, ("demo-sentiment", "demo-entailment"), settings, limit=96)


def test_an_epoch_has_every_example_of_every_task_once_in_another_order_each_time(bench: Bench) -> None:
    loaders = [train_loader(tokens.train, 8, 0, tokens.pad_token_id) for tokens in bench.tokens]
    loader = JointLoader(loaders, ["a", "b"], seed=1)
    first, second = list(loader), list(loader)
    assert len(loader) == len(first) == sum(map(len, loaders))
    for epoch in (first, second):
        rows = Counter((batch[HEAD], tuple(ids.tolist())) for batch in epoch for ids in batch["input_ids"])
        examples = Counter(batch[HEAD] for batch in epoch for _ in batch["labels"])
        assert examples == {"a": len(bench.tokens[0].train), "b": len(bench.tokens[1].train)}
        assert len(rows) > 20
    orders = [[batch[HEAD] for batch in epoch] for epoch in (first, second)]
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
    again = JointLoader([train_loader(t.train, 8, 0, t.pad_token_id) for t in bench.tokens], ["a", "b"], seed=1)
    assert [batch[HEAD] for batch in again] == orders[0]


class Start(Observer):
    """The weights in the first step of the second stage and before it."""

    needs_training = True

    def __init__(self) -> None:
        self.initial: dict[str, torch.Tensor] = {}
        self.moved: list[float] = []
        self.heads: dict[str, float] = {}

    def sequence_started(self, run: SequenceState) -> None:
        self.initial = {name: value.clone() for name, value in run.module.state_dict().items()}

    def step_ended(self, run: SequenceState, stage: Stage) -> None:
        if stage.index == 1:
            now = run.module.state_dict()
            self.moved.append(max(float((now[name] - value).abs().max()) for name, value in self.initial.items()))

    def stage_ended(self, run: SequenceState, stage: Stage) -> None:
        for name, head in run.module.heads.items():
            self.heads[name] = float((head.weight - self.initial[f"heads.{name}.weight"]).abs().max())


def test_the_second_stage_learns_both_tasks_from_the_weights_before_the_first(bench: Bench) -> None:
    start = Start()
    joint = run_sequence(bench, Arm.parse(f"{FLAT} + joint"), 0, TestAfterStages(), [start])
    flat = run_sequence(bench, Arm.parse(FLAT), 0, TestAfterStages())
    assert joint.matrix[:2] == flat.matrix[:2]  # the first stage has no earlier task
    # The first step has the rate 0 of the warm-up: nothing of what the first stage learned is left.
    assert start.moved[0] == 0
    assert start.moved[-1] > 0
    steps = [3 * 12, 3 * 12]
    assert flat.train_steps == sum(steps) == count_steps(bench.tokens, bench.settings)
    assert joint.train_steps == steps[0] + sum(steps)
    assert len(start.moved) == sum(steps)
    # Both heads were put back and have learned since.
    assert set(start.heads) == {"demo-sentiment", "demo-entailment"}
    assert all(moved > 1e-3 for moved in start.heads.values())


def test_it_is_alone_in_its_arm_and_not_for_ones_own_trainer() -> None:
    with pytest.raises(ConfigurationError, match="joint beside other methods"):
        Arm.parse(f"{FLAT} + joint + l2-sp")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[Joint()])
    with pytest.raises(ConfigurationError, match="mixes the tasks"):
        trainer.fit(BoringModel())
