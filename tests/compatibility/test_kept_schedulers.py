"""Schedulers that the Trainer does not know, because a module or a callback keeps and steps them itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR
from lr_dist.errors import RatesOffPlanWarning
from lr_dist.kept_schedulers import kept_schedulers

BASE = 2e-3
STEPS = 8

pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")


class Warmup(sch.LRScheduler):
    """A subclass with a formula of its own."""

    def get_lr(self) -> list[Any]:
        return [base * min(1.0, (self.last_epoch + 1) / 4) for base in self.base_lrs]


class Plain:
    """Not a scheduler of torch: keeps the groups' rates under a name of its own."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.t = optimizer, 0
        self.starting_points = [group["lr"] for group in optimizer.param_groups]
        self.step()

    def get_lr(self) -> list[float]:
        return [start / self.t for start in self.starting_points]

    def step(self) -> None:
        self.t += 1
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "custom": Warmup,
    "plain": Plain,
    "lambda": lambda o: sch.LambdaLR(o, lambda t: 0.9**t),
    "cosine_with_floor": lambda o: sch.CosineAnnealingLR(o, 6, eta_min=BASE / 10),
    "cyclic": lambda o: sch.CyclicLR(o, BASE / 5, BASE, step_size_up=3, cycle_momentum=False),
    "sequence": lambda o: sch.SequentialLR(o, [sch.LinearLR(o, 0.1, total_iters=3), Warmup(o)], [3]),
}


def flat(build: Callable[[Any], Any]) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=BASE)
    scheduler, rates = build(optimizer), []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


PLACES: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda scheduler: scheduler,
    "list": lambda scheduler: [scheduler],
    "map": lambda scheduler: {"main": {"first": scheduler}},
    "helper": lambda scheduler: SimpleNamespace(parts=(scheduler,)),
}
HOOKS = ["on_train_batch_end", "on_before_zero_grad", "optimizer_step", "training_step"]


class Keeping(tiny.Classifier):
    def __init__(self, build: Any, place: Any = PLACES["attribute"], hook: str = "on_train_batch_end") -> None:
        super().__init__(lambda m: None)
        self.build, self.place, self.hook, self.calls = build, place, hook, 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=BASE)
        self.step_it = self.build(optimizer)
        self.somewhere = self.place(self.step_it)
        if self.place is not PLACES["attribute"]:
            scheduler = self.__dict__.pop("step_it")
            self.step_function = lambda: scheduler.step()
        else:
            self.step_function = self.step_it.step
        return optimizer

    def _step(self, hook: str) -> None:
        if hook == self.hook:
            self.step_function()

    def on_train_batch_end(self, *_: Any) -> None:
        self._step("on_train_batch_end")

    def on_before_zero_grad(self, optimizer: Any) -> None:
        if self.calls:  # Lightning calls it before the first step, too.
            self._step("on_before_zero_grad")
        self.calls += 1

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        self._step("optimizer_step")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx:
            self._step("training_step")
        return super().training_step(batch, batch_idx)


def assert_followed(recorder: tiny.Recorder, factors: list[float]) -> None:
    assert len(set(factors)) > 2
    for name, rate in tiny.RATES.items():
        assert recorder.rates[name] == pytest.approx([rate * factor / BASE for factor in factors]), name


@pytest.mark.parametrize("build", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_scheduler_in_an_attribute_of_the_module_is_followed(build: Any) -> None:
    recorder = tiny.Recorder()
    tiny.fit(Keeping(build), LayerwiseLR(tiny.EXPLICIT, verbose=False), recorder)
    assert_followed(recorder, flat(build))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
@pytest.mark.parametrize("build", [Warmup, Plain])
def test_it_is_found_wherever_the_module_keeps_it(place: Any, build: Any) -> None:
    recorder = tiny.Recorder()
    tiny.fit(Keeping(build, place), LayerwiseLR(tiny.EXPLICIT, verbose=False), recorder)
    assert_followed(recorder, flat(build))


@pytest.mark.parametrize("hook", HOOKS)
def test_it_is_followed_from_whichever_hook_it_is_stepped(hook: str) -> None:
    recorder = tiny.Recorder()
    tiny.fit(Keeping(Warmup, hook=hook), LayerwiseLR(tiny.EXPLICIT, verbose=False), recorder)
    assert recorder.rates["head"][0] == pytest.approx(7e-3 / 4)
    assert_followed(recorder, (flat(Warmup) * 2)[: len(recorder.rates["head"])])


def test_it_is_followed_beside_a_schedule_of_the_trainer() -> None:
    class Both(Keeping):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            self.second = sch.StepLR(optimizer, 3, 0.5)
            return [optimizer], [{"scheduler": self.second, "interval": "step"}]

    recorder = tiny.Recorder()
    tiny.fit(Both(lambda o: sch.ExponentialLR(o, 0.9)), LayerwiseLR(tiny.EXPLICIT, verbose=False), recorder)
    assert_followed(recorder, [BASE * 0.9**t * 0.5 ** (t // 3) for t in range(STEPS)])


def test_one_that_a_callback_keeps_is_followed() -> None:
    class Stepping(L.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.schedule = [Warmup(trainer.optimizers[0])]

        def on_train_batch_end(self, *_: Any) -> None:
            self.schedule[0].step()

    for callbacks in (
        [Stepping(), LayerwiseLR(tiny.EXPLICIT, verbose=False)],
        [LayerwiseLR(tiny.EXPLICIT), Stepping()],
    ):
        recorder = tiny.Recorder()
        tiny.fit(tiny.Classifier(lambda m: torch.optim.SGD(m.parameters(), lr=BASE)), *callbacks, recorder)
        assert_followed(recorder, flat(Warmup))


def test_one_that_writes_a_single_rate_to_all_groups_is_said() -> None:
    class Single(Plain):
        def get_lr(self) -> list[float]:
            return [1e-3 / self.t] * len(self.optimizer.param_groups)

    with pytest.raises(RatesOffPlanWarning, match=r"0\.0005"):
        tiny.fit(Keeping(Single), LayerwiseLR(tiny.EXPLICIT, verbose=False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.fit(Keeping(Single), LayerwiseLR(tiny.EXPLICIT, verbose=False))
    assert sum(issubclass(warning.category, RatesOffPlanWarning) for warning in caught) == 1


# What is no scheduler of this optimizer ------------------------------------------------------------------


def test_wrappers_others_schedulers_and_nested_ones_are_left_out() -> None:
    mine, other = (torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=BASE) for _ in range(2))

    class Sam:
        def __init__(self) -> None:
            self.optimizer, self.param_groups = mine, mine.param_groups

        def step(self) -> None: ...

    class Engine:
        def __init__(self) -> None:
            self.optimizer = mine

        def step(self) -> None: ...

    sequence = sch.SequentialLR(mine, [sch.ConstantLR(mine), sch.ConstantLR(mine)], [2])
    module = torch.nn.Module()
    module.values = [Sam(), Engine(), sch.StepLR(other, 1), sequence, *sequence._schedulers]  # type: ignore[assignment]
    module.inner = torch.nn.Sequential(torch.nn.Linear(1, 1))
    late = sch.StepLR(mine, 1)
    module.inner[0].late = late
    assert kept_schedulers([module], mine) == [sequence, late]
    assert kept_schedulers([module], mine, known=[sequence]) == [late]
