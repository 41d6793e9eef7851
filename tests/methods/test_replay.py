"""Replay in a user's own Trainer, against numbers worked out by hand and against training on joined batches."""

from __future__ import annotations

import copy

import lightning.pytorch as L
import pytest
import torch
from methods.rehearsing import (
    Classifier,
    Drawn,
    Linear,
    SaveAfter,
    fit,
    in_every_way_of_training,
    learned,
    points,
    texts,
    weights,
    with_scaler,
)
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError, ResumeMismatchError
from lr_dist.methods import RehearsalBuffer, Replay, StageContext, TaskFunctions


def test_a_step_by_hand():
    # One stored example x = (1, 0), y = 3 and, with w = (1, -1), its gradient 2 (w x - y) x = (-4, 0).
    # New: (0, 1), y = 1 and (0, 2), y = 0, with gradients (0, -4) and (0, -8). All three count the same:
    # w - 0.1 * ((-4, 0) + (0, -4) + (0, -8)) / 3.
    module = Linear()
    method = learned(Replay(ratio=0.5, size=1), module, points((1, 0, 3)))
    fit(module, method, data=points((0, 1, 1), (0, 2, 0)))
    torch.testing.assert_close(module.w.detach(), torch.tensor([1 + 0.4 / 3, -1 + 1.2 / 3]))


def test_steps_between_the_replayed_examples_are_those_without():
    # Ratio 1/4 and batches of 2: an example every second step.
    module, plain = Linear(), Linear()
    method = learned(Replay(ratio=0.25, size=1), module, points((1, 0, 3)))
    drawn = Drawn(method)
    data = points(*[(0, 1, 1)] * 10, batch_size=2)
    fit(module, method, drawn, data=data)
    fit(plain, data=data)
    assert len(drawn.steps) == 2
    # Only replayed examples move the first weight: twice, by 0.1 / 3 of 2 (w - 3).
    torch.testing.assert_close(module.w[0].item(), 3 - 2 * (1 - 0.2 / 3) ** 2)
    assert plain.w[0] == 1


class Joined(Classifier):
    """The reference: `training_step` computes the mean over new and replayed examples itself."""

    def __init__(self, drawn: list, **options) -> None:
        super().__init__(**options)
        self.drawn = iter(drawn)

    def training_step(self, batch, batch_idx):
        for replayed, _ in next(self.drawn):
            batch = {key: torch.cat([batch[key], replayed[key]]) for key in batch}
        return self.model(**batch).loss


@in_every_way_of_training
def test_the_fit_is_the_one_with_joined_batches(module, trainer):
    replaying, plain = Classifier(**module), Classifier(**module)
    method = learned(Replay(ratio=0.75, size=20), replaying, texts(seed=2))
    drawn = Drawn(method)
    fit(replaying, method, drawn, data=texts(), **with_scaler(trainer))
    assert [sum(len(p) for _, p in step) for step in drawn.steps] == [3] * 8
    joined = Joined(drawn.steps, **module)
    fit(joined, data=texts(), **with_scaler(trainer))
    fit(plain, data=texts(), **with_scaler(trainer))
    tolerance = 5e-3 if "precision" in trainer else 2e-3 if "plugins" in trainer else 1e-5
    apart = (weights(replaying) - weights(joined)).abs().max()
    assert apart < tolerance
    assert apart < 0.1 * (weights(plain) - weights(joined)).abs().max()
    assert replaying.losses[0] == plain.losses[0]  # what is logged is the new task's


