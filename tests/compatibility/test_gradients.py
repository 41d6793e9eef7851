"""Clipping and accumulation of gradients, and manual optimization, against plain torch with the same rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution, param_groups
from lr_dist.errors import OptimizerCoverageError

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


def layerwise() -> LayerwiseLR:
    return LayerwiseLR(DISTRIBUTION, verbose=False)


def configure(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    return [optimizer], [{"scheduler": sch.LinearLR(optimizer, 0.5, 1.0, 3), "interval": "step"}]


def plain_torch(windows: Iterable[int], clip: Any = None) -> tuple[Any, list[float]]:
    """The same training by hand: each step takes the next `windows` batches; the model and the head's rates."""
    model = tiny.bert().double()
    optimizer = torch.optim.SGD(param_groups(model, DISTRIBUTION), momentum=0.9)
    schedule = sch.LinearLR(optimizer, 0.5, 1.0, 3)
    data, rates = iter(list(tiny.batches()) * 3), []
    for size in windows:
        for tokens, labels in (next(data) for _ in range(size)):
            (model(input_ids=tokens, labels=labels).loss / size).backward()
        if clip:
            clip(model.parameters())
        rates.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model, rates


def expect_equal(module: Any, model: Any) -> None:
    start = tiny.weights(tiny.bert().double())
    for (name, ours), theirs in zip(module.model.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-13), name
    moved = (model.classifier.weight - start["classifier.weight"]).abs().max()
    assert moved > 1e-4


def test_accumulation_steps_as_often_and_as_far() -> None:
    module, recorder = tiny.Classifier(configure).double(), tiny.Recorder()
    tiny.fit(module, layerwise(), recorder, accumulate_grad_batches=2)
    model, rates = plain_torch([2] * 4)
    assert recorder.rates["head"] == pytest.approx(rates, rel=1e-12)
    assert recorder.rates["layers.0"] == pytest.approx([rate * 3e-5 / 7e-3 for rate in rates], rel=1e-12)
    expect_equal(module, model)


def test_accumulation_that_changes_from_epoch_to_epoch() -> None:
    module, recorder = tiny.Classifier(configure).double(), tiny.Recorder()
    schedule = GradientAccumulationScheduler({0: 4, 1: 2, 2: 1})
    tiny.fit(module, schedule, layerwise(), recorder, max_epochs=3)
    model, rates = plain_torch([4, 4, 2, 2, 2, 2, *[1] * 8])
    assert recorder.rates["head"] == pytest.approx(rates, rel=1e-12)
    expect_equal(module, model)


@pytest.mark.parametrize("limit", [0.05, 100.0])
def test_the_norm_that_is_clipped_is_that_of_all_layers_together(limit: float) -> None:
    module = tiny.Classifier(configure).double()
    tiny.fit(module, layerwise(), gradient_clip_val=limit)
    model, _ = plain_torch([1] * 8, lambda parameters: nn.utils.clip_grad_norm_(parameters, limit))
    expect_equal(module, model)


def test_values_are_clipped_one_by_one() -> None:
    module = tiny.Classifier(configure).double()
    tiny.fit(module, layerwise(), gradient_clip_val=0.01, gradient_clip_algorithm="value", accumulate_grad_batches=2)
    model, _ = plain_torch([2] * 4, lambda parameters: nn.utils.clip_grad_value_(parameters, 0.01))
    expect_equal(module, model)


# Manual optimization -------------------------------------------------------------------------------------


class TwoOptimizers(tiny.Classifier):
    """A transformer and a critic that judges its logits, each with an optimizer, stepped by hand."""

    def __init__(self, critic_first: bool) -> None:
        super().__init__(None)
        self.automatic_optimization = False
        self.critic = nn.Linear(2, 1)
        self.critic_first = critic_first

    def configure_optimizers(self) -> Any:
        transformer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        critic = torch.optim.SGD(self.critic.parameters(), lr=0.25)
        schedules = [sch.ExponentialLR(transformer, 0.5), sch.ExponentialLR(critic, 0.9)]
        both = [transformer, critic]
        return ([critic, transformer], schedules[::-1]) if self.critic_first else (both, schedules)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        output = self.model(input_ids=batch[0], labels=batch[1])
        self.manual_backward(output.loss + self.critic(output.logits).mean() ** 2)
        for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


@pytest.mark.parametrize("critic_first", [False, True])
def test_of_several_optimizers_only_the_transformers_is_regrouped(critic_first: bool) -> None:
    module = TwoOptimizers(critic_first)
    run = tiny.fit(module, layerwise(), max_steps=8)
    critic, transformer = run.optimizers if critic_first else run.optimizers[::-1]
    factor = 0.5 ** (run.global_step / 2)
    assert [g["lr"] for g in transformer.param_groups] == pytest.approx([r * factor for r in tiny.RATES.values()])
    assert len(critic.param_groups) == 1
    assert critic.param_groups[0]["lr"] == pytest.approx(0.25 * 0.9 ** (run.global_step / 2))
    assert "name" not in critic.param_groups[0]


def test_optimizers_that_take_turns_keep_their_rates() -> None:
    class Turns(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()[batch_idx % 2]
            self.toggle_optimizer(optimizer)
            output = self.model(input_ids=batch[0], labels=batch[1])
            self.manual_backward(output.loss + self.critic(output.logits).mean() ** 2)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)

    module, recorder = Turns(critic_first=False), tiny.Recorder()
    before = tiny.weights(module)
    tiny.fit(module, layerwise(), recorder)
    assert recorder.rates == {**{name: [rate] * 4 for name, rate in tiny.RATES.items()}, "0": [0.25] * 4}
    assert all(p.requires_grad for p in module.parameters())
    assert not torch.equal(module.critic.weight, before["critic.weight"])


def test_two_optimizers_that_hold_the_same_layer_are_refused() -> None:
    class Shared(TwoOptimizers):
        def configure_optimizers(self) -> Any:
            top = self.model.bert.encoder.layer[2].parameters()
            return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.AdamW(top, lr=1e-3)], []

    with pytest.raises(OptimizerCoverageError, match=r"2 optimizers \(SGD, AdamW\) each hold .*layer\.2\."):
        tiny.fit(Shared(critic_first=False), layerwise())
