"""Under every schedule, every layer's rate at every step is its own rate times the schedule's factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers
from torch.optim import lr_scheduler as sch
from transformers.optimization import Adafactor, AdafactorSchedule

from lr_dist import LayerwiseLR, LRDistribution, assign_layers
from lr_dist.errors import InvalidRateError, UnsupportedSchedulerError, ZeroRateError
from lr_dist.regroup import Placement, regroup
from lr_dist.schedulers import check_schedulers

# Nothing here may be said to leave the distribution.
pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")

BASE = 2e-3  # the rate of the user's optimizer
STEPS = 8


class Linear30:
    """A factor as a callable object, whose attributes torch saves in checkpoints."""

    def __init__(self) -> None:
        self.slope = 1 / 30

    def __call__(self, step: int) -> float:
        return 1 - self.slope * step


def warm_up_then_cosine(optimizer: Any) -> Any:
    warm_up = sch.LinearLR(optimizer, start_factor=0.01, total_iters=3)
    cosine = sch.CosineAnnealingLR(optimizer, T_max=5, eta_min=BASE / 10)
    return sch.SequentialLR(optimizer, [warm_up, cosine], milestones=[3])


def chain_within_a_sequence(optimizer: Any) -> Any:
    chain = sch.ChainedScheduler([sch.ConstantLR(optimizer, 0.3, 2), sch.ExponentialLR(optimizer, 0.8)], optimizer)
    return sch.SequentialLR(optimizer, [chain, sch.CosineAnnealingWarmRestarts(optimizer, 2)], milestones=[4])


TORCH: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: sch.LambdaLR(o, lambda step: 0.9**step),
    "lambda_from_zero": lambda o: sch.LambdaLR(o, lambda step: step / 10),
    "lambda_object": lambda o: sch.LambdaLR(o, Linear30()),
    "multiplicative": lambda o: sch.MultiplicativeLR(o, lambda step: 0.9 + 0.01 * step),
    "step": lambda o: sch.StepLR(o, 3, 0.4),
    "multistep": lambda o: sch.MultiStepLR(o, [2, 3, 6], 0.3),
    "constant": lambda o: sch.ConstantLR(o, 0.25, 4),
    "linear": lambda o: sch.LinearLR(o, 0.1, 0.8, 6),
    "exponential": lambda o: sch.ExponentialLR(o, 0.7),
    "polynomial": lambda o: sch.PolynomialLR(o, 7, 2.0),
    "cosine": lambda o: sch.CosineAnnealingLR(o, 20),
    "cosine_with_floor": lambda o: sch.CosineAnnealingLR(o, 3, eta_min=BASE / 7),
    "restarts": lambda o: sch.CosineAnnealingWarmRestarts(o, 2, 2),
    "restarts_with_floor": lambda o: sch.CosineAnnealingWarmRestarts(o, 3, eta_min=BASE / 5),
    "sequential": warm_up_then_cosine,
    "chained": lambda o: sch.ChainedScheduler([sch.LinearLR(o, 0.2, 1.0, 4), sch.StepLR(o, 3, 0.5)], o),
    "chained_with_floor": lambda o: sch.ChainedScheduler(
        [sch.ConstantLR(o, 0.5, 2), sch.CosineAnnealingLR(o, 9, eta_min=BASE / 9)], o
    ),
    "chain_within_a_sequence": chain_within_a_sequence,
}
# These name the rate themselves: the distribution takes the place of their max_lr, whatever the optimizer's lr is.
PEAKED: dict[str, Callable[[Any], Any]] = {
    "one_cycle": lambda o: sch.OneCycleLR(o, 0.05, total_steps=STEPS + 1),
    "one_cycle_three_phases": lambda o: sch.OneCycleLR(o, 0.05, total_steps=STEPS + 1, three_phase=True),
    "cyclic": lambda o: sch.CyclicLR(o, 0.01, 0.05, step_size_up=3),
    "cyclic_halving": lambda o: sch.CyclicLR(o, 0.01, 0.05, step_size_up=2, mode="triangular2"),
}
HUGGING_FACE: dict[str, Callable[[Any], Any]] = {
    "constant": transformers.get_constant_schedule,
    "constant_with_warmup": lambda o: transformers.get_constant_schedule_with_warmup(o, 3),
    "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, 2, 10),
    "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, 2, 10),
    "hard_restarts": lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, 2, 10, 2),
    "polynomial": lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, 2, 7, lr_end=BASE / 10),
    "inverse_sqrt": lambda o: transformers.get_inverse_sqrt_schedule(o, 2),
    "cosine_min_lr": lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, 2, 7, min_lr_rate=0.1),
    "cosine_min_lr_absolute": lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(
        o, 2, 7, min_lr=BASE / 10
    ),
    "cosine_warmup_min_lr": lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        o, 2, 7, min_lr_rate=0.1
    ),
    "wsd": lambda o: transformers.get_wsd_schedule(o, 2, 3, num_stable_steps=3, min_lr_ratio=0.1),
}


def flat_run(build: Callable[[Any], Any], steps: int = STEPS) -> list[float]:
    """The rates that the schedule gives an optimizer with one flat rate."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=BASE)
    scheduler = build(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def layerwise_run(build: Callable[[Any], Any], distribution: Any = tiny.EXPLICIT, **options: Any) -> tiny.Recorder:
    """What a Trainer with LayerwiseLR does under the same schedule, stepped after every batch."""

    def configure(module: Any) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=BASE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": build(optimizer), "interval": "step"}}

    recorder = tiny.Recorder()
    tiny.fit(tiny.Classifier(configure), LayerwiseLR(distribution, verbose=False, **options), recorder)
    return recorder


def assert_proportional(rates: dict[str, list[float]], flat: list[float], anchor: float) -> None:
    assert list(rates) == list(tiny.RATES)
    assert max(flat) > 1.05 * min(flat) or min(flat) == max(flat) == anchor
    for name, rate in tiny.RATES.items():
        assert rates[name] == pytest.approx([rate * value / anchor for value in flat], rel=1e-11, abs=1e-18), name


@pytest.mark.parametrize("build", TORCH.values(), ids=TORCH.keys())
def test_torch_schedules_scale_every_layer(build: Any) -> None:
    assert_proportional(layerwise_run(build).rates, flat_run(build), BASE)


@pytest.mark.parametrize("build", PEAKED.values(), ids=PEAKED.keys())
def test_schedules_with_a_peak_reach_each_layers_rate_there(build: Any) -> None:
    assert_proportional(layerwise_run(build).rates, flat_run(build), anchor=0.05)


@pytest.mark.parametrize("build", HUGGING_FACE.values(), ids=HUGGING_FACE.keys())
def test_schedules_of_transformers_scale_every_layer(build: Any) -> None:
    assert_proportional(layerwise_run(build).rates, flat_run(build), BASE)


@pytest.mark.parametrize("name", ["one_cycle", "cyclic"])
def test_momentum_cycles_as_under_a_flat_rate(name: str) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=BASE)
    scheduler, expected = PEAKED[name](optimizer), []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()

    steps = layerwise_run(PEAKED[name]).steps

    assert [step["betas"][0] for step in steps] == expected
    assert max(expected) - min(expected) > 0.05