class TwoHeads(L.LightningModule):
    """Two weights shared by a classification head and a regression head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(2, 3)
        self.heads = torch.nn.ModuleDict({"sort": torch.nn.Linear(3, 4), "rate": torch.nn.Linear(3, 1)})
        self.active = "sort"

    def task_outputs(self, batch, head):
        return self.heads[head or self.active](self.body(batch["x"]).tanh())

    def training_step(self, batch, batch_idx):
        return TaskFunctions().loss_of(self.task_outputs(batch, None), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("first", ["sort", "rate"])
def test_each_earlier_example_is_computed_by_the_head_of_its_task(first):
    second = {"sort": "rate", "rate": "sort"}[first]
    generator = torch.Generator().manual_seed(0)
    rows = {
        "sort": [{"x": torch.randn(2, generator=generator), "labels": torch.tensor(i % 4)} for i in range(8)],
        "rate": [{"x": torch.randn(2, generator=generator), "labels": torch.tensor(i / 4)} for i in range(8)],
    }
    module, by_hand = TwoHeads(), TwoHeads()
    module.active = second
    method = Replay(ratio=1, size=8)
    method.enter(StageContext(0, first, head=first))
    learned(method, module, DataLoader(rows[first], batch_size=8))
    method.enter(StageContext(1, second, head=second))
    fit(module, method, data=DataLoader(rows[second], batch_size=8))
    # All eight of each: the mean of the two means.
    both = {head: torch.utils.data.default_collate(rows[head]) for head in rows}
    losses = [TaskFunctions().loss_of(by_hand.task_outputs(both[h], h), both[h]["labels"]) for h in rows]
    (sum(losses) / 2).backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.1 * p.grad
    torch.testing.assert_close(weights(module), weights(by_hand))
    assert [(m.task, m.head) for m in method.buffer.memories] == [(first, first), (second, second)]


def test_the_first_stage_is_trained_as_without_it_and_the_second_is_not():
    replaying, plain = Classifier(dropout=0.2), Classifier(dropout=0.2)
    method = Replay(ratio=0.5, size=12)
    assert not method.trains_in(StageContext(0))
    assert method.trains_in(StageContext(1))
    for stage in (1, 2):
        for module, callbacks in ((replaying, [method]), (plain, [])):
            torch.manual_seed(stage)
            fit(module, *callbacks, data=texts(seed=stage))
        assert torch.equal(weights(replaying), weights(plain)) == (stage == 1)
    assert [len(memory) for memory in method.buffer.memories] == [6, 6]


def test_less_is_forgotten():
    old = texts(seed=2, count=4)
    replaying = Classifier()
    method = Replay(ratio=1, size=16)
    fit(replaying, method, data=old, max_epochs=8)
    plain = copy.deepcopy(replaying)
    fit(replaying, method, data=texts(seed=3, count=4), max_epochs=8)
    fit(plain, data=texts(seed=3, count=4), max_epochs=8)

    def loss(module):
        with torch.no_grad():
            return sum(module.eval().model(**batch).loss.item() for batch in old)

    assert loss(replaying) < 0.7 * loss(plain)


def test_a_stopped_stage_resumes_bit_for_bit(tmp_path):
    """In the middle of a window of accumulation, and between two examples that the ratio makes due."""

    def run(method, *callbacks, **options):
        module = Classifier(torch.optim.AdamW, lr=1e-3, dropout=0.2)
        rates = LayerwiseLR("flat:lr=1e-3", verbose=False)
        fit(module, rates, method, *callbacks, data=texts(), accumulate_grad_batches=2, **options)
        return weights(module)

    whole = run(learned(Replay(0.3, 12), Classifier(), texts(seed=2)), SaveAfter(3, tmp_path / "half.ckpt"))
    method = Replay(0.3, 12)
    assert torch.equal(run(method, ckpt=tmp_path / "half.ckpt"), whole)
    assert [len(memory) for memory in method.buffer.memories] == [6, 6]
    other = learned(Replay(0.3, 12), Classifier(), texts(seed=4))
    assert not torch.equal(run(other), whole)  # the stored examples do matter


def test_a_kept_stage_is_restored_as_it_was_trained():
    """What the runner does for a stage that another arm has learned: no training, the same examples."""
    trained, restored = Replay(0.5, 12), Replay(0.5, 12)
    module = Classifier()
    fit(module, trained, data=texts())
    restored.enter(StageContext(0, "task 1"))
    learned(restored, module, texts())
    assert len(trained.buffer) == len(restored.buffer) == 12
    first, second = (
        next(iter(m.buffer.portions(torch.arange(12), torch.arange(12)))).batch for m in (trained, restored)
    )
    assert torch.equal(first["input_ids"], second["input_ids"])


def test_other_settings_than_the_checkpoints_are_refused(tmp_path):
    trainer = fit(Classifier(), Replay(0.5, 12), data=texts(), max_steps=2)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ResumeMismatchError, match=r"replay:ratio=0\.5,size=10"):
        fit(Classifier(), Replay(0.5, 10), data=texts(), ckpt=tmp_path / "other.ckpt")


def test_earlier_data_can_be_given_to_a_single_fit():
    module, again = Linear(), Linear()
    fit(module, Replay(1, buffer=RehearsalBuffer.filled({"old": points((1, 0, 3))}, size=1)), data=points((0, 1, 1)))
    fit(again, learned(Replay(1, 1), again, points((1, 0, 3))), data=points((0, 1, 1)))
    assert torch.equal(module.w, again.w)
    assert module.w[0] != 1


def test_single_examples_leave_the_statistics_of_batch_norms_alone():
    class Normed(Linear):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x) @ self.w

    module = Normed()
    method = learned(Replay(0.5, 3), module, points((9, 9, 3), (9, 9, 3), (9, 9, 3)))
    fit(module, method, data=points((0, 1, 1), (0, 2, 0), (0, 1, 1), (0, 2, 0), batch_size=2))
    assert module.norm.num_batches_tracked == 2
    assert module.norm.running_mean[0] == 0
    assert module.norm.training


# Wrong input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, -0.1, float("nan"), float("inf"), "a", True, None])
def test_an_invalid_ratio_is_refused(ratio):
    with pytest.raises(ConfigurationError, match="ratio must be a finite number greater than 0"):
        Replay(ratio)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"x": torch.ones(2), "labels": torch.tensor(0.0)}] * 4)


def never(*_):
    raise AssertionError("a step was taken")


class NoStep(L.Callback):
    on_before_optimizer_step = never


@pytest.mark.parametrize(
    ("method", "data", "says"),
    [
        (Replay(size=33), texts(), r"size=33 examples are to be kept, and the first task has 32\. Lower size to 32"),
        (Replay(size=3), [texts(), texts()], "The Trainer has 2 training loaders"),
        (Replay(size=3), {"a": texts()}, "The Trainer has 1 training loaders"),
        (Replay(size=3), iter(list(texts())), "can be read only once"),
        (
            Replay(size=1, policy="balanced"),
            DataLoader([{"x": torch.ones(2), "labels": 0.5}]),
            "balanced needs one class",
        ),
        (Replay(size=1), DataLoader([torch.ones(3)]), "outputs of a batch that is a Tensor are not known"),
        (Replay(size=1), DataLoader(TensorDataset(*[torch.ones(3)] * 3)), "outputs of a batch that is a list"),
        (Replay(size=1), DataLoader([{"y": torch.ones(2)}]), "could not compute the loss of a batch: ValueError"),
        (
            Replay(size=1, functions=TaskFunctions(loss=lambda outputs, targets: (outputs.logits - 1) ** 2)),
            texts(),
            "could not compute the loss of a batch: AttributeError",
        ),
        (
            Replay(size=1, functions=TaskFunctions(loss=lambda outputs, targets: (outputs - 1) ** 2)),
            texts(),
            "must be one number, its examples' mean",
        ),
    ],
)
def test_data_that_cannot_be_replayed_is_refused_before_the_first_step(method, data, says):
    class Anything(Classifier):
        def training_step(self, batch, batch_idx):
            return sum(p.sum() for p in self.parameters())

    with pytest.raises(ConfigurationError, match=says):
        fit(Anything(), method, NoStep(), data=data)


def test_a_head_that_is_not_named_is_refused():
    rows = DataLoader([{"x": torch.ones(2), "labels": torch.tensor(1)}] * 4)
    with pytest.raises(ConfigurationError, match=r"TwoHeads has a head for each task.*head=NAME"):
        fit(TwoHeads(), Replay(1, 4), NoStep(), data=rows)


def test_a_stream_is_replayed_too():
    class OnStream(Linear):
        def forward(self, x):
            return x @ self.w

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.mse_loss(self(batch["x"]), batch["labels"])

    module = OnStream()
    method = Replay(1, 3)
    for _ in range(2):
        fit(module, method, data=DataLoader(Stream(), batch_size=2))
    assert [len(memory) for memory in method.buffer.memories] == [2, 1]
