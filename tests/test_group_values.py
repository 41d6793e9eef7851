"""Schedulers of unknown types: what they keep for each group is split by its shape and its numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR
from lr_dist.errors import RatesOffPlanWarning
from lr_dist.group_values import split_group_values

BASE = 2e-3
STEPS = 8


class Foreign:
    """The shape of timm's schedulers: no class of torch, values for each group, and no complaint about their number."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.keep([group["lr"] for group in optimizer.param_groups])
        self.step(0)

    def keep(self, rates: list[float]) -> None:
        raise NotImplementedError

    def rates(self, step: int) -> Any:
        raise NotImplementedError

    def step(self, step: int, metric: Any = None) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates(step), strict=False):
            group["lr"] = float(rate)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def foreign(keep: Callable[[Any, list[float]], None], rates: Callable[[Any, int], Any]) -> type:
    return type("Other", (Foreign,), {"keep": keep, "rates": rates})


def setting(name: str, make: Callable[[list[float]], Any]) -> Callable[[Any, list[float]], None]:
    return lambda self, rates: setattr(self, name, make(rates))


SHAPES = {
    "list": foreign(setting("starting_points", list), lambda s, t: [v / (1 + t) for v in s.starting_points]),
    "tuple": foreign(setting("anfang", tuple), lambda s, t: [v / (1 + t) for v in s.anfang]),
    "tensor": foreign(
        setting("starts", lambda r: torch.tensor(r, dtype=torch.float64)), lambda s, t: s.starts / (1 + t)
    ),
    "array": foreign(setting("starts", np.array), lambda s, t: s.starts / (1 + t)),
    "table": foreign(setting("table", lambda r: np.outer(r, 0.5 ** np.arange(20))), lambda s, t: s.table[:, t]),
    "lists_of_rates": foreign(
        setting("plans", lambda r: [[rate / (1 + t) for t in range(20)] for rate in r]),
        lambda s, t: [plan[t] for plan in s.plans],
    ),
    "map_of_lists": foreign(
        setting("values", lambda r: {"from": list(r)}), lambda s, t: [v / (1 + t) for v in s.values["from"]]
    ),
    "map_by_index": foreign(
        setting("values", lambda r: dict(enumerate(r))), lambda s, t: [v / (1 + t) for v in s.values.values()]
    ),
    "slopes": foreign(
        lambda s, r: (
            [group.setdefault("initial_lr", group["lr"]) for group in s.optimizer.param_groups],
            setattr(s, "slopes", [rate / 10 for rate in r]),
        )[1],
        lambda s, t: [v * (1 + t) for v in s.slopes],
    ),
    "warm_up_from_its_constructor_on": foreign(
        setting("starting_points", list), lambda s, t: [v * (1 + t) / 10 for v in s.starting_points]
    ),
    "warm_up_from_zero": foreign(setting("base", np.array), lambda s, t: s.base * min(1.0, t / 5)),
    "functions": foreign(
        lambda s, r: (setattr(s, "base", list(r)), setattr(s, "rules", [lambda t: 0.5**t for _ in r]))[0],
        lambda s, t: [base * rule(t) for base, rule in zip(s.base, s.rules, strict=True)],
    ),
    "factors": foreign(
        lambda s, r: (setattr(s, "base", list(r)), setattr(s, "gammas", [0.5] * len(r)))[0],
        lambda s, t: [base * gamma**t for base, gamma in zip(s.base, s.gammas, strict=True)],
    ),
}


def flat(kind: type, lr: float = BASE) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr)
    scheduler, rates = kind(optimizer), []
    for step in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(step + 1)
    return rates