@pytest.mark.parametrize("name", ["linear", "sequential", "cosine_with_floor"])
def test_a_relative_distribution_multiplies_the_optimizers_rate(name: str) -> None:
    relative = LRDistribution.from_dict(tiny.EXPLICIT).relative_to(BASE)
    assert_proportional(layerwise_run(TORCH[name], relative).rates, flat_run(TORCH[name]), BASE)


def test_a_frozen_layer_stays_at_zero_under_a_floor() -> None:
    distribution = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")
    rates = layerwise_run(TORCH["cosine_with_floor"], distribution).rates
    assert rates["layers.0"] == [0.0] * STEPS
    assert rates["head"] == pytest.approx([7e-3 / BASE * value for value in flat_run(TORCH["cosine_with_floor"])])


# Plateau -------------------------------------------------------------------------------------------------

SCORES = [1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]


def plateau_run(build: Callable[[Any], Any], rates: dict[str, Any]) -> dict[str, list[float]]:
    """One batch an epoch, the schedule stepping on the score of each epoch."""

    def configure(module: Any) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=BASE)
        config = {"scheduler": build(optimizer), "interval": "epoch", "monitor": "score"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    recorder, module = tiny.Recorder(), tiny.Classifier(configure, scores=SCORES)
    callback = LayerwiseLR(rates, verbose=False)
    tiny.fit(module, callback, recorder, data=tiny.batches(1), max_epochs=len(SCORES))
    return recorder.rates


def flat_plateau(build: Callable[[Any], Any]) -> list[float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=BASE)
    scheduler, rates = build(optimizer), []
    for score in SCORES:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step(score)
    return rates


PLATEAUS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda o: sch.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "one_floor": lambda o: sch.ReduceLROnPlateau(o, factor=0.3, patience=0, min_lr=BASE / 20),
    "list_of_floors": lambda o: sch.ReduceLROnPlateau(o, factor=0.3, patience=0, min_lr=[BASE / 20]),
    "patience": lambda o: sch.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1),
    "transformers": lambda o: transformers.get_reduce_on_plateau_schedule(o, factor=0.5, patience=0),
}


