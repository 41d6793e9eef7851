"""From many trials on several task pairs to one distribution (Kenneweg et al., arXiv 2404.01317, section 3).

Within a pair the better trials count more: with the trials ranked by score, best r = 0,

    log rate = sum_r base^-r log rate_r / sum_r base^-r,    base = 1.8 in the paper;

across pairs the geometric mean is taken, so no pair counts more because it has more trials. Pure Python: a trial
is its score and its rates by group, wherever it was run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from lr_dist.errors import InvalidRateError, InvalidTrialsError, ZeroRateError

PAPER_BASE = 1.8


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        score: what the search maximises, e.g. p_o + p_s.
        rates: learning rate of each group, > 0.
    """

    score: float
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Combination:
    """What `combine` found.

    Attributes:
        rates: learning rate of each group, for `LRDistribution.grouped` and the like.
        spread: how far the pairs disagree on each group: the geometric standard deviation, a factor >= 1 (1 where
            all agree; an 'about 3' means that pairs differ from the mean by a factor of 3 up or down). None for a
            single pair.
        by_pair: the rates of each pair alone.
        trials: how many trials of each pair went in.
    """

    rates: dict[str, float]
    spread: dict[str, float] | None
    by_pair: dict[str, dict[str, float]]
    trials: dict[str, int]


def combine(pairs: Mapping[str, Sequence[Trial]], base: float = PAPER_BASE) -> Combination:
    """Rank-weighted mean within each pair, geometric mean across the pairs.

    Raises:
        InvalidTrialsError: no pair, a pair without trials, scores that are no numbers, or differing groups.
        ZeroRateError: a trial froze a group; the logarithm of 0 has no mean.
        InvalidRateError: a rate or the base is no positive finite number.
    """
    by_pair = {pair: _named(pair, list(trials), base) for pair, trials in pairs.items()}
    rates = geometric_mean(list(by_pair.values()))
    spread = geometric_spread(list(by_pair.values())) if len(by_pair) > 1 else None
    return Combination(rates, spread, by_pair, {pair: len(trials) for pair, trials in pairs.items()})


def rank_weighted_log_mean(trials: Sequence[Trial], base: float = PAPER_BASE) -> dict[str, float]:
    """The rates of one pair: the r-th best trial weighs base^-r; trials of equal score stay in their given order.

    A `base` of 1 weighs all trials alike; a larger one leaves less weight to the later ranks.
    """
    if not _is_number(base) or not 1 <= base < math.inf:
        raise InvalidRateError(f"base={base!r} must be a finite number from 1; the paper's is {PAPER_BASE}.")
    for i, trial in enumerate(trials):
        if not _is_number(trial.score) or not math.isfinite(trial.score):
            raise InvalidTrialsError(f"trial {i} has the score {trial.score!r}; leave out trials without a score.")
    # sorted is stable, also with reverse=True.
    ranked = sorted(trials, key=lambda trial: trial.score, reverse=True)
    return _weighted([trial.rates for trial in ranked], [base**-rank for rank in range(len(ranked))])


def geometric_mean(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The geometric mean of each group's rate over the profiles."""
    return _weighted(profiles, [1.0] * len(profiles))


def geometric_spread(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The geometric standard deviation of each group's rate over at least two profiles: exp(stdev(log rate))."""
    if len(profiles) < 2:
        raise InvalidTrialsError(f"a spread needs at least 2 profiles; got {len(profiles)}.")
    return {group: math.exp(stdev(logs)) for group, logs in _logs(profiles).items()}


def _weighted(profiles: Sequence[Mapping[str, float]], weights: Sequence[float]) -> dict[str, float]:
    total = math.fsum(weights)
    return {
        group: math.exp(math.fsum(weight * log for weight, log in zip(weights, logs, strict=True)) / total)
        for group, logs in _logs(profiles).items()
    }


def _logs(profiles: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Group -> the logarithm of its rate in each profile."""
    if not profiles:
        raise InvalidTrialsError("there is nothing to combine; give at least one trial of each pair.")
    groups = list(profiles[0])
    for i, rates in enumerate(profiles):
        if set(rates) != set(groups) or not groups:
            raise InvalidTrialsError(f"entry {i} has the groups {_list(rates)}, where the first has {_list(groups)}.")
    return {group: [_log(group, rates[group]) for rates in profiles] for group in groups}


def _log(group: str, rate: Any) -> float:
    if not _is_number(rate) or not 0 <= rate < math.inf:
        raise InvalidRateError(f"{group}={rate!r} is no learning rate: it must be finite and greater than 0.")
    if rate == 0:
        raise ZeroRateError(f"{group}=0 freezes a group, and 0 has no logarithm; leave that trial out.")
    return math.log(rate)


def _named(pair: str, trials: list[Trial], base: float) -> dict[str, float]:
    try:
        return rank_weighted_log_mean(trials, base)
    except (InvalidTrialsError, InvalidRateError) as error:
        raise type(error)(f"{pair}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _list(groups: Iterable[str]) -> str:
    return ", ".join(groups) or "(none)"
