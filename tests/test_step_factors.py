"""StepFactors with real optimizers and schedulers: what a step uses, and what everybody else sees."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer
from torch.optim import lr_scheduler as sch
from transformers.optimization import Adafactor as HFAdafactor

from lr_dist.errors import InvalidRateError, UnsupportedOptimizerError
from lr_dist.step_factors import StepFactors

NAMES = ("embeddings", "layers.0", "layers.0/no_decay", "head")
RATES = (0.1, 0.3, 0.3, 0.7)


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in NAMES]


def groups(params: list[nn.Parameter], rates: Any = RATES) -> list[dict[str, Any]]:
    return [{"name": n, "params": [p], "lr": r} for n, p, r in zip(NAMES, params, rates, strict=True)]


def sgd(**options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(groups(parameters()), lr=1.0, **options)


def rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def weights(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: Optimizer, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=generator)


def ones(optimizer: Optimizer) -> None:
    """Gradients of 1, with which plain SGD moves every weight by the rate."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)


def moved(before: list[torch.Tensor], optimizer: Optimizer) -> list[float]:
    return [(old - new).mean().item() for old, new in zip(before, weights(optimizer), strict=True)]


# What a step uses ----------------------------------------------------------------------------------------


def test_a_step_uses_the_products_and_leaves_the_rates_as_they_were() -> None:
    optimizer = sgd()
    factors = StepFactors.of(optimizer)
    factors.set("warm-up", {"embeddings": 0.0, "layers.0": 0.5})
    factors.set("loss", 0.25)
    before = weights(optimizer)
    ones(optimizer)
    optimizer.step()
    # `layers.0/no_decay` finds its layer, `head` is not in the first map.
    assert moved(before, optimizer) == pytest.approx([0, 0.3 * 0.125, 0.3 * 0.125, 0.7 * 0.25], rel=1e-5)
    assert rates(optimizer) == list(RATES)

    factors.remove("loss")
    factors.remove("loss")
    before = weights(optimizer)
    optimizer.step()
    assert moved(before, optimizer) == pytest.approx([0, 0.15, 0.15, 0.7], rel=1e-5)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], Optimizer]] = {
    "sgd": lambda g: torch.optim.SGD(g, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda g: torch.optim.AdamW(g, weight_decay=0.1, foreach=False),
    "adamw_foreach": lambda g: torch.optim.AdamW(g, weight_decay=0.1, foreach=True),
    "adamw_fused": lambda g: torch.optim.AdamW(g, weight_decay=0.1, fused=True),
    "sgd_fused": lambda g: torch.optim.SGD(g, momentum=0.9, fused=True),
    "rmsprop": lambda g: torch.optim.RMSprop(g),
    "adafactor": lambda g: torch.optim.Adafactor(g),
    "hf_adafactor": lambda g: HFAdafactor(g, relative_step=False, scale_parameter=False),
    "nadam": lambda g: torch.optim.NAdam(g),
}


def adamw_with_rates_in_tensors(g: list[dict[str, Any]], **options: Any) -> Optimizer:
    for group in g:
        group["lr"] = torch.tensor(group["lr"])
    return torch.optim.AdamW(g, weight_decay=0.1, **options)


OPTIMIZERS["adamw_tensor"] = lambda g: adamw_with_rates_in_tensors(g, foreach=False)
OPTIMIZERS["adamw_tensor_fused"] = lambda g: adamw_with_rates_in_tensors(g, fused=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_those_of_an_optimizer_that_was_given_the_products_as_rates(name: str) -> None:
    products = (0.5, 0.25, 0.25, 2.0)  # powers of two: rate x factor is exact in float32, too
    theirs = OPTIMIZERS[name](groups(parameters(), [r * f for r, f in zip(RATES, products, strict=True)]))
    ours = OPTIMIZERS[name](groups(parameters()))
    given = [group["lr"] for group in ours.param_groups]
    plain = rates(ours)
    StepFactors.of(ours).set("mine", {"embeddings": 0.5, "layers.0": 0.25, "head": 2.0})
    for step in range(4):
        for optimizer in (ours, theirs):
            set_gradients(optimizer, step)
            optimizer.step()
        assert rates(ours) == plain
    for left, right in zip(weights(ours), weights(theirs), strict=True):
        assert torch.equal(left, right)
    # A rate in a tensor stays in the same memory, which a captured graph reads.
    assert all(a is group["lr"] for a, group in zip(given, ours.param_groups, strict=True) if torch.is_tensor(a))
    unfactored = OPTIMIZERS[name](groups(parameters()))
    set_gradients(unfactored, 0)
    unfactored.step()
    assert not torch.equal(weights(unfactored)[0], weights(ours)[0])


def test_one_tensor_that_torch_shares_among_all_groups_is_not_multiplied_twice() -> None:
    parts = [{"name": n, "params": [p]} for n, p in zip(NAMES, parameters(), strict=True)]
    optimizer = torch.optim.AdamW(parts, lr=torch.tensor(0.5), weight_decay=0.0, foreach=False)
    assert len({id(group["lr"]) for group in optimizer.param_groups}) == 1
    StepFactors.of(optimizer).set("mine", 0.5)
    StepFactors.of(optimizer).set("other", {"head": 0.0})
    before = weights(optimizer)
    ones(optimizer)
    optimizer.step()
    assert moved(before, optimizer) == pytest.approx([0.25, 0.25, 0.25, 0.0], rel=1e-4)
    assert rates(optimizer) == [0.5] * 4


def test_factors_that_are_set_within_a_step_hold_at_once() -> None:
    optimizer = sgd()
    factors = StepFactors.of(optimizer)
    factors.set("early", 0.5)
    seen: list[list[float]] = []

    def closure() -> float:
        seen.append(rates(optimizer))
        factors.set("late", {"head": 0.1})
        factors.remove("early")
        seen.append(rates(optimizer))
        ones(optimizer)
        return 1.0

    before = weights(optimizer)
    assert optimizer.step(closure) == 1.0
    assert seen[0] == [0.05, 0.15, 0.15, 0.35]
    assert seen[1] == [0.1, 0.3, 0.3, 0.7 * 0.1]
    assert moved(before, optimizer) == pytest.approx([0.1, 0.3, 0.3, 0.07], rel=1e-5)
    assert rates(optimizer) == list(RATES)


def test_factors_by_name_stay_valid_when_the_groups_change() -> None:
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.5)
    factors = StepFactors.of(optimizer)
    factors.set("mine", {"head": 0.5})
    before = weights(optimizer)
    ones(optimizer)
    optimizer.step()
    assert moved(before, optimizer) == pytest.approx([0.5] * 4)  # no group has that name yet
    options = {key: value for key, value in optimizer.param_groups[0].items() if key not in ("params", "lr")}
    optimizer.param_groups[:] = [{**options, **group} for group in groups(params)]
    before = weights(optimizer)
    optimizer.step()
    assert moved(before, optimizer) == pytest.approx([0.1, 0.3, 0.3, 0.35], rel=1e-5)


def test_the_product_does_not_depend_on_who_came_first() -> None:
    left, right = StepFactors.of(sgd()), StepFactors.of(sgd())
    values = {"a": 0.1, "b": 0.7, "c": 1.3, "d": 1 / 3}
    for name in values:
        left.set(name, values[name])
    for name in reversed(values):
        right.set(name, values[name])
    assert left.product({"name": "head"}) == right.product({"name": "head"})
    # In floating point the order does matter.
    assert math.prod(values.values()) != math.prod(reversed(values.values()))


# What schedulers see -------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "exponential": lambda o: sch.ExponentialLR(o, 0.5),
    "multiplicative": lambda o: sch.MultiplicativeLR(o, lambda _: 0.7),
    "cosine": lambda o: sch.CosineAnnealingLR(o, 6, eta_min=0.01),
    "one_cycle": lambda o: sch.OneCycleLR(o, [1.0, 2.0, 2.0, 3.0], total_steps=8),
    "cyclic": lambda o: sch.CyclicLR(o, [0.1] * 4, [1.0, 2.0, 2.0, 3.0], step_size_up=3),
    "chained": lambda o: sch.ChainedScheduler([sch.ConstantLR(o, 0.5, 2), sch.ExponentialLR(o, 0.9)], o),
    "sequential": lambda o: sch.SequentialLR(o, [sch.LinearLR(o, 0.1, total_iters=2), sch.StepLR(o, 2)], [2]),
}


