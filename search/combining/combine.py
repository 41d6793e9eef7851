"""From many trials on several task pairs to one distribution (Kenneweg et al., arXiv 2404.01317, section 3).

Within a pair, better trials weigh more. With the trials ranked by score, the best at r = 0,

    log rate = sum_r base^-r log rate_r / sum_r base^-r,    base = 1.8 in the paper.

Across pairs, the geometric mean is taken, so a pair with more trials does not weigh more. Pure Python: the input is
each trial's score and its rate for every group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from lr_dist._distribution.families import weighted_mean
from lr_dist.checks import is_number
from lr_dist.errors import InvalidRateError, InvalidTrialsError, ZeroRateError

PAPER_BASE = 1.8


@dataclass(frozen=True)
class ScoredRates:
    """A complete trial, reduced to its score and rates.

    Attributes:
        score: what the search maximises, e.g. p_o + p_s.
        rates: learning rate of each group, > 0.
    """

    score: float
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Combination:
    """The result of `combine`.

    Attributes:
        rates: learning rate of each group.
        spread: geometric standard deviation of each group's rate over the pairs, a factor >= 1 (1: all pairs agree; 3:
            pairs typically differ from the mean by a factor of 3). None for a single pair.
        by_pair: the combined rates of each pair.
        trials: number of trials of each pair.
    """

    rates: dict[str, float]
    spread: dict[str, float] | None
    by_pair: dict[str, dict[str, float]]
    trials: dict[str, int]


def combine(pairs: Mapping[str, Sequence[ScoredRates]], base: float = PAPER_BASE) -> Combination:
    """Rank-weighted mean within each pair, geometric mean across the pairs.

    Raises:
        InvalidTrialsError: no pairs, a pair without trials, a score that is not a finite number, or different groups.
        ZeroRateError: a trial froze a group; 0 has no logarithm.
        InvalidRateError: a rate or the base is not a positive finite number.
    """
    by_pair = {pair: _combine_pair(pair, list(trials), base) for pair, trials in pairs.items()}
    rates = geometric_mean(list(by_pair.values()))
    spread = geometric_spread(list(by_pair.values())) if len(by_pair) > 1 else None
    return Combination(rates, spread, by_pair, {pair: len(trials) for pair, trials in pairs.items()})


def rank_weighted_log_mean(trials: Sequence[ScoredRates], base: float = PAPER_BASE) -> dict[str, float]:
    """The combined rates of one pair. The trial of rank r has weight base^-r; ties keep their order.

    With `base` 1 all trials have the same weight; a larger one gives later ranks less.
    """
    if not is_number(base) or not 1 <= base < math.inf:
        raise InvalidRateError(f"base={base!r} must be a finite number, at least 1; the paper uses {PAPER_BASE}.")
    for i, trial in enumerate(trials):
        if not is_number(trial.score) or not math.isfinite(trial.score):
            raise InvalidTrialsError(f"trial {i} has the score {trial.score!r}; leave out trials without a score.")
    # sorted is stable, also with reverse=True.
    ranked = sorted(trials, key=lambda trial: trial.score, reverse=True)
    return _weighted_profile([trial.rates for trial in ranked], [base**-rank for rank in range(len(ranked))])


def geometric_mean(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The geometric mean of each group's rate over the profiles."""
    return _weighted_profile(profiles, [1.0] * len(profiles))


def geometric_spread(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The geometric standard deviation of each group's rate over at least two profiles: exp(stdev(log rate))."""
    if len(profiles) < 2:
        raise InvalidTrialsError(f"a spread needs at least 2 profiles; got {len(profiles)}.")
    return {group: math.exp(stdev(map(math.log, rates))) for group, rates in _by_group(profiles).items()}


def _weighted_profile(profiles: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    return {group: weighted_mean(rates, weights) for group, rates in _by_group(profiles).items()}


def _by_group(profiles: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Group -> its rate in each profile, checked."""
    if not profiles:
        raise InvalidTrialsError("there is nothing to combine; give at least one trial for each pair.")
    groups = list(profiles[0])
    for i, rates in enumerate(profiles):
        if set(rates) != set(groups) or not groups:
            raise InvalidTrialsError(f"entry {i} has the groups {_list(rates)}, but the first has {_list(groups)}.")
    return {group: [_checked(group, rates[group]) for rates in profiles] for group in groups}


def _checked(group: str, rate: Any) -> float:
    if not is_number(rate) or not 0 <= rate < math.inf:
        raise InvalidRateError(f"{group}={rate!r} is not a valid learning rate: it must be finite and greater than 0.")
    if rate == 0:
        raise ZeroRateError(f"{group}=0 freezes a group, and 0 has no logarithm; leave that trial out.")
    return rate


def _combine_pair(pair: str, trials: list[ScoredRates], base: float) -> dict[str, float]:
    try:
        return rank_weighted_log_mean(trials, base)
    except (InvalidTrialsError, InvalidRateError) as error:
        raise type(error)(f"{pair}: {error}") from error


def _list(groups: Iterable[str]) -> str:
    return ", ".join(groups) or "(none)"