@pytest.mark.parametrize("build", PLATEAUS.values(), ids=PLATEAUS.keys())
def test_a_plateau_reduces_every_layer_down_to_its_own_floor(build: Any) -> None:
    flat = flat_plateau(build)
    assert flat[-1] < 0.3 * flat[0]
    assert_proportional(plateau_run(build, tiny.EXPLICIT), flat, BASE)


def test_a_plateau_keeps_the_ratios_where_changes_are_below_torchs_eps() -> None:
    rates = {"family": "from_layers", "embeddings": 1e-9, "layers": [1e-8, 1e-6, 1e-5], "head": 1e-4}
    reduced = plateau_run(lambda o: sch.ReduceLROnPlateau(o, factor=0.5, patience=0), rates)
    assert reduced["embeddings"][-1] == pytest.approx(1e-9 * reduced["head"][-1] / 1e-4)
    assert reduced["head"][-1] < 1e-5


# What is not known ---------------------------------------------------------------------------------------


class Halving(sch.LRScheduler):
    def get_lr(self) -> list[Any]:
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


class Subclass(sch.LambdaLR):
    pass


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (Halving, "Halving"),
        (lambda o: Subclass(o, lambda step: 1.0), "Subclass"),
        (lambda o: sch.SequentialLR(o, [sch.ConstantLR(o), Halving(o)], [2]), "Halving"),
    ],
)
def test_a_scheduler_that_was_not_tested_is_refused_by_name(build: Any, name: str) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=rf"{name}.*allow_schedulers=\({name},\)"):
        layerwise_run(build)


def test_the_greedy_schedule_of_transformers_is_refused() -> None:
    greedy = getattr(transformers.optimization, "get_greedy_schedule", None)
    if greedy is None:
        pytest.skip("this transformers has no greedy schedule")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=BASE)
    with pytest.raises(UnsupportedSchedulerError, match="GreedyLR"):
        check_schedulers([greedy(optimizer)])


def test_the_schedule_of_adafactor_which_sets_its_own_rates_is_refused() -> None:
    def configure(module: Any) -> Any:
        optimizer = Adafactor(module.parameters(), lr=BASE, relative_step=False)
        return [optimizer], [AdafactorSchedule(optimizer, BASE)]

    with pytest.raises(UnsupportedSchedulerError, match="AdafactorSchedule"):
        tiny.fit(tiny.Classifier(configure), LayerwiseLR(tiny.EXPLICIT))


def test_an_allowed_scheduler_scales_every_layer_also_within_another() -> None:
    rates = layerwise_run(Halving, allow_schedulers=(Halving,)).rates
    assert_proportional(rates, flat_run(Halving), BASE)

    def nested(optimizer: Any) -> Any:
        return sch.SequentialLR(optimizer, [sch.ConstantLR(optimizer, 0.1, 9), Halving(optimizer)], [2])

    assert_proportional(layerwise_run(nested, allow_schedulers=(Halving,)).rates, flat_run(nested), BASE)


def test_a_refused_scheduler_leaves_the_optimizer_as_it_was() -> None:
    kept: list[Any] = []

    def configure(module: Any) -> Any:
        kept.append(torch.optim.AdamW(module.parameters(), lr=BASE))
        return [kept[0]], [Halving(kept[0])]

    with pytest.raises(UnsupportedSchedulerError):
        tiny.fit(tiny.Classifier(configure), LayerwiseLR(tiny.EXPLICIT))
    assert len(kept[0].param_groups) == 1
    assert kept[0].param_groups[0]["lr"] == BASE


def test_an_optimizer_without_a_rate_to_scale_is_refused() -> None:
    with pytest.raises(ZeroRateError, match="learning rate 0"):
        tiny.fit(tiny.Classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.0)), LayerwiseLR(tiny.EXPLICIT))