@pytest.mark.parametrize("factors_first", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_runs_as_if_there_were_no_factors(name: str, factors_first: bool) -> None:
    ours, plain = sgd(momentum=0.9), sgd(momentum=0.9)
    factors = StepFactors.of(ours) if factors_first else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
        schedules = [SCHEDULES[name](ours), SCHEDULES[name](plain)]
        factors = factors or StepFactors.of(ours)
        for step in range(7):
            factors.set("mine", {"head": 0.1 * step, "layers.0": 0.5})
            factors.show()
            before = rates(plain)
            assert rates(ours) == [before[0], before[1] * 0.5, before[2] * 0.5, before[3] * (0.1 * step)]
            for optimizer in (ours, plain):
                set_gradients(optimizer, step)
                optimizer.step()
            assert rates(ours) == before
            for schedule in schedules:
                schedule.step()
            assert rates(ours) == rates(plain)
            assert schedules[0].get_last_lr() == schedules[1].get_last_lr()
    assert ours.state_dict()["param_groups"] == plain.state_dict()["param_groups"]


def test_a_chainable_schedule_with_factors_moves_the_weights_as_computed_by_hand() -> None:
    optimizer = sgd()
    schedule = sch.ExponentialLR(optimizer, 0.5)
    before = weights(optimizer)
    for factor in (1.0, 0.2, 0.6):
        StepFactors.of(optimizer).set("mine", {"head": factor})
        ones(optimizer)
        optimizer.step()
        schedule.step()
    # 0.7 x (1 x 1 + 0.5 x 0.2 + 0.25 x 0.6) for the head, 0.3 x (1 + 0.5 + 0.25) for a layer.
    assert moved(before, optimizer)[1:] == pytest.approx([0.525, 0.525, 0.875], rel=1e-5)


# Showing -------------------------------------------------------------------------------------------------


def test_shown_factors_are_seen_follow_a_change_and_are_hidden_again() -> None:
    optimizer = sgd()
    factors = StepFactors.of(optimizer)
    factors.set("mine", {"head": 0.5})
    factors.show()
    assert rates(optimizer) == [0.1, 0.3, 0.3, 0.35]
    factors.set("mine", {"head": 0.0})
    assert rates(optimizer) == [0.1, 0.3, 0.3, 0.0]
    factors.hide()
    factors.hide()
    assert rates(optimizer) == list(RATES)


def test_hiding_within_a_step_keeps_the_steps_factors() -> None:
    optimizer = sgd()
    factors = StepFactors.of(optimizer)
    factors.set("mine", 0.5)
    factors.show()

    def closure() -> float:
        factors.hide()
        ones(optimizer)
        return 0.0

    before = weights(optimizer)
    optimizer.step(closure)
    assert moved(before, optimizer) == pytest.approx([r / 2 for r in RATES], rel=1e-5)
    assert rates(optimizer) == list(RATES)


@pytest.mark.parametrize("tensors", [False, True])
def test_a_rate_that_somebody_else_writes_meanwhile_is_theirs(tensors: bool) -> None:
    optimizer = sgd()
    if tensors:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    factors = StepFactors.of(optimizer)
    factors.set("mine", 0.5)
    factors.show()
    if tensors:
        optimizer.param_groups[0]["lr"].fill_(0.9)
        optimizer.param_groups[1]["lr"] = torch.tensor(0.8, dtype=torch.float64)
    else:
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.9, 0.8
    factors.hide()
    assert rates(optimizer) == [0.9, 0.8, 0.3, 0.7]
    before = weights(optimizer)
    ones(optimizer)
    optimizer.step()
    assert moved(before, optimizer) == pytest.approx([0.45, 0.4, 0.15, 0.35], rel=1e-5)


# Steps that do not happen, or fail -----------------------------------------------------------------------


def test_a_closure_that_raises_leaves_the_rates_as_they_were() -> None:
    optimizer = sgd()
    StepFactors.of(optimizer).set("mine", 0.5)

    def closure() -> float:
        assert rates(optimizer)[0] == 0.05
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert rates(optimizer) == list(RATES)


@pytest.mark.parametrize("scheduled", ["before", "after", "never"])
def test_a_step_whose_arithmetic_raises_leaves_the_rates_as_they_were(scheduled: str) -> None:
    optimizer = torch.optim.AdamW(groups(parameters()))
    if scheduled == "before":
        sch.ExponentialLR(optimizer, 0.5)
    factors = StepFactors.of(optimizer)
    if scheduled == "after":
        sch.ExponentialLR(optimizer, 0.5)
    factors.set("mine", 0.5)
    factors.show()
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert rates(optimizer) == list(RATES)
    ones(optimizer)
    before = weights(optimizer)
    optimizer.step()
    assert moved(before, optimizer)[3] == pytest.approx(0.35, rel=0.02)


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")  # the scaler did skip the first step
def test_a_step_that_the_gradient_scaler_skips_leaves_nothing_applied() -> None:
    optimizer = sgd()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    factors = StepFactors.of(optimizer)
    factors.set("mine", 0.5)
    schedule = sch.ExponentialLR(optimizer, 0.5)
    before = weights(optimizer)
    for gradient in (math.inf, 1.0):
        loss = sum((p * gradient).sum() for group in optimizer.param_groups for p in group["params"])
        optimizer.zero_grad()
        factors.show()
        scaler.scale(loss).backward()
        factors.hide()  # as a callback does before anything else runs
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    # The first step was skipped, the second taken with half of half the rate.
    assert moved(before, optimizer) == pytest.approx([r / 4 for r in RATES], rel=1e-5)
    assert rates(optimizer) == pytest.approx([r / 4 for r in RATES], rel=1e-12)


# Checkpoints and copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tensors", [False, True])
def test_a_state_dict_never_holds_the_factors(tensors: bool) -> None:
    optimizer = sgd(momentum=0.9)
    if tensors:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    factors = StepFactors.of(optimizer)
    factors.set("mine", 0.5)
    saved: list[Any] = []

    def closure() -> float:
        saved.append(optimizer.state_dict())
        ones(optimizer)
        return 0.0

    factors.show()
    saved.append(optimizer.state_dict())
    assert rates(optimizer) == [r / 2 for r in RATES]
    before = weights(optimizer)
    optimizer.step(closure)
    assert moved(before, optimizer) == pytest.approx([r / 2 for r in RATES], rel=1e-5)
    saved.append(optimizer.state_dict())
    for state in saved:
        assert [float(group["lr"]) for group in state["param_groups"]] == list(RATES)
        assert set(state) == {"state", "param_groups"}
    assert "_lr_dist" not in str(saved)


def test_a_loaded_state_dict_is_multiplied_like_any_other_rate() -> None:
    optimizer = sgd()
    StepFactors.of(optimizer).set("mine", 0.5)
    other = sgd()
    for group in other.param_groups:
        group["lr"] *= 4
    optimizer.load_state_dict(other.state_dict())
    before = weights(optimizer)
    ones(optimizer)
    optimizer.step()
    assert moved(before, optimizer) == pytest.approx([r * 2 for r in RATES], rel=1e-5)
    assert rates(optimizer) == [r * 4 for r in RATES]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_and_pickles_are_plain_optimizers(copied: Callable[[Any], Any]) -> None:
    optimizer = sgd()
    factors = StepFactors.of(optimizer)
    factors.set("mine", 0.5)
    other = copied(optimizer)
    before = weights(other)
    ones(other)
    other.step()
    assert moved(before, other) == pytest.approx(list(RATES), rel=1e-5)
    assert StepFactors.of(other) is not factors
    assert rates(optimizer) == list(RATES)


@pytest.mark.parametrize("scheduled", ["before", "after", "never"])
def test_an_optimizer_with_factors_is_freed_as_soon_as_nobody_holds_it(scheduled: str) -> None:
    gc.disable()
    try:
        optimizer = sgd()
        if scheduled == "before":
            sch.ExponentialLR(optimizer, 0.5)
        StepFactors.of(optimizer).set("mine", 0.5)
        if scheduled == "after":
            sch.ExponentialLR(optimizer, 0.5)
        ones(optimizer)
        optimizer.step()
        reference = weakref.ref(optimizer)
        del optimizer
        assert reference() is None
    finally:
        gc.enable()


def test_an_optimizer_has_one_object_for_all_who_ask() -> None:
    optimizer = sgd()
    assert StepFactors.of(optimizer) is StepFactors.of(optimizer)
    assert StepFactors.of(optimizer) is not StepFactors.of(sgd())


# What is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "half", None, True])
def test_factors_that_are_no_factors_are_refused(value: Any) -> None:
    factors = StepFactors.of(sgd())
    with pytest.raises(InvalidRateError, match="the factor mine"):
        factors.set("mine", value)
    with pytest.raises(InvalidRateError, match="the factor of head"):
        factors.set("mine", {"head": value})
    assert factors.product({"name": "head"}) == 1


def test_wrappers_and_strangers_are_refused() -> None:
    with pytest.raises(UnsupportedOptimizerError, match=r"LightningSGD.*wrapper\.optimizer"):
        StepFactors.of(LightningOptimizer(sgd()))
    with pytest.raises(UnsupportedOptimizerError, match="NoneType"):
        StepFactors.of(None)  # type: ignore[arg-type]


def test_an_optimizer_that_sets_its_own_rate_is_refused() -> None:
    with pytest.raises(UnsupportedOptimizerError, match=r"Adafactor has no learning rate.*relative_step=False"):
        StepFactors.of(HFAdafactor(parameters()))