class Module(tiny.Classifier):
    def __init__(self, kind: type, groups: int = 1) -> None:
        super().__init__(lambda m: None)
        self.kind, self.groups = kind, groups

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        parts = [{"params": parameters[index :: self.groups]} for index in range(self.groups)]
        optimizer = torch.optim.SGD(parts, lr=BASE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.kind(optimizer), "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step(self.global_step)


def fit(kind: type, groups: int = 1, distribution: Any = tiny.EXPLICIT) -> tuple[tiny.Recorder, list[Any]]:
    recorder = tiny.Recorder()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.fit(Module(kind, groups), LayerwiseLR(distribution, verbose=False, allow_schedulers=(kind,)), recorder)
    return recorder, [w.message for w in caught if isinstance(w.message, RatesOffPlanWarning)]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", SHAPES.values(), ids=SHAPES.keys())
def test_values_for_each_group_are_split_whatever_their_name_and_shape(kind: type, groups: int) -> None:
    recorder, said = fit(kind, groups)
    assert said == []
    factors = [rate / BASE for rate in flat(kind)]
    assert len(set(factors)) > 3
    for name, rate in tiny.RATES.items():
        assert recorder.rates[name] == pytest.approx([rate * factor for factor in factors]), name


def test_a_peak_takes_the_place_of_the_rate_as_under_one_cycle() -> None:
    keep = setting("peak_lrs", lambda rates: [3 * rate for rate in rates])
    recorder, said = fit(foreign(keep, lambda s, t: [v / (1 + t) for v in s.peak_lrs]))
    assert said == []
    assert recorder.rates["layers.1"] == pytest.approx([2e-4 / (1 + t) for t in range(STEPS)])


def test_a_weight_decay_that_it_schedules_is_copied_to_every_group_and_not_scaled() -> None:
    class Both(Foreign):
        def keep(self, rates: list[float]) -> None:
            self.base, self.decays = list(rates), [1e-4] * len(rates)
            for group in self.optimizer.param_groups:
                group["weight_decay"] = 1e-4

        def rates(self, step: int) -> Any:
            for group, decay in zip(self.optimizer.param_groups, self.decays, strict=True):
                group["weight_decay"] = decay * (1 + step)
            return [base / (1 + step) for base in self.base]

    run: list[Any] = []
    module = Module(Both)
    run.append(tiny.fit(module, LayerwiseLR(tiny.EXPLICIT, verbose=False, allow_schedulers=(Both,))))
    assert [g["weight_decay"] for g in run[0].optimizers[0].param_groups] == pytest.approx([1e-4 * (1 + STEPS)] * 5)


def test_an_own_list_of_the_groups_is_exchanged_for_the_split_ones() -> None:
    kind = foreign(lambda s, r: setattr(s, "held", list(s.optimizer.param_groups)), lambda s, t: [])

    def step(self: Any, step: int, metric: Any = None) -> None:
        for group in self.held:
            group["lr"] *= 0.5

    kind.step = step  # type: ignore[attr-defined]
    recorder, said = fit(kind)
    assert said == []
    # The first half step was taken when the scheduler was made.
    assert recorder.rates["head"] == pytest.approx([7e-3 * 0.5**t for t in range(STEPS)])


def test_what_cannot_be_split_is_said_after_the_first_step_with_both_values() -> None:
    kind = foreign(
        lambda s, r: setattr(s, "hidden", iter(())) or setattr(s, "first", r[0]), lambda s, t: [s.first / (1 + t)]
    )
    _, (warning,) = fit(kind)
    # Only the first group follows, from the rate before the split.
    assert (warning.group, warning.step) == ("embeddings", 1)
    assert warning.found == pytest.approx(BASE / 2)
    assert warning.wanted == pytest.approx(1e-5)


def test_one_floor_and_a_warm_up_from_one_rate_are_said() -> None:
    floor = foreign(setting("base", list), lambda s, t: [max(v * 0.5**t, 1e-5) for v in s.base])
    _, (warning,) = fit(floor)
    assert (warning.group, warning.step, warning.found) == ("embeddings", 1, 1e-5)
    warmup = foreign(setting("base", list), lambda s, t: [1e-6 + (v - 1e-6) * min(1, t / 4) for v in s.base])
    _, said = fit(warmup)
    assert len(said) == 1


def test_a_rate_that_it_keeps_in_the_group_is_scaled_too() -> None:
    class Peaked(Foreign):
        def keep(self, rates: list[float]) -> None:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["target_lr"] = rate

        def rates(self, step: int) -> Any:
            return [group["target_lr"] / (1 + step) for group in self.optimizer.param_groups]

    recorder, said = fit(Peaked)
    assert said == []
    assert recorder.rates["layers.1"] == pytest.approx([2e-4 / (1 + t) for t in range(STEPS)])


def test_a_scheduler_within_an_allowed_one_is_rewritten_as_well() -> None:
    class Wrapper(Foreign):
        def keep(self, rates: list[float]) -> None:
            self.after = sch.ExponentialLR(self.optimizer, 0.5)

        def step(self, step: int, metric: Any = None) -> None:
            if step:
                self.after.step()

    recorder, said = fit(Wrapper)
    assert said == []
    assert recorder.rates["layers.0"] == pytest.approx([3e-5 * 0.5**t for t in range(STEPS)])


@pytest.mark.parametrize(
    "values",
    [
        [30],
        (2, 3),
        [0.9, 0.999],
        ["a", "b"],
        [{"x": 1}],
        [torch.nn.Parameter(torch.ones(2))],
        [0.7],
        [True],
        [[30, 60]],
    ],
    ids=str,
)
def test_what_is_no_value_of_a_group_stays(values: Any) -> None:
    class Scheduler:
        optimizer = None

        def __init__(self) -> None:
            self.other = values

    for count in (1, 2):
        scheduler = Scheduler()
        parents = [index % count for index in range(5)]
        split_group_values(scheduler, parents=parents, anchors=[1e-3] * count, scale=lambda k, v: v * k)
        assert scheduler.other is values
