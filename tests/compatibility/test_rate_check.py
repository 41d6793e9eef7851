"""Rates that leave the distribution step by step: said when the first ratio changes, with both values, and once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import FlatRatesWarning, RatesOffPlanWarning
from lr_dist.rate_check import RateCheck

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)
LAYERS = [f"layers.{index}" for index in range(tiny.LAYERS)]


def said(module: Any, *callbacks: Any, **options: Any) -> list[RatesOffPlanWarning]:
    """The warnings of a fit, as objects."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.fit(module, *callbacks, **options)
    return [warning.message for warning in caught if isinstance(warning.message, RatesOffPlanWarning)]


def layerwise(distribution: Any = DISTRIBUTION, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False, **options)


def by_hand(hook: str, change: Callable[[dict[str, Any], int], float], optimizer: Any = torch.optim.SGD) -> Any:
    """A module that writes `change(group, step)` into each group's rate in one of its hooks."""

    class Writing(tiny.Classifier):
        def configure_optimizers(self) -> Any:
            return optimizer(self.parameters(), lr=1e-3)

    def write(self: Any, *_: Any) -> None:
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = change(group, self.trainer.global_step)

    setattr(Writing, hook, write)
    return Writing(lambda m: None)


HOOKS = ["on_train_batch_start", "on_before_zero_grad", "on_train_batch_end", "on_before_backward"]


@pytest.mark.parametrize("hook", HOOKS)
def test_one_floor_is_said_at_the_step_in_which_the_lowest_layer_reaches_it(hook: str) -> None:
    # Multiplied by 0.7 at every call, down to 4e-6: the embeddings' 1e-5 get there first, the head's 7e-3 never.
    module = by_hand(hook, lambda group, step: max(group["lr"] * 0.7, 4e-6))
    recorder = tiny.Recorder()
    (warning,) = said(module, layerwise(), recorder)
    assert type(warning) is RatesOffPlanWarning
    first = next(t for t, rate in enumerate(recorder.rates["embeddings"]) if rate == 4e-6)
    assert (warning.group, warning.step, warning.found) == ("embeddings", first, 4e-6)
    assert 2 <= first <= 4
    assert warning.wanted == pytest.approx(1e-5 * recorder.rates["head"][first] / 7e-3)
    assert "4e-06" in str(warning)
    assert f"{warning.wanted:.4g}" in str(warning)


def test_one_highest_rate_is_said_and_names_the_group_above_it() -> None:
    module = by_hand("on_train_batch_start", lambda group, step: min(group["layer_lr"] * 2**step, 0.02))
    (warning,) = said(module, layerwise())
    # The head is at 7e-3, 1.4e-2, and would be at 2.8e-2 in step 2.
    assert (warning.group, warning.step, warning.found) == ("head", 2, 0.02)
    assert warning.wanted == pytest.approx(2.8e-2)


@pytest.mark.parametrize("group", ["embeddings", "layers.1", "head"])
def test_one_group_alone_that_changes_after_many_steps_is_found(group: str) -> None:
    module = by_hand(
        "on_train_batch_start", lambda g, t: g["layer_lr"] * (0.5 if t >= 60 and g["name"] == group else 1)
    )
    (warning,) = said(module, layerwise(), data=tiny.batches(120))
    assert warning.group == group
    assert warning.found == pytest.approx(tiny.RATES[group] / 2)
    assert warning.wanted == pytest.approx(tiny.RATES[group])
    # The lowest and the highest are seen at once, one between them when all are compared again.
    assert warning.step == 60 if group != "layers.1" else 60 < warning.step <= 110


def test_rates_in_tensors_are_compared_too() -> None:
    class Tensors(tiny.Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=torch.tensor(1e-3))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"].clamp_(min=2e-5 if batch_idx > 2 else 0.0)

    (warning,) = said(Tensors(lambda m: None), layerwise())
    assert (warning.group, warning.step) == ("embeddings", 3)


def test_a_custom_scheduler_with_one_floor_is_said_once_long_before_all_rates_are_equal() -> None:
    class Floored(sch.LRScheduler):
        def get_lr(self) -> Any:
            return [max(base * 0.1**self.last_epoch, 1e-6) for base in self.base_lrs]

    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": Floored(optimizer), "interval": "step"}]

    (warning,) = said(tiny.Classifier(configure), layerwise(allow_schedulers=(Floored,)))
    # 1e-5 falls to 1e-6 with the first step, and would go on to 1e-7 with the second.
    assert (warning.group, warning.step) == ("embeddings", 2)
    assert warning.wanted == pytest.approx(1e-7)
    assert not isinstance(warning, FlatRatesWarning)


