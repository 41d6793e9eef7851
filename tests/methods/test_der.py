"""DER++ in a user's own Trainer, against numbers worked out by hand and against its terms written into the loss."""

from __future__ import annotations

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
from torch import nn

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError
from lr_dist.methods import DER, RehearsalBuffer, TaskFunctions

ALPHA, BETA = 0.3, 0.7


def test_a_step_by_hand():
    # Stored: x = (1, 0), y = 3, z = w x = 1 with w = (1, -1). Then w is set to (2, -1), and a step is taken on the new
    # example (0, 1), y = 1, whose gradient is 2 (-1 - 1) (0, 1) = (0, -4). At x, h = 2:
    # the gradient of |h - z|^2 is 2 (2 - 1) (1, 0), that of (h - y)^2 is 2 (2 - 3) (1, 0).
    module = Linear()
    method = learned(DER(ALPHA, BETA, ratio=1, size=1), module, points((1, 0, 3)))
    module.w.data[0] = 2.0
    fit(module, method, data=points((0, 1, 1)))
    torch.testing.assert_close(module.w.detach(), torch.tensor([2 - 0.1 * (2 * ALPHA - 2 * BETA), -1 + 0.4]))


def test_strengths_are_the_same_at_every_ratio():
    """Of batches of 2 at ratio 1/8, an example every fourth step has four times the weight."""
    module = Linear(lr=0.01)
    method = learned(DER(ALPHA, 0.0, ratio=0.125, size=1), module, points((1, 0, 3)))
    module.w.data[0] = 2.0
    drawn = Drawn(method)
    fit(module, method, data=points(*[(0, 0, 0)] * 16, batch_size=2))
    # Two steps w <- w - 0.01 * 4 alpha 2 (w - 1) of eight.
    assert len(drawn.steps) == 2
    torch.testing.assert_close(module.w[0].item(), 1 + (1 - 0.08 * ALPHA) ** 2)


class Written(Classifier):
    """The reference: `training_step` adds the terms itself, to drawn examples with their recorded outputs."""

    def __init__(self, drawn: list, first: int, **options) -> None:
        super().__init__(**options)
        self.drawn, self.first = iter(drawn), first

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch).loss
        ((replayed, portion),) = next(self.drawn)
        order = portion.positions.argsort()
        logits = self.model(input_ids=replayed["input_ids"]).logits[order]
        one, two = slice(0, self.first), slice(self.first, None)
        distance = ((logits[one] - portion.outputs[order][one]) ** 2).sum(dim=1).mean()
        return loss + ALPHA * distance + BETA * nn.functional.cross_entropy(logits[two], replayed["labels"][order][two])


@in_every_way_of_training
def test_the_fit_is_the_one_with_the_terms_in_the_loss(module, trainer):
    replaying, plain = Classifier(**module), Classifier(**module)
    before = Classifier(**module)
    with torch.no_grad():  # recorded outputs that the model no longer gives
        before.model.classifier.weight.add_(1.0)
    method = learned(DER(ALPHA, BETA, ratio=0.75, size=20), before, texts(seed=2))
    drawn = Drawn(method)
    fit(replaying, method, data=texts(), **with_scaler(trainer))
    assert [sum(len(p) for _, p in step) for step in drawn.steps] == [6] * 8
    written = Written(drawn.steps, 3, **module)
    fit(written, data=texts(), **with_scaler(trainer))
    fit(plain, data=texts(), **with_scaler(trainer))
    tolerance = 2e-2 if "precision" in trainer else 4e-3 if "plugins" in trainer else 1e-5
    apart = (weights(replaying) - weights(written)).abs().max()
    assert apart < tolerance
    assert apart < 0.1 * (weights(plain) - weights(written)).abs().max()
    assert replaying.losses[0] == plain.losses[0]


def test_the_outputs_are_recorded_without_dropout_and_leave_no_trace():
    module, plain = Classifier(dropout=0.5), Classifier(dropout=0.5)
    torch.manual_seed(3)
    fit(module, method := DER(size=10), data=texts())
    drawn = torch.rand(1)
    assert all(part.training for part in module.modules())
    torch.manual_seed(3)
    fit(plain, data=texts())
    assert torch.equal(weights(plain), weights(module))
    assert torch.equal(torch.rand(1), drawn)
    (memory,) = method.buffer.memories
    with torch.no_grad():
        expected = plain.eval().model(input_ids=memory.blocks[0].batch["input_ids"]).logits
    torch.testing.assert_close(memory.outputs[0], expected)


@pytest.mark.parametrize(("alpha", "beta", "each"), [(0.0, 0.5, 3), (0.5, 0.0, 3), (0.0, 0.0, 0)])
def test_a_term_without_strength_draws_nothing(alpha, beta, each):
    module = Classifier()
    drawn = Drawn(method := learned(DER(alpha, beta, ratio=0.75, size=20), module, texts(seed=2)))
    fit(module, method, data=texts(4))
    assert [sum(len(p) for _, p in step) for step in drawn.steps] == ([each] * 4 if each else [])


def test_a_stopped_stage_resumes_bit_for_bit(tmp_path):
    def run(method, *callbacks, **options):
        module = Classifier(torch.optim.AdamW, lr=1e-3, dropout=0.2)
        rates = LayerwiseLR("flat:lr=1e-3", verbose=False)
        fit(module, rates, method, *callbacks, data=texts(), accumulate_grad_batches=2, **options)
        return weights(module)

    whole = run(learned(DER(ratio=0.3, size=12), Classifier(), texts(seed=2)), SaveAfter(3, tmp_path / "half.ckpt"))
    assert torch.equal(run(DER(ratio=0.3, size=12), ckpt=tmp_path / "half.ckpt"), whole)


@pytest.mark.parametrize(("key", "value"), [("alpha", -1), ("beta", float("nan")), ("ratio", 0), ("alpha", "a")])
def test_an_invalid_strength_is_refused(key, value):
    with pytest.raises(ConfigurationError, match=f"{key} must be a finite number"):
        DER(**{key: value})


def test_outputs_that_are_no_vectors_are_refused_before_the_first_step():
    functions = TaskFunctions(outputs=lambda module, batch, head: torch.zeros(4, 2, 3), loss=lambda o, t: o.sum())
    with pytest.raises(ConfigurationError, match=r"and these are \[4, 2, 3\]"):
        fit(Classifier(), DER(size=3, functions=functions), NoStep(), data=texts())


class NoStep(L.Callback):
    def on_before_optimizer_step(self, *_):
        raise AssertionError("a step was taken")


def test_the_outputs_of_given_examples_are_recorded_before_the_first_step():
    """As of a stage that the instance has seen the end of."""
    seen, given, module, other = (Classifier() for _ in range(4))
    fit(seen, learned(DER(ratio=1, size=20), module, texts(seed=2)), data=texts())
    fit(given, DER(ratio=1, buffer=RehearsalBuffer.filled({"old": texts(seed=2)}, size=20)), data=texts())
    fit(other, data=texts())
    before = torch.utils.data.default_collate(list(texts(seed=2).dataset))
    with torch.no_grad():
        z, a, b, c = (m.eval().model(input_ids=before["input_ids"]).logits for m in (module, seen, given, other))
    assert (a - z).norm() < 0.8 * (c - z).norm()
    assert (b - z).norm() < 0.8 * (c - z).norm()
