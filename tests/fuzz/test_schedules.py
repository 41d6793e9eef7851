"""Under any schedule of any optimizer, every layer's rate is its own rate times the schedule's factor.

The factor is what the same schedule gives the same optimizer without layers, over the rate that this one has where the
factor is 1: `lr` as given to the optimizer, or `max_lr` of OneCycleLR and CyclicLR.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tiny
import torch
from generated import WILD, distributions
from harness import cases, ours
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lr_dist import LRDistribution, assign_layers
from lr_dist.errors import LRDistError, ZeroRateError
from lr_dist.regroup import OwnRatios, Placement, Regrouped, regroup
from lr_dist.schedulers import SUPPORTED_SCHEDULERS, check_schedulers

# Relative rounding of the recursive formulas; the second, of the peak, where they cancel to next to nothing.
ROUNDING, CANCELLED = 1e-9, 1e-12
CYCLES = ("CyclicLR", "OneCycleLR")


# Schedules -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A user's lambda: a factor for each step, from the start again after the last."""

    factors: tuple[float, ...]

    def __call__(self, step: int) -> float:
        return self.factors[step % len(self.factors)]


@dataclass(frozen=True)
class Schedule:
    """A scheduler of torch by name, with its arguments; built anew for every optimizer."""

    kind: str
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    parts: tuple[Schedule, ...] = ()

    def build(self, optimizer: torch.optim.Optimizer) -> Any:
        parts = [part.build(optimizer) for part in self.parts]
        first = (parts,) if self.kind == "ChainedScheduler" else (optimizer, parts) if parts else (optimizer,)
        arguments = copy.deepcopy((*self.arguments,))
        return getattr(lr_scheduler, self.kind)(*first, *arguments, **copy.deepcopy(dict(self.options)))

    @property
    def all_parts(self) -> list[Schedule]:
        """What it holds, at any depth; without itself."""
        return [found for part in self.parts for found in (part, *part.all_parts)]

    @property
    def cycles(self) -> list[Schedule]:
        """The parts that name the rate themselves."""
        return [self] * (self.kind in CYCLES) + [cycle for part in self.parts for cycle in part.cycles]

    def peaks(self, groups: int) -> list[float]:
        """`max_lr` of a cycle for each group."""
        peak = dict(self.options)["max_lr"]
        return list(peak) if isinstance(peak, list) else [peak] * groups


USUAL = st.one_of(st.floats(-6, -1).map(lambda exponent: 10.0**exponent), st.sampled_from([1e-3, 2e-5, 0.05]))
FLOORS = st.one_of(st.just(0.0), st.floats(-9, -3).map(lambda exponent: 10.0**exponent))
SHARES = st.one_of(st.floats(0.01, 1), st.sampled_from([0.1, 0.5, 1.0]))
STEPS = st.integers(1, 9)
TABLES = st.lists(st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1.0])), min_size=1, max_size=5).map(
    lambda factors: Table(tuple(factors))
)


