"""Choose the coefficients of an interpolation by scores of the earlier tasks and of the new one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, shown
from lr_dist.methods.interpolation import check_alpha

Alphas = Mapping[str, float]
GRID = tuple(i / 10 for i in range(11))
_STEPS = (0.3, 0.15)
# More coefficients than this are chosen at fewer depths, with straight lines between.
_MOST = 8


@dataclass(frozen=True)
class AlphaScore:
    """Scores of an interpolation.

    Attributes:
        old: mean score on the earlier tasks.
        new: score on the new task.
    """

    old: float
    new: float

    def goal(self, weight: float) -> float:
        """What is maximised: `weight * old + (1 - weight) * new`."""
        return weight * self.old + (1 - weight) * self.new


Scoring = Callable[[Alphas], AlphaScore]


@dataclass(frozen=True)
class AlphaChoice:
    """Coefficients that were chosen, and why.

    Attributes:
        alphas: group -> coefficient.
        single: the best one for all depths.
        curve: coefficient for all depths -> its scores on the examples that chose.
        layerwise: whether `alphas` differ by depth.
        checked: the scores on the examples that chose nothing: of the single coefficient, and of the layer-wise ones;
            None where the second or both were not tried.
        evaluations: how many interpolations were scored.
    """

    alphas: dict[str, float]
    single: float
    curve: dict[float, AlphaScore]
    layerwise: bool
    checked: tuple[AlphaScore | None, AlphaScore | None]
    evaluations: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "alphas": self.alphas,
            "single": self.single,
            "curve": [{"alpha": alpha, "old": score.old, "new": score.new} for alpha, score in self.curve.items()],
            "layerwise": self.layerwise,
            "checked": [None if score is None else {"old": score.old, "new": score.new} for score in self.checked],
            "evaluations": self.evaluations,
        }


def choose_alphas(
    score: Scoring,
    groups: Sequence[str],
    *,
    check: Scoring | None = None,
    weight: float = 0.5,
    evaluations: int = 36,
) -> AlphaChoice:
    """Choose one coefficient from a grid, then one a depth by coordinate search, kept only if it is better.

    Args:
        score: group -> coefficient, to the scores on the examples that choose.
        groups: in the order of depth.
        check: the same on other examples. Layer-wise coefficients, which are fitted to those that choose, are kept only
            if they are better here than the single one; without `check` they are not tried.
        weight: of the earlier tasks in what is maximised, from 0 to 1; 0.5 is the mean of old and new.
        evaluations: the most layer-wise interpolations that are scored; 0 chooses one coefficient for all depths.

    Raises:
        ConfigurationError: an invalid `evaluations`.
        InvalidAlphaError: a weight that is not from 0 to 1.
    """
    check_whole("evaluations", evaluations, 0, 100_000, error=ConfigurationError)
    weight = check_alpha("weight", weight)
    curve = {alpha: score(dict.fromkeys(groups, alpha)) for alpha in GRID}
    # Of equal ones the largest: nearest to what was learned.
    single = max(GRID, key=lambda alpha: (curve[alpha].goal(weight), alpha))
    flat = dict.fromkeys(groups, single)
    if check is None or evaluations == 0 or len(groups) < 2:
        return AlphaChoice(flat, single, curve, False, (check(flat) if check else None, None), len(curve))
    search = _CoordinateSearch(score, groups, weight, evaluations)
    alphas = search.climb(single, curve[single].goal(weight))
    if alphas == flat:
        return AlphaChoice(flat, single, curve, False, (check(flat), None), len(curve) + search.done)
    checked = check(flat), check(alphas)
    better = checked[1].goal(weight) > checked[0].goal(weight)
    return AlphaChoice(alphas if better else flat, single, curve, better, checked, len(curve) + search.done)


class _CoordinateSearch:
    """Moves one coefficient at a time, first by larger steps, as long as it helps."""

    def __init__(self, score: Scoring, groups: Sequence[str], weight: float, evaluations: int) -> None:
        self.done = 0
        self._score = score
        self._groups = groups
        self._weight = weight
        self._left = evaluations
        self._seen: dict[tuple[float, ...], float] = {}

    def climb(self, start: float, goal: float) -> dict[str, float]:
        """From one coefficient everywhere, whose goal is known, to the best that is found."""
        best = (start,) * min(len(self._groups), _MOST)
        self._seen[best] = goal
        for step in _STEPS:
            moved = True
            while moved and self._left:
                moved = False
                for at in range(len(best)):
                    for direction in (-step, step):
                        other = self._moved(best, at, direction)
                        if self._goal(other) > self._goal(best):
                            best, moved = other, True
                            break
        return self._alphas(best)

    def _moved(self, knots: tuple[float, ...], at: int, by: float) -> tuple[float, ...]:
        value = round(min(1.0, max(0.0, knots[at] + by)), 6)
        return (*knots[:at], value, *knots[at + 1 :])

    def _goal(self, knots: tuple[float, ...]) -> float:
        if knots not in self._seen:
            if not self._left:
                return -math.inf
            self._left -= 1
            self.done += 1
            self._seen[knots] = self._score(self._alphas(knots)).goal(self._weight)
        return self._seen[knots]

    def _alphas(self, knots: tuple[float, ...]) -> dict[str, float]:
        """The coefficient of each group: straight lines between the knots, which are evenly spaced over the groups."""
        last = len(self._groups) - 1
        alphas = {}
        for index, group in enumerate(self._groups):
            place = index * (len(knots) - 1) / last
            low = min(int(place), len(knots) - 2)
            share = place - low
            alphas[group] = round((1 - share) * knots[low] + share * knots[low + 1], 6)
        return alphas


def check_score(task: str, value: Any) -> float:
    """A task's score as a number.

    Raises:
        ConfigurationError: not a finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(
            f"The score of {task} on held-out examples is {shown(value)}, so no interpolation can be chosen by it. It "
            "must be a finite number, higher for better."
        )
    return number
