"""`from_fisher` and `from_drift`: rates that fall with a number for each layer."""

from __future__ import annotations

import math

import pytest

from lr_dist import LRDistribution
from lr_dist.errors import InvalidDistributionError, InvalidRateError

FISHER = {"embeddings": 4e-6, "layers.0": 1e-6, "layers.1": 16e-6, "layers.2": 4e-6, "head": 9.0}
GROUPS = list(FISHER)


def test_rates_fall_with_the_power_of_the_fisher_information_around_lr() -> None:
    rates = LRDistribution.from_fisher(FISHER, 1e-4, power=0.5).rates(3)
    # The geometric mean is 4e-6; the head is not in it.
    expected = {"embeddings": 1e-4, "layers.0": 2e-4, "layers.1": 0.5e-4, "layers.2": 1e-4, "head": 1e-4}
    assert rates == pytest.approx(expected, rel=1e-12)
    whole = LRDistribution.from_fisher(FISHER, 1e-4, power=1.0).rates(3)
    assert whole["layers.0"] / whole["layers.1"] == pytest.approx(16.0)
    assert LRDistribution.from_fisher(FISHER, 1e-4, power=0).rates(3) == pytest.approx(dict.fromkeys(GROUPS, 1e-4))
    # The unit of F does not matter, only its ratios.
    scaled = LRDistribution.from_fisher({name: 1e9 * value for name, value in FISHER.items()}, 1e-4).rates(3)
    assert scaled == pytest.approx(rates, rel=1e-9)


def test_power_1_costs_least_for_a_given_mean_movement() -> None:
    # The sum of F r^2 over layers of equal size, at the same mean r.
    def cost(power: float) -> float:
        rates = LRDistribution.from_fisher(FISHER, 1.0, power=power, limit=1e6).rates(3)
        moved = [rates[group] for group in GROUPS[:-1]]
        scale = len(moved) / math.fsum(moved)
        return math.fsum(FISHER[group] * (scale * rates[group]) ** 2 for group in GROUPS[:-1])

    assert cost(1.0) < min(cost(0.9), cost(1.1)) < cost(0.0)


def test_no_rate_is_farther_from_lr_than_the_limit() -> None:
    rates = LRDistribution.from_fisher({**FISHER, "layers.0": 1e-30}, 1e-4, power=1.0, limit=5.0, head=7e-4).rates(3)
    assert max(rates[group] for group in GROUPS[:-1]) == pytest.approx(5e-4)
    assert min(rates[group] for group in GROUPS[:-1]) == pytest.approx(0.2e-4)
    assert rates["head"] == 7e-4


def test_the_control_has_the_same_rates_on_other_layers() -> None:
    own = LRDistribution.from_fisher(FISHER, 1e-4)
    orders = {LRDistribution.from_fisher(FISHER, 1e-4, permuted=seed) for seed in range(20)}
    assert len(orders) > 3
    assert own not in orders
    for other in orders:
        rates = other.rates(3)
        assert sorted(rates.values()) == sorted(own.rates(3).values())
        assert rates["head"] == 1e-4
    assert LRDistribution.from_fisher(FISHER, 1e-4, permuted=3) == LRDistribution.from_fisher(FISHER, 1e-4, permuted=3)
    equal = dict.fromkeys(GROUPS, 2.0)
    assert LRDistribution.from_fisher(equal, 1e-4, permuted=0) == LRDistribution.from_fisher(equal, 1e-4)


def test_the_result_is_a_distribution_like_any_other() -> None:
    own = LRDistribution.from_fisher(FISHER, 2.0, relative=True)
    assert own.relative
    assert LRDistribution.parse(str(own)) == own
    assert LRDistribution.from_yaml(own.to_yaml()) == own
    assert own.absolute(1e-5).rates(3)["layers.0"] == pytest.approx(4e-5)
    assert len(own.rates(12)) == 14


def test_layers_whose_movement_cost_nothing_learn_fastest() -> None:
    cost = {"embeddings": 0.04, "layers.0": -0.01, "layers.1": 0.16, "head": 0.5}
    rates = LRDistribution.from_drift(cost, 1e-4, power=0.5, limit=100).rates(2)
    assert rates["embeddings"] / rates["layers.1"] == pytest.approx(2.0)
    # Nothing or less counts as a thousandth of the largest.
    assert rates["layers.0"] / rates["layers.1"] == pytest.approx(math.sqrt(1000))
    assert LRDistribution.from_drift({**cost, "layers.0": 0.0}, 1e-4, limit=100).rates(2) == pytest.approx(rates)
    with pytest.raises(InvalidRateError, match="movement of no layer cost anything"):
        LRDistribution.from_drift(dict.fromkeys(cost, -0.1), 1e-4)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"fisher": {**FISHER, "layers.1": 0.0}}, InvalidRateError, r"layers\.1 is 0\.0"),
        ({"fisher": {**FISHER, "layers.1": -1e-6}}, InvalidRateError, r"layers\.1"),
        ({"fisher": {**FISHER, "layers.1": math.nan}}, InvalidRateError, r"layers\.1 is nan"),
        ({"fisher": {**FISHER, "layers.1": "high"}}, InvalidRateError, r"'high'"),
        ({"fisher": {"layers.0": 1.0, "layers.1": 1.0}}, InvalidDistributionError, "'embeddings'"),
        ({"fisher": {"embeddings": 1.0, "layers.1": 1.0}}, InvalidDistributionError, r"'layers\.1'"),
        ({"fisher": {**FISHER, "pooler": 1.0}}, InvalidDistributionError, "'pooler'"),
        ({"fisher": [1.0, 2.0]}, InvalidDistributionError, "mapping"),
        ({"lr": 0.0}, InvalidRateError, "lr"),
        ({"power": -1.0}, InvalidRateError, "power"),
        ({"limit": 0.5}, InvalidRateError, "1 or more"),
        ({"permuted": -1}, InvalidDistributionError, "permuted"),
        ({"head": -1e-4}, InvalidRateError, "head"),
    ],
)
def test_wrong_input_is_named(changes: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LRDistribution.from_fisher(**{"fisher": FISHER, "lr": 1e-4, **changes})