def for_each(groups: int | None, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One value, or a list with one for each group."""
    lists = [] if groups is None else [st.lists(values, min_size=groups, max_size=groups)]
    return st.one_of(values, *lists)


@functools.cache
def leaves(groups: int | None) -> st.SearchStrategy[Schedule]:
    """Every scheduler of torch that holds no other."""

    def of(kind: str, *arguments: st.SearchStrategy[Any], **options: st.SearchStrategy[Any]) -> Any:
        keywords = st.fixed_dictionaries({}, optional=options) if kind not in CYCLES else st.fixed_dictionaries(options)
        return st.builds(
            lambda values, named: Schedule(kind, values, tuple(named.items())), st.tuples(*arguments), keywords
        )

    gamma = st.one_of(SHARES, st.floats(0.5, 1.5))
    return st.one_of(
        of("LambdaLR", for_each(groups, TABLES)),
        of("MultiplicativeLR", for_each(groups, TABLES)),
        of("StepLR", STEPS, gamma=gamma),
        of("MultiStepLR", st.lists(STEPS, max_size=4).map(sorted), gamma=gamma),
        of("ConstantLR", factor=SHARES, total_iters=st.integers(0, 9)),
        of("LinearLR", start_factor=SHARES, end_factor=st.floats(0, 1), total_iters=STEPS),
        of("ExponentialLR", gamma),
        of("PolynomialLR", total_iters=STEPS, power=st.one_of(st.floats(0.1, 3), st.sampled_from([1, 2.0]))),
        of("CosineAnnealingLR", STEPS, eta_min=FLOORS),
        of("CosineAnnealingWarmRestarts", STEPS, T_mult=st.integers(1, 3), eta_min=FLOORS),
        of(
            "CyclicLR",
            base_lr=for_each(groups, FLOORS),
            max_lr=for_each(groups, USUAL),
            step_size_up=STEPS,
            step_size_down=st.one_of(st.none(), STEPS),
            mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
            gamma=st.floats(0.5, 1),
            cycle_momentum=st.booleans(),
        ),
        of(
            "OneCycleLR",
            max_lr=for_each(groups, USUAL),
            total_steps=st.integers(2, 40),
            pct_start=st.floats(0, 1),
            anneal_strategy=st.sampled_from(["cos", "linear"]),
            div_factor=st.floats(1, 100),
            final_div_factor=st.floats(1, 1e4),
            three_phase=st.booleans(),
            cycle_momentum=st.booleans(),
        ),
    )


@functools.cache
def schedules(groups: int | None) -> st.SearchStrategy[Schedule]:
    """Schedulers, alone and within SequentialLR and ChainedScheduler; at most one names the rate itself."""

    def holding(inner: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
        parts = st.lists(inner, min_size=1, max_size=3)
        chained = parts.map(lambda found: Schedule("ChainedScheduler", parts=tuple(found)))
        milestones = st.lists(st.integers(0, 9), min_size=2, max_size=2, unique=True).map(sorted)
        sequential = st.tuples(parts, milestones).map(
            lambda case: Schedule("SequentialLR", (case[1][: len(case[0]) - 1],), parts=tuple(case[0]))
        )
        return st.one_of(chained, sequential)

    plateau = st.fixed_dictionaries(
        # torch's patience of 10 would see no reduction in so few steps.
        {"factor": st.floats(0.1, 0.9), "patience": st.integers(0, 2)},
        optional={
            "mode": st.sampled_from(["min", "max"]),
            "threshold": st.sampled_from([0.0, 1e-4, 0.1]),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 2),
            "min_lr": for_each(groups, FLOORS),
            "eps": st.sampled_from([0.0, 1e-8, 1e-5]),
        },
    ).map(lambda options: Schedule("ReduceLROnPlateau", (), tuple(options.items())))
    leaf = leaves(groups)
    trees = st.recursive(leaf, holding, max_leaves=4)
    # By name: `one_of` would flatten the leaves, and a plateau would be one in thirty.
    kinds = {"leaf": leaf, "tree": trees, "plateau": plateau}
    chosen = st.sampled_from([*kinds]).flatmap(kinds.__getitem__)
    return chosen.filter(lambda schedule: len(schedule.cycles) <= 1)


# Optimizers ----------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "SGD": functools.partial(torch.optim.SGD, momentum=0.9),
    "RMSprop": functools.partial(torch.optim.RMSprop, momentum=0.5),
    "Adagrad": torch.optim.Adagrad,
    "NAdam": torch.optim.NAdam,
}


@functools.cache
def placed() -> tuple[torch.nn.Module, Placement]:
    module = tiny.bert()
    return module, Placement.of(module, assign_layers(module))


@dataclass(frozen=True)
class Setup:
    """A user's optimizer and schedules, and when its groups are split.

    Attributes:
        kind: of the optimizer.
        lrs: the rate of each of its groups.
        tensors: whether those are tensors (float64).
        decays: the weight decay of each group.
        seed: of the choice which parameter is in which group.
        schedules: all of the optimizer's, stepped one after the other.
        before: how many steps are taken before the groups are split.
        scores: what a plateau is given at each step.
    """

    kind: str
    lrs: tuple[float, ...]
    tensors: bool
    decays: tuple[float, ...]
    seed: int
    schedules: tuple[Schedule, ...]
    before: int
    scores: tuple[float, ...]

    def optimizer(self) -> torch.optim.Optimizer:
        choice, count = random.Random(self.seed), len(self.lrs)
        groups: list[dict[str, Any]] = []
        for lr, decay in zip(self.lrs, self.decays, strict=True):
            rate = torch.tensor(lr, dtype=torch.float64) if self.tensors else lr
            groups.append({"params": [], "lr": rate, "weight_decay": decay})
        for index, parameter in enumerate(placed()[0].parameters()):
            # The first ones in turn, so that no group is empty.
            groups[index if index < count else choice.randrange(count)]["params"].append(parameter)
        return OPTIMIZERS[self.kind](groups)

    @property
    def anchors(self) -> list[float]:
        """For each group the rate where the schedule's factor is 1."""
        cycles = [cycle for schedule in self.schedules for cycle in schedule.cycles]
        return cycles[0].peaks(len(self.lrs)) if cycles else list(self.lrs)


@st.composite
def setups(draw: st.DrawFn, *, cycles: bool = True) -> Setup:
    """Optimizers of one to three groups with one schedule, seldom two; with `cycles` also those that set the rate."""
    count = draw(st.integers(1, 3))
    chosen = [draw(schedules(count).filter(lambda schedule: cycles or not schedule.cycles))]
    if draw(st.integers(0, 4)) == 4:
        chosen.append(draw(schedules(count).filter(lambda schedule: not schedule.cycles)))
    return Setup(
        kind=draw(st.sampled_from([*OPTIMIZERS])),
        lrs=tuple(draw(st.lists(USUAL, min_size=count, max_size=count))),
        tensors=draw(st.integers(0, 4)) == 4,
        decays=tuple(draw(st.lists(st.sampled_from([0.0, 0.01]), min_size=count, max_size=count))),
        seed=draw(st.integers(0, 1000)),
        schedules=tuple(chosen),
        before=draw(st.one_of(st.just(0), st.integers(0, 4))),
        scores=tuple(draw(st.lists(st.floats(0, 1), min_size=1, max_size=6))),
    )


class Running:
    """An optimizer under its schedules, step by step."""

    def __init__(self, setup: Setup, optimizer: torch.optim.Optimizer, schedulers: list[Any]) -> None:
        self.setup, self.optimizer, self.schedulers, self.steps = setup, optimizer, schedulers, 0

    @classmethod
    def start(cls, setup: Setup) -> Running:
        optimizer = setup.optimizer()
        return cls(setup, optimizer, [schedule.build(optimizer) for schedule in setup.schedules])

    @property
    def rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def momenta(self) -> list[Any]:
        keys = ("betas", "momentum")
        return [[group[key] for key in keys if key in group] for group in self.optimizer.param_groups]

    def step(self) -> str | None:
        """One step of everything; the name of what torch raised, if it did."""
        self.optimizer.step()  # no gradients: nothing moves
        score = self.setup.scores[self.steps % len(self.setup.scores)]
        self.steps += 1
        for scheduler in self.schedulers:
            try:
                if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                    scheduler.step(score)
                else:
                    scheduler.step()
            except Exception as error:
                return type(error).__name__
        return None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """torch warns of schedules without an effect and of steps in an odd order; both are wanted here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def started(setup: Setup) -> tuple[Running, Running]:
    """The same optimizer twice, one of them to be split; cases that torch itself refuses do not count."""
    try:
        flat, split = Running.start(setup), Running.start(setup)
    except Exception:
        assume(False)
    # A plateau stores no rate from before its first reduction: split later, its factor starts anew.
    known = all("initial_lr" in group for group in flat.optimizer.param_groups)
    for _ in range(setup.before if known else 0):
        assume(flat.step() is None and split.step() is None)
    assume(all(map(math.isfinite, flat.rates)))
    return flat, split


# The invariant -------------------------------------------------------------------------------------------


def parents_of(running: Running, flat: Running) -> list[int]:
    """For each group of the split optimizer, the group of the flat one that holds its parameters."""
    home = {id(p): index for index, group in enumerate(flat.optimizer.param_groups) for p in group["params"]}
    parents = [{home[id(p)] for p in group["params"]} for group in running.optimizer.param_groups]
    assert all(len(parent) == 1 for parent in parents)
    return [parent.pop() for parent in parents]


def own_rates(
    running: Running, distribution: LRDistribution, anchors: list[float], parents: list[int], ratios: OwnRatios
) -> list[float]:
    """Each group's rate in the distribution; groups of one layer keep the ratio that the user gave them."""
    rates = distribution.rates(tiny.LAYERS)
    layers = [group["name"].split("/")[0] for group in running.optimizer.param_groups]
    return [
        rates[layer] * (anchors[parent] if distribution.relative else ratios.ratio(layer, anchors[parent]))
        for layer, parent in zip(layers, parents, strict=True)
    ]


def assert_proportional(
    split: Running, flat: Running, own: list[float], anchors: list[float], peak: list[float]
) -> None:
    parents = parents_of(split, flat)
    for rate, found, parent in zip(own, split.rates, parents, strict=True):
        anchor, now = anchors[parent], flat.rates[parent]
        expected = rate * (now / anchor)
        allowed = ROUNDING * abs(expected) + CANCELLED * rate * peak[parent] / anchor
        assert abs(found - expected) <= allowed, (found, expected, rate, now, anchor)
    assert split.momenta == [flat.momenta[parent] for parent in parents]


def follow(split: Running, flat: Running, own: list[float], anchors: list[float], steps: int) -> None:
    """Both optimizers step by step: proportional, and where torch raises for one it raises for the other."""
    peak = [max(abs(rate), anchor) for rate, anchor in zip(flat.rates, anchors, strict=True)]
    for _ in range(steps):
        assert_proportional(split, flat, own, anchors, peak)
        raised = flat.step()
        assert split.step() == raised
        if raised or not all(map(math.isfinite, flat.rates)):
            return
        peak = [max(high, abs(rate)) for high, rate in zip(peak, flat.rates, strict=True)]


DISTRIBUTIONS = distributions(families=("from_layers", "flat", "decay", "linear"), max_edits=1)
LENGTHS = st.integers(1, 14)


UNFROZEN = distributions(families=("from_layers", "flat", "decay", "linear"), max_edits=1, freezing=False)


def starts_in_units_of_layers(schedule: Schedule) -> bool:
    """Whether the rate at which torch starts a new schedule on a split optimizer holds the layers' rates alone.

    A CyclicLR starts at the rate of the schedule before it; a floor within another scheduler may count at once, and
    is still the user's, because the new schedule is split only after it was built.
    """
    floor = any(dict(part.options).get("eta_min") for part in schedule.all_parts)
    return not floor and not any(cycle.kind == "CyclicLR" for cycle in schedule.cycles)


# With values for any number of groups.
ONE_VALUE = schedules(None).filter(starts_in_units_of_layers)


def fit_for_training(distribution: LRDistribution, anchors: list[float]) -> tuple[float, float]:
    """Discard rates that no floating-point schedule can carry, and those that the model has no layers for.

    Returns:
        The smallest rate above 0 and the largest one.
    """
    rates = ours(distribution.rates, tiny.LAYERS)
    assume(not isinstance(rates, LRDistError))
    largest = max(rates.values()) * (max(anchors) if distribution.relative else 1.0)
    smallest = min([rate for rate in rates.values() if rate] or [1.0])
    assume(largest < 1e250 and smallest > 1e-250)
    return smallest * (min(anchors) if distribution.relative else 1.0), largest


@cases(150)
@given(setups(), DISTRIBUTIONS, LENGTHS)
def test_every_layer_follows_the_schedule_at_its_own_rate(
    setup: Setup, distribution: LRDistribution, steps: int
) -> None:
    with silent():
        flat, split = started(setup)
        fit_for_training(distribution, setup.anchors)
        ratios = regroup(split.optimizer, split.schedulers, placed()[1], distribution).ratios
        held = [id(p) for group in split.optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in placed()[0].parameters())
        names = [group["name"] for group in split.optimizer.param_groups]
        assert len(set(names)) == len(names)
        own = own_rates(split, distribution, setup.anchors, parents_of(split, flat), ratios)
        follow(split, flat, own, setup.anchors, steps)


@cases(70)
@given(setups(), DISTRIBUTIONS, DISTRIBUTIONS, st.integers(0, 6), LENGTHS)
def test_a_second_split_in_the_middle_has_the_second_rates_from_then_on(
    setup: Setup, first: LRDistribution, second: LRDistribution, between: int, steps: int
) -> None:
    with silent():
        flat, split = started(setup)
        fit_for_training(first, setup.anchors)
        fit_for_training(second, setup.anchors)
        ratios = regroup(split.optimizer, split.schedulers, placed()[1], first).ratios
        for _ in range(between):
            assume(flat.step() is None and split.step() is None)
        assume(all(map(math.isfinite, flat.rates)))
        count = len(split.optimizer.param_groups)
        parents = parents_of(split, flat)
        before = own_rates(split, first, setup.anchors, parents, ratios)
        after = own_rates(split, second, setup.anchors, parents, ratios)
        outcome = ours(regroup, split.optimizer, split.schedulers, placed()[1], second)
        if any(new and not old for old, new in zip(before, after, strict=True)):
            assert isinstance(outcome, ZeroRateError)  # no factor turns 0 into a rate
            return
        assert isinstance(outcome, Regrouped)
        assert len(split.optimizer.param_groups) == count
        own = own_rates(split, second, setup.anchors, parents_of(split, flat), outcome.ratios)
        follow(split, flat, own, setup.anchors, steps)


@cases(60)
@given(setups(cycles=False), ONE_VALUE, UNFROZEN, DISTRIBUTIONS, LENGTHS)
def test_a_new_schedule_on_a_split_optimizer_follows_its_own_factor(
    setup: Setup, schedule: Schedule, first: LRDistribution, second: LRDistribution, steps: int
) -> None:
    with silent():
        flat, split = started(setup)
        anchors = schedule.cycles[0].peaks(len(setup.lrs)) if schedule.cycles else setup.anchors
        smallest, _ = fit_for_training(first, setup.anchors)
        _, largest = fit_for_training(second, anchors)
        # torch computes a schedule with a floor as eta_min + (rate - eta_min) f: of a rate far below the floor nothing
        # is left, and the second distribution would multiply that.
        assume(smallest > 1e-8 * largest)
        regroup(split.optimizer, split.schedulers, placed()[1], first)
        try:
            flat.schedulers = [schedule.build(flat.optimizer)]
            split.schedulers = [schedule.build(split.optimizer)]
        except Exception:
            assume(False)
        ratios = regroup(split.optimizer, split.schedulers, placed()[1], second).ratios
        own = own_rates(split, second, anchors, parents_of(split, flat), ratios)
        follow(split, flat, own, anchors, steps)


@cases(60)
@given(setups(), DISTRIBUTIONS, st.integers(0, 8), LENGTHS)
def test_a_run_that_loads_its_state_ends_where_the_unbroken_one_ends(
    setup: Setup, distribution: LRDistribution, done: int, steps: int
) -> None:
    with silent():
        _, unbroken = started(setup)
        _, resumed = started(setup)
        fit_for_training(distribution, setup.anchors)
        for running in (unbroken, resumed):
            regroup(running.optimizer, running.schedulers, placed()[1], distribution)
        for _ in range(done):
            assume(unbroken.step() is None)
        resumed.optimizer.load_state_dict(copy.deepcopy(unbroken.optimizer.state_dict()))
        for own, theirs in zip(resumed.schedulers, unbroken.schedulers, strict=True):
            own.load_state_dict(copy.deepcopy(theirs.state_dict()))
        resumed.steps = unbroken.steps
        for _ in range(steps):
            assert resumed.rates == unbroken.rates or any(map(math.isnan, unbroken.rates))
            assert resumed.momenta == unbroken.momenta
            raised = unbroken.step()
            assert resumed.step() == raised
            if raised:
                return


# Wrong input ---------------------------------------------------------------------------------------------


class Stranger(lr_scheduler.LRScheduler):
    """A scheduler of a user, which was never tested."""

    def get_lr(self) -> list[Any]:
        return [base * 0.9**self.last_epoch for base in self.base_lrs]


class Cousin(lr_scheduler.StepLR):
    """A subclass of a tested one."""


RATES_OF_GROUPS = st.one_of(
    WILD,
    st.sampled_from([0.0, -0.0, -1.0, math.nan, math.inf, 1e-320, 1e300, 10**400, None, True, "1e-3"]),
    st.sampled_from([[0.1, 0.2], [math.nan], [-1.0], [0.0], [], [1e-3]]).map(torch.tensor),
)


def snapshot(running: Running) -> list[Any]:
    """What must stay as it was where an error is raised; repr, because NaN is not equal to itself."""
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in running.optimizer.param_groups
    ]
    states = [(type(scheduler), scheduler.__dict__.get("base_lrs")) for scheduler in running.schedulers]
    return [
        repr_of(part)
        for part in (*groups, *states, *[list(map(id, g["params"])) for g in running.optimizer.param_groups])
    ]


