"""Combining trials: within a pair by rank, across pairs by the geometric mean."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr_dist.errors import InvalidRateError, InvalidTrialsError, ZeroRateError
from lr_dist.search.combining.combine import (
    ScoredRates,
    combine,
    geometric_mean,
    geometric_spread,
    rank_weighted_log_mean,
)


def test_the_best_trial_weighs_1_and_every_next_one_1_8_times_less() -> None:
    # In the order of score: e^0, e^1, e^2, so log rate = (0 + 1/1.8 + 2/1.8^2) / (1 + 1/1.8 + 1/1.8^2).
    trials = [
        ScoredRates(0.5, {"head": math.e**2}),
        ScoredRates(1.5, {"head": 1.0}),
        ScoredRates(1.0, {"head": math.e}),
    ]
    expected = math.exp((1 / 1.8 + 2 / 3.24) / (1 + 1 / 1.8 + 1 / 3.24))
    assert rank_weighted_log_mean(trials)["head"] == pytest.approx(expected, rel=1e-14)
    assert expected == pytest.approx(1.8760, rel=1e-5)


def test_trials_of_equal_score_keep_their_order() -> None:
    first, second = ScoredRates(1.0, {"head": 1.0}), ScoredRates(1.0, {"head": 16.0})
    # base 3: weights 3/4 and 1/4.
    assert rank_weighted_log_mean([first, second], base=3)["head"] == pytest.approx(2.0, rel=1e-14)
    assert rank_weighted_log_mean([second, first], base=3)["head"] == pytest.approx(8.0, rel=1e-14)


def test_a_base_of_1_weighs_all_trials_alike() -> None:
    trials = [ScoredRates(score, {"a": 10.0**score, "b": 5.0}) for score in (0, 1, 2)]
    assert rank_weighted_log_mean(trials, base=1) == pytest.approx({"a": 10.0, "b": 5.0}, rel=1e-14)


def test_hundreds_of_trials_do_not_overflow() -> None:
    trials = [ScoredRates(-i, {"head": 1e-5}) for i in range(5000)]
    assert rank_weighted_log_mean(trials)["head"] == pytest.approx(1e-5, rel=1e-12)


def test_a_pair_with_more_trials_counts_no_more_than_another() -> None:
    one = [ScoredRates(1.0, {"head": 1.0})]
    many = [ScoredRates(1.0, {"head": 100.0})] * 50
    combination = combine({"a>b": one, "b>a": many})
    assert combination.rates["head"] == pytest.approx(10.0, rel=1e-13)
    assert combination.trials == {"a>b": 1, "b>a": 50}
    assert combination.by_pair == {"a>b": pytest.approx({"head": 1.0}), "b>a": pytest.approx({"head": 100.0})}


def test_the_spread_is_the_geometric_standard_deviation_over_the_pairs() -> None:
    # ln: 0, 1, 2 -> sample standard deviation 1.
    profiles = [{"head": 1.0, "g1": 3.0}, {"head": math.e, "g1": 3.0}, {"head": math.e**2, "g1": 3.0}]
    assert geometric_spread(profiles) == pytest.approx({"head": math.e, "g1": 1.0}, rel=1e-14)
    assert combine({"a>b": [ScoredRates(1.0, {"head": 1.0})]}).spread is None
    with pytest.raises(InvalidTrialsError, match="at least 2"):
        geometric_spread(profiles[:1])


@given(
    st.lists(st.tuples(st.floats(-10, 10), st.floats(1e-9, 1)), min_size=1, max_size=30),
    st.floats(1e-3, 1e3),
    st.floats(1, 5),
)
def test_scaling_every_rate_scales_the_mean_which_stays_within_the_trials(
    pairs: list[tuple[float, float]], factor: float, base: float
) -> None:
    mean = rank_weighted_log_mean([ScoredRates(s, {"head": r}) for s, r in pairs], base)["head"]
    scaled = rank_weighted_log_mean([ScoredRates(s, {"head": r * factor}) for s, r in pairs], base)["head"]
    assert scaled == pytest.approx(mean * factor, rel=1e-9)
    rates = [rate for _, rate in pairs]
    assert min(rates) * (1 - 1e-9) <= mean <= max(rates) * (1 + 1e-9)


def test_what_cannot_be_combined_raises_and_names_the_pair() -> None:
    good = [ScoredRates(1.0, {"head": 1.0})]
    with pytest.raises(InvalidTrialsError, match="nothing to combine"):
        combine({})
    with pytest.raises(InvalidTrialsError, match="b>a: there is nothing to combine"):
        combine({"a>b": good, "b>a": []})
    with pytest.raises(InvalidTrialsError, match="a>b: trial 1 has the score nan"):
        combine({"a>b": [*good, ScoredRates(math.nan, {"head": 1.0})]})
    with pytest.raises(ZeroRateError, match="a>b: head=0 freezes"):
        combine({"a>b": [ScoredRates(1.0, {"head": 0.0})]})
    with pytest.raises(InvalidRateError, match="head=-1"):
        combine({"a>b": [ScoredRates(1.0, {"head": -1.0})]})
    with pytest.raises(InvalidTrialsError, match="entry 1 has the groups g1, but the first has head"):
        combine({"a>b": [*good, ScoredRates(0.5, {"g1": 1.0})]})
    with pytest.raises(InvalidTrialsError, match=r"\(none\)"):
        geometric_mean([{}])
    with pytest.raises(InvalidRateError, match=r"base=0\.5"):
        rank_weighted_log_mean(good, base=0.5)


def test_combining_imports_neither_optuna_nor_torch() -> None:
    code = "import sys, lr_dist.search.kenneweg2022; print({'optuna', 'torch', 'lightning', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