def test_schedulers_stay_the_same_objects_of_their_class_with_plain_state() -> None:
    kept: list[Any] = []

    def configure(module: Any) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=BASE)
        kept.append(sch.CosineAnnealingLR(optimizer, 5, eta_min=BASE / 10))
        return {"optimizer": optimizer, "lr_scheduler": kept[0]}

    run = tiny.fit(tiny.Classifier(configure), LayerwiseLR(tiny.EXPLICIT, verbose=False))

    assert run.lr_scheduler_configs[0].scheduler is kept[0]
    assert isinstance(kept[0], sch.CosineAnnealingLR)
    state = kept[0].state_dict()
    assert state["eta_mins"] == pytest.approx([rate / 10 for rate in tiny.RATES.values()])
    assert all(isinstance(x, (int, float, bool)) for v in state.values() for x in (v if isinstance(v, list) else [v]))
    assert math.isclose(state["eta_min"], BASE / 10)


# Wrong rates, and a second split -------------------------------------------------------------------------


def optimizer_of_a_model(**options: Any) -> tuple[Any, Placement]:
    model = tiny.bert()
    return torch.optim.SGD(model.parameters(), **options), Placement.of(model, assign_layers(model))


def test_a_second_split_keeps_what_a_plateau_has_reduced() -> None:
    optimizer, placement = optimizer_of_a_model(lr=BASE)
    plateau = sch.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    regroup(optimizer, [plateau], placement, LRDistribution.from_dict(tiny.EXPLICIT))
    for score in (1.0, 1.0, 1.0):
        plateau.step(score)
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(7e-3 / 4)
    regroup(optimizer, [plateau], placement, LRDistribution.from_dict(tiny.EXPLICIT).scale(3.0))
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found == pytest.approx({name: 3 * rate / 4 for name, rate in tiny.RATES.items()}, rel=1e-12)


@pytest.mark.parametrize(
    "lr", [math.nan, math.inf, -1.0, "1e-3", True, 10**400, [1e-3], torch.tensor([1e-3, 1e-3]), torch.tensor(math.nan)]
)
def test_a_rate_of_the_optimizer_that_is_none_is_refused_and_nothing_changes(lr: Any) -> None:
    optimizer, placement = optimizer_of_a_model(lr=BASE)
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(InvalidRateError, match=r"Parameter group 0 of the optimizer has (lr=|the rate)"):
        regroup(optimizer, [], placement, LRDistribution.from_dict(tiny.EXPLICIT))
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["lr"] is lr


def test_a_schedule_that_ends_a_rounding_below_zero_can_be_split_there() -> None:
    optimizer, placement = optimizer_of_a_model(lr=BASE, momentum=0.9)
    cycle = sch.OneCycleLR(optimizer, 0.1, 2, pct_start=0.0, anneal_strategy="linear", div_factor=1, final_div_factor=3)
    for _ in range(2):
        cycle.step()
    assert -1e-15 < optimizer.param_groups[0]["lr"] < 0
    regroup(optimizer, [cycle], placement, LRDistribution.from_dict(tiny.EXPLICIT))
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([*tiny.RATES.values()], rel=1e-12)


@pytest.mark.parametrize(("multiple", "lr"), [(1e300, 1e10), (1e-300, 1e-30)])
def test_a_product_that_no_floating_point_number_holds_is_refused(multiple: float, lr: float) -> None:
    optimizer, placement = optimizer_of_a_model(lr=lr)
    with pytest.raises(InvalidRateError, match="leaves the range"):
        regroup(optimizer, [], placement, LRDistribution.flat(multiple, relative=True))
    assert len(optimizer.param_groups) == 1


def test_a_second_split_may_be_far_from_the_first() -> None:
    optimizer, placement = optimizer_of_a_model(lr=BASE)
    silence = sch.LambdaLR(optimizer, lambda step: 0.0)
    for rate in (1e-230, 1e90):  # rate / anchor is no floating-point number
        regroup(optimizer, [silence], placement, LRDistribution.flat(rate))
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    assert silence.base_lrs == [1e90] * 5


@pytest.mark.parametrize("peak", [math.nan, -0.1, math.inf])
def test_a_peak_that_is_no_rate_is_refused(peak: float) -> None:
    optimizer, placement = optimizer_of_a_model(lr=BASE, momentum=0.9)
    cycle = sch.CyclicLR(optimizer, 0.01, peak)
    with pytest.raises(InvalidRateError):
        regroup(optimizer, [cycle], placement, LRDistribution.from_dict(tiny.EXPLICIT))
    assert len(optimizer.param_groups) == 1