def test_equal_rates_from_the_first_step_are_said_as_flat_with_the_same_attributes() -> None:
    (warning,) = said(by_hand("on_train_batch_start", lambda group, step: 2e-3), layerwise())
    assert isinstance(warning, FlatRatesWarning)
    assert (warning.step, warning.found) == (0, 2e-3)


def test_the_warning_as_an_error_stops_before_the_step() -> None:
    module, recorder = by_hand("on_train_batch_start", lambda g, t: max(g["layer_lr"], 2e-5)), tiny.Recorder()
    before = tiny.weights(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RatesOffPlanWarning)
        with pytest.raises(RatesOffPlanWarning):
            tiny.fit(module, layerwise(), recorder)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


# What is right and must not be said ----------------------------------------------------------------------


def two_groups(module: Any, first: float = 1e-3, second: float = 5e-3) -> Any:
    """A user's groups for backbone and classifier."""
    model = module.model
    parts = [{"params": model.bert.parameters(), "lr": first}, {"params": model.classifier.parameters(), "lr": second}]
    return torch.optim.SGD(parts, lr=first, momentum=0.9)


PER_GROUP: dict[str, Callable[[Any], Any]] = {
    "lambdas": lambda o: sch.LambdaLR(o, [lambda t: 1 / (1 + t), lambda t: 0.5**t]),
    "multiplicative": lambda o: sch.MultiplicativeLR(o, [lambda t: 0.9, lambda t: 0.5]),
    "cosine_with_floor": lambda o: sch.CosineAnnealingLR(o, 6, eta_min=5e-4),
    "restarts_with_floor": lambda o: sch.CosineAnnealingWarmRestarts(o, 3, eta_min=5e-4),
    "one_cycle": lambda o: sch.OneCycleLR(o, [0.1, 0.02], total_steps=9),
    "cyclic": lambda o: sch.CyclicLR(o, [1e-4, 1e-3], [1e-3, 5e-3], step_size_up=3),
    "sequence": lambda o: sch.SequentialLR(
        o, [sch.LinearLR(o, 0.1, total_iters=3), sch.LambdaLR(o, [lambda t: 0.5**t, lambda t: 1.0])], [3]
    ),
}


@pytest.mark.parametrize("distribution", [DISTRIBUTION, DISTRIBUTION.relative_to(1e-3)], ids=["absolute", "relative"])
@pytest.mark.parametrize("schedule", PER_GROUP.values(), ids=PER_GROUP.keys())
def test_schedules_that_differ_between_the_users_groups_are_not_said(schedule: Any, distribution: Any) -> None:
    def configure(module: Any) -> Any:
        optimizer = two_groups(module)
        return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    recorder = tiny.Recorder()
    assert said(tiny.Classifier(configure), layerwise(distribution), recorder) == []
    # The layers of one of the user's groups keep their ratios, and the schedule does something.
    for name in LAYERS:
        assert recorder.rates[name] == pytest.approx(
            [tiny.RATES[name] / 1e-5 * rate for rate in recorder.rates["embeddings"]]
        )
    assert len(set(recorder.rates["head"])) > 2


def test_a_floor_by_hand_is_found_where_each_layer_was_a_group_of_the_user() -> None:
    def configure(module: Any) -> Any:
        parts = [module.model.bert.embeddings, *module.model.bert.encoder.layer, module.model.bert.pooler]
        groups = [{"params": part.parameters(), "lr": 1e-3 * 0.8 ** (6 - depth)} for depth, part in enumerate(parts)]
        return torch.optim.SGD([*groups, {"params": module.model.classifier.parameters()}], lr=1e-3)

    class Floored(tiny.Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = max(group["lr"] * 0.9, 3e-4 * 0.5)

    (warning,) = said(Floored(configure), layerwise("decay:lr=1,factor=0.8,relative=true"))
    assert warning.group == "embeddings"
    assert warning.step <= 2


@pytest.mark.parametrize("schedule", [lambda t: 0.0, lambda t: 1e-7, lambda t: float(t > 3), lambda t: -1e-17])
def test_factors_of_zero_and_next_to_it_are_not_said(schedule: Any) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": sch.LambdaLR(optimizer, schedule), "interval": "step"}]

    assert said(tiny.Classifier(configure), layerwise()) == []


def test_a_schedule_by_hand_with_a_floor_of_its_own_for_each_layer_is_not_said() -> None:
    module = by_hand("on_train_batch_start", lambda group, step: max(0.5**step, 0.1) * group["layer_lr"])
    assert said(module, layerwise(DISTRIBUTION.freeze("embeddings"))) == []


def test_the_check_does_not_keep_the_optimizer_alive() -> None:
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(1))], "layer_lr": rate, "name": str(rate)} for rate in (1.0, 2.0)],
        lr=1.0,
    )
    check = RateCheck(optimizer)
    assert check.warning(0) is not None
    check = RateCheck(optimizer)
    del optimizer
    assert check.warning(0) is None
