"""Rates that somebody sets to one value for all layers in the middle of a run: seen before a step is taken."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import tiny
import torch
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import FlatRatesWarning

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


class WarmUpByHand(tiny.Classifier):
    """The warm-up of Lightning's documentation of `optimizer_step`."""

    def __init__(self, keep_ratios: bool = False, optimizer: Any = torch.optim.AdamW) -> None:
        super().__init__(lambda module: optimizer(module.parameters(), lr=1e-3))
        self.keep_ratios = keep_ratios

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        scale = min(1.0, (self.trainer.global_step + 1) / 5)
        for group in optimizer.param_groups:
            group["lr"] = scale * (group["layer_lr"] if self.keep_ratios else 1e-3)


def layerwise(distribution: Any = DISTRIBUTION) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False)


def flat_warnings(module: Any, *callbacks: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.fit(module, *callbacks, **options)
    return [str(warning.message) for warning in caught if warning.category is FlatRatesWarning]


def test_a_warm_up_by_hand_that_flattens_the_rates_is_reported_once_with_what_to_write() -> None:
    found = flat_warnings(WarmUpByHand(), layerwise())
    assert len(found) == 1
    assert "Before step 1 all 5 parameter groups of AdamW have the learning rate 0.0002" in found[0]
    assert "rates from 1e-05 to 0.007" in found[0]
    assert "`group['lr'] = scale * group['layer_lr']`" in found[0]


def test_what_the_warning_says_to_write_keeps_the_ratios() -> None:
    recorder = tiny.Recorder()
    assert flat_warnings(WarmUpByHand(keep_ratios=True), layerwise(), recorder) == []
    for name, rate in tiny.RATES.items():
        assert recorder.rates[name] == pytest.approx([rate, *[rate * k / 5 for k in (1, 2, 3, 4, 5, 5, 5)]]), name


def test_the_warning_can_be_made_an_error_before_a_flat_step_is_taken() -> None:
    module, recorder = WarmUpByHand(), tiny.Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlatRatesWarning)
        with pytest.raises(FlatRatesWarning):
            tiny.fit(module, layerwise(), recorder)
    assert recorder.rates == {name: [rate] for name, rate in tiny.RATES.items()}


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"])
def test_a_rate_written_in_any_hook_of_the_module_is_seen_before_the_step(hook: str) -> None:
    class Writing(tiny.Classifier):
        pass

    def write(self: Any, *_: Any) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = 2e-3

    setattr(Writing, hook, write)
    (found,) = flat_warnings(Writing(lambda m: torch.optim.SGD(m.parameters(), lr=1e-3)), layerwise())
    assert "Before step 0" in found


def test_a_rate_written_within_training_step_is_seen_too() -> None:
    class Writing(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for group in self.optimizers().param_groups:
                group["lr"] = 2e-3 / (1 + batch_idx)
            return super().training_step(batch, batch_idx)

    module = Writing(lambda m: torch.optim.SGD(m.parameters(), lr=1e-3))
    (found,) = flat_warnings(module, layerwise(DISTRIBUTION.freeze("embeddings")))
    # The frozen group has no say, neither here nor in the number.
    assert "Before step 0 all 4 parameter groups" in found


@pytest.mark.parametrize(
    ("distribution", "schedule"),
    [
        (DISTRIBUTION, lambda o: sch.LambdaLR(o, lambda step: 0.0)),
        (DISTRIBUTION, lambda o: sch.LambdaLR(o, lambda step: max(0, step - 2))),
        ("flat:lr=1e-3", lambda o: sch.StepLR(o, 1)),
        ("flat:lr=1e-3,freeze=embeddings..layers.2", lambda o: sch.StepLR(o, 1)),
    ],
    ids=["zero", "late", "flat", "frozen"],
)
def test_rates_that_are_equal_by_right_are_not_reported(distribution: Any, schedule: Any) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    assert flat_warnings(tiny.Classifier(configure), layerwise(distribution)) == []
