"""The estimate of log p(x) against models whose log p(x) is known."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from torch import Tensor

from lr_dist.errors import InvalidMasksError, ScoringError
from lr_dist.retention.marginal_likelihood import marginal_likelihood, order_spread, pseudo_log_likelihood
from lr_dist.retention.masks import draw_masks


def gaussian(x: Tensor, covariance: Tensor):
    """The conditionals of N(0, covariance) for the point x."""

    def conditional(masks: Tensor) -> Tensor:
        values = torch.full(masks.shape, math.nan, dtype=torch.float64)
        for row, mask in enumerate(masks):
            seen = ~mask
            for j in mask.nonzero().flatten().tolist():
                gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, j]) if seen.any() else None
                mean = 0.0 if gain is None else float(gain @ x[seen])
                variance = float(covariance[j, j]) - (0.0 if gain is None else float(gain @ covariance[seen][:, j]))
                values[row, j] = -0.5 * (math.log(2 * math.pi * variance) + (float(x[j]) - mean) ** 2 / variance)
        return values

    return conditional


def table(probabilities: Tensor, state: tuple[int, ...]):
    """The conditionals of a table [values] * D for one state."""

    def conditional(masks: Tensor) -> Tensor:
        values = torch.full(masks.shape, math.nan, dtype=torch.float64)
        for row, mask in enumerate(masks.tolist()):
            seen = tuple(slice(None) if hidden else state[j] for j, hidden in enumerate(mask))
            rest = probabilities[seen]  # a dimension for each hidden token
            names = [j for j, hidden in enumerate(mask) if hidden]
            for axis, j in enumerate(names):
                marginal = rest.sum(dim=[i for i in range(len(names)) if i != axis]) if len(names) > 1 else rest
                values[row, j] = torch.log(marginal[state[j]] / marginal.sum())
        return values

    return conditional


def random_table(values: int, tokens: int, seed: int = 0, sharp: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn([values] * tokens, generator=generator, dtype=torch.float64).mul(sharp).exp()
    return weights / weights.sum()


def test_the_gaussian_has_its_log_density() -> None:
    covariance = torch.tensor([[2.0, 1, 0], [1, 2, 1], [0, 1, 2]], dtype=torch.float64)
    conditional = gaussian(torch.tensor([1.0, -1, 2], dtype=torch.float64), covariance)
    outcome = marginal_likelihood(conditional, 3, masks=None)
    expected = [-3.86205478, -2.19739588, -1.76551212]
    assert [point.mean for point in outcome.curve] == pytest.approx(expected, abs=1e-8)
    assert outcome.total == pytest.approx(-7.82496278, abs=1e-8)
    assert outcome.standard_error == 0
    assert pseudo_log_likelihood(conditional, 3) == pytest.approx(3 * expected[0], abs=1e-7)


def test_every_state_of_a_table_has_its_probability() -> None:
    probabilities = random_table(2, 3, seed=1)
    for state in itertools.product(range(2), repeat=3):
        conditional = table(probabilities, state)
        outcome = marginal_likelihood(conditional, 3, masks=None)
        assert outcome.total == pytest.approx(math.log(probabilities[state]), abs=1e-12)
        spread = order_spread(conditional, 3, orders=None)
        assert spread.mean == pytest.approx(outcome.total, abs=1e-12)
        assert spread.sd < 1e-12
        assert len(spread.values) == 6


def test_contradicting_conditionals_have_a_spread_and_the_mean_over_orders() -> None:
    def conditional(masks: Tensor) -> Tensor:
        # Of the first token alone the last one is certain; the reverse is not so.
        return torch.log(torch.where(masks[:, :1], torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.5, 0.4, 1.0])))

    spread = order_spread(conditional, 3, orders=None)
    assert spread.sd > 0.1
    assert spread.mean == pytest.approx(marginal_likelihood(conditional, 3, masks=None).total, abs=1e-6)
    some = order_spread(conditional, 3, orders=4, seed=3)
    assert len(some.values) == 4
    assert {round(v, 6) for v in some.values} <= {round(v, 6) for v in spread.values}


STATE = (0, 1, 2, 0)


@pytest.mark.parametrize(("masks", "sizes"), [(2, None), (3, None), (2, 2), (2, 3)])
def test_the_estimate_is_unbiased_and_its_error_is_the_spread_over_draws(masks: int, sizes: int | None) -> None:
    probabilities = random_table(3, 4, seed=2, sharp=3.0)
    known = {}
    conditional = table(probabilities, STATE)
    every = draw_masks(4, masks=None).masks
    for mask, value in zip(every, conditional(every), strict=True):
        known[tuple(mask.tolist())] = value
    looked_up = lambda masks: torch.stack([known[tuple(mask)] for mask in masks.tolist()])  # noqa: E731
    draws = [marginal_likelihood(looked_up, 4, masks=masks, sizes=sizes, seed=seed) for seed in range(3000)]
    totals = [draw.total for draw in draws]
    sd = statistics.stdev(totals)
    assert sd > 0.1
    assert statistics.fmean(totals) == pytest.approx(math.log(probabilities[STATE]), abs=4 * sd / math.sqrt(3000))
    # Root mean square: the estimate of the variance is what is unbiased.
    assert math.sqrt(statistics.fmean(d.standard_error**2 for d in draws)) == pytest.approx(sd, rel=0.06)


def test_choosing_sizes_adds_most_of_the_error() -> None:
    conditional = table(random_table(3, 4, seed=2, sharp=3.0), STATE)
    runs = {
        sizes: [marginal_likelihood(conditional, 4, sizes=sizes, masks=6, seed=s) for s in range(150)]
        for sizes in (None, 2)
    }
    errors = {sizes: statistics.fmean(d.standard_error for d in draws) for sizes, draws in runs.items()}
    spreads = {sizes: statistics.stdev(d.total for d in draws) for sizes, draws in runs.items()}
    assert errors[2] > 2 * errors[None]
    assert spreads[2] > 2 * spreads[None]


@pytest.mark.parametrize("length", [2, 5, 9, 16, 33])
@pytest.mark.parametrize("sizes", [2, 3, 4, 7, 16])
def test_sizes_are_stratified_with_weights_that_sum_to_the_length(length: int, sizes: int) -> None:
    if sizes > length:
        with pytest.raises(InvalidMasksError, match=f"A text of {length} tokens"):
            draw_masks(length, sizes=sizes)
        return
    plan = draw_masks(length, sizes=sizes, masks=2, seed=length)
    drawn = [size for stratum in plan.strata for size in stratum.sizes]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == sizes
    assert sum(stratum.weight * len(stratum.sizes) for stratum in plan.strata) == pytest.approx(length)
    assert all(len(stratum.sizes) >= 2 or stratum.count == 1 for stratum in plan.strata)
    assert torch.equal(plan.masks.sum(dim=1), plan.sizes)


def test_a_fixed_share_is_another_quantity() -> None:
    probabilities = random_table(3, 4, seed=2, sharp=3.0)
    outcome = marginal_likelihood(table(probabilities, STATE), 4, masks=None)
    assert all(abs(4 * point.mean - outcome.total) > 0.1 for point in outcome.curve)


def test_batches_do_not_change_the_estimate() -> None:
    conditional = table(random_table(3, 4, seed=2), STATE)
    asked = []

    def recorded(masks: Tensor) -> Tensor:
        asked.append(len(masks))
        return conditional(masks)

    one = marginal_likelihood(recorded, 4, masks=3, batch_size=2)
    assert max(asked) == 2
    assert one == marginal_likelihood(conditional, 4, masks=3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"length": 4, "masks": 1}, "One mask a size has no standard error"),
        ({"length": 0}, "length must be a whole number of at least 1, not 0"),
        ({"length": 17, "masks": None}, "too many to try them all"),
        ({"length": 4, "sizes": 1}, "sizes must be a whole number from 2 to 4, not 1"),
        ({"length": 4, "sizes": 5}, "A text of 4 tokens has the mask sizes 1 ... 4"),
        ({"length": 4, "batch_size": 0}, "batch_size must be"),
    ],
)
def test_wrong_masks_are_refused(arguments, says: str) -> None:
    with pytest.raises(InvalidMasksError, match=says):
        marginal_likelihood(lambda masks: masks.double(), **arguments)


def test_wrong_orders_are_refused() -> None:
    with pytest.raises(InvalidMasksError, match="One order has no spread"):
        order_spread(lambda masks: masks.double(), 4, orders=1)
    with pytest.raises(InvalidMasksError, match="too many orders"):
        order_spread(lambda masks: masks.double(), 8, orders=None)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (lambda masks: masks.double().sum(), "not shape"),
        (lambda masks: 0.0, "not float"),
        (lambda masks: torch.full(masks.shape, math.nan), "NaN"),
    ],
)
def test_wrong_answers_of_the_model_are_refused(returned, says: str) -> None:
    with pytest.raises(ScoringError, match=says):
        marginal_likelihood(returned, 3)