def repr_of(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return f"<{type(value).__name__}>"


@cases(120)
@given(setups(), DISTRIBUTIONS, st.lists(RATES_OF_GROUPS, max_size=3), st.sampled_from(["lr", "initial_lr", "max_lr"]))
def test_no_rate_of_an_optimizer_raises_anything_but_an_error_of_ours(
    setup: Setup, distribution: LRDistribution, wild: list[Any], key: str
) -> None:
    with silent():
        _, split = started(setup)
        for group, value in zip(split.optimizer.param_groups, wild, strict=False):
            group[key] = value
        before = snapshot(split)
        outcome = ours(regroup, split.optimizer, split.schedulers, placed()[1], distribution)
        if isinstance(outcome, LRDistError):
            assert snapshot(split) == before
            return
        frozen = [name for name, rate in distribution.rates(tiny.LAYERS).items() if rate == 0]
        for group in split.optimizer.param_groups:
            assert math.isfinite(group["layer_lr"])
            assert (group["layer_lr"] == 0) == (group["name"].split("/")[0] in frozen)
            assert group["layer_lr"] >= 0
            assert math.isfinite(float(group["lr"]))


@cases(50)
@given(setups(), DISTRIBUTIONS, st.sampled_from(["stranger", "cousin", "inside", "chained", "wild"]), WILD)
def test_a_schedule_that_is_not_known_is_refused_and_nothing_changes(
    setup: Setup, distribution: LRDistribution, kind: str, wild: Any
) -> None:
    with silent():
        _, split = started(setup)
        strange: Any = wild
        if kind == "stranger":
            strange = Stranger(split.optimizer)
        elif kind == "cousin":
            strange = Cousin(split.optimizer, 2)
        elif kind == "inside":
            parts = [lr_scheduler.ConstantLR(split.optimizer), Stranger(split.optimizer)]
            strange = lr_scheduler.SequentialLR(split.optimizer, parts, [2])
        elif kind == "chained":
            strange = lr_scheduler.ChainedScheduler([Cousin(split.optimizer, 1)])
        split.schedulers.append(strange)
        before = snapshot_of_optimizer(split)
        outcome = ours(regroup, split.optimizer, split.schedulers, placed()[1], distribution)
        assert isinstance(outcome, LRDistError)
        assert isinstance(ours(check_schedulers, [strange]), LRDistError)
        assert snapshot_of_optimizer(split) == before


def snapshot_of_optimizer(running: Running) -> str:
    return repr_of(running.optimizer.state_dict()["param_groups"])


def test_every_tested_scheduler_is_among_the_cases() -> None:
    kinds: set[str] = set()

    @cases(200)
    @given(schedules(2))
    def collect(schedule: Schedule) -> None:
        kinds.update(re.findall(r"kind='(\w+)'", repr(schedule)))

    collect()
    tested = {kind.__name__ for kind in SUPPORTED_SCHEDULERS if not kind.__module__.startswith("lr_dist")}
    assert kinds == tested
