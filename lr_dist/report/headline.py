"""What a comparison shows, in a sentence: what the most forgetful arm loses, and which arm keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lr_dist.report.rows import not_learned
from lr_dist.report.standing import BETTER, Standings
from lr_dist.runs.numbers import number
from lr_dist.sequence.result import ComparisonResult

# Smaller differences of a score are not worth a sentence.
LEAST = 0.02


def headline(result: ComparisonResult, standing: Standings | None = None) -> str:
    """A sentence on the arm that forgets most and the one with the best average; empty if nothing is forgotten.

    If some arms clearly retain more than the flat rates at equal p_s, it is the best of these. Otherwise only means
    over the runs are compared; whether a difference is more than noise is what the verdict says. Arms that have not
    learned every task are left out.

    Args:
        result: the comparison.
        standing: of the arms against the flat rates.
    """
    arms = [summary for summary in result.summary if summary["runs"] and not not_learned(result, summary)]
    if len(result.tasks) < 2 or len(arms) < 2:
        return ""
    worst = max(arms, key=lambda arm: _mean(arm, "forgetting"))
    clear = [] if standing is None else [label for label, each in standing.of.items() if each.kind == BETTER]
    candidates = [arm for arm in arms if arm["arm"] in clear] or arms
    best = max(candidates, key=lambda arm: _mean(arm, "average_accuracy"))
    kept = _mean(best, "p_o") - _mean(worst, "p_o")
    if worst is best or _mean(worst, "forgetting") < LEAST or kept < LEAST:
        return ""
    last = result.tasks[-1]["name"]
    old = result.tasks[0]["name"] if len(result.tasks) == 2 else "the mean of the earlier tasks"
    before = _mean(worst, "p_o") + _mean(worst, "forgetting")
    gain = _mean(best, "p_s") - _mean(worst, "p_s")
    how = "as well" if abs(gain) < LEAST / 2 else "better" if gain > 0 else "less well"
    return (
        f"Learning {last} with {worst['arm']} takes {old} from {number(before)} to {number(_mean(worst, 'p_o'))}. "
        f"{best['arm']} keeps it at {number(_mean(best, 'p_o'))}, and learns {last} {how} "
        f"({number(_mean(best, 'p_s'))}, against {number(_mean(worst, 'p_s'))})."
    )


def _mean(summary: Mapping[str, Any], metric: str) -> float:
    return float(summary["metrics"][metric]["mean"])
