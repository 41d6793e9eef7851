"""The sentence at the top of a comparison: what is lost, and what keeps it, from numbers that are known."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from lr_dist.report.headline import headline
from lr_dist.report.page import render_report
from lr_dist.report.standing import BETTER, Standing, Standings
from lr_dist.report.terminal import print_comparison
from lr_dist.sequence.result import ComparisonResult


def summary(arm: str, learned: float, p_o: float, p_s: float, runs: int = 1) -> dict[str, Any]:
    metrics = {"p_o": p_o, "p_s": p_s, "forgetting": learned - p_o, "average_accuracy": (p_o + p_s) / 2}
    matrix = [[0.5, 0.5], [learned, 0.5], [p_o, p_s]]
    return {
        "arm": arm,
        "runs": runs,
        "metrics": {name: {"mean": value, "sd": 0.0, "n": 1} for name, value in metrics.items()},
        "matrix": {"mean": matrix},
    }


@pytest.fixture(scope="module")
def real(tiny_comparison) -> ComparisonResult:
    result: ComparisonResult = tiny_comparison[0]
    return result


def said(real: ComparisonResult, *arms: dict[str, Any]) -> str:
    return headline(replace(real, summary=list(arms)))


def test_the_most_forgetful_arm_and_the_best_average_are_named_with_their_scores(real) -> None:
    first, last = (task["name"] for task in real.tasks)
    text = said(
        real, summary("fast", 0.99, 0.55, 0.80), summary("slow", 0.99, 0.98, 0.70), summary("kept", 0.99, 0.95, 0.84)
    )
    assert text == (
        f"Learning {last} with fast takes {first} from .990 to .550. kept keeps it at .950, and learns {last} better "
        "(.840, against .800)."
    )
    assert "learns" in said(real, summary("a", 0.9, 0.7, 0.8), summary("b", 0.9, 0.88, 0.795))
    assert "as well (.795" in said(real, summary("a", 0.9, 0.7, 0.8), summary("b", 0.9, 0.88, 0.795))
    assert "less well (.700" in said(real, summary("a", 0.9, 0.6, 0.8), summary("b", 0.9, 0.89, 0.70))


def test_an_arm_that_is_clearly_better_at_equal_p_s_comes_before_a_better_average(real) -> None:
    arms = [summary("fast", 0.99, 0.5, 0.8), summary("slow", 0.99, 0.98, 0.78), summary("kept", 0.99, 0.93, 0.8)]
    result = replace(real, summary=arms)
    standing = Standings(line=None, level=0.95, of={"kept": Standing("kept", BETTER)})
    assert "slow keeps it at .980" in headline(result)
    assert "kept keeps it at .930" in headline(result, standing)


@pytest.mark.parametrize(
    "arms",
    [
        [summary("alone", 0.99, 0.55, 0.8)],
        [summary("a", 0.9, 0.89, 0.8), summary("b", 0.9, 0.9, 0.8)],  # nothing is forgotten
        [summary("a", 0.9, 0.6, 0.9), summary("b", 0.9, 0.6, 0.8)],  # nothing is kept
        [summary("a", 0.9, 0.6, 0.8), summary("nothing learned", 0.5, 0.5, 0.95)],
        [summary("a", 0.9, 0.6, 0.8), summary("diverged", 0.9, 0.9, 0.9, runs=0)],
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_say(real, arms) -> None:
    assert said(real, *arms) == ""


def test_page_and_terminal_begin_with_it(real, monkeypatch) -> None:
    for place in ("page", "terminal"):
        monkeypatch.setattr(f"lr_dist.report.{place}.headline", lambda result, standing: "It forgets & keeps.")
    page = render_report(real)
    assert page.index("It forgets &amp; keeps.") < page.index("What each arm learned")
    printed = StringIO()
    print_comparison(real, Console(file=printed, width=120))
    assert "It forgets & keeps." in printed.getvalue()
