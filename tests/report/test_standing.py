"""What the report says of arms against the flat rates, from a result with numbers that are known."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from lr_dist.report.figures import tradeoff_figure
from lr_dist.report.page import render_report
from lr_dist.report.rows import table_rows
from lr_dist.report.standing import paragraph, standings
from lr_dist.report.terminal import print_comparison
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.metrics import above_baseline, sequence_metrics
from lr_dist.sequence.result import ComparisonResult
from lr_dist.sequence.summary import summarise_runs

LOW, HIGH = "flat:lr=1e-4", "flat:lr=3e-4"
BETTER, NOISE, OUTSIDE, WORSE = (f"flat:lr=3e-4 + l2-sp:alpha={alpha}" for alpha in (0.5, 0.1, 9, 0.2))
# Arm -> p_s and p_o by seed. At p_s = .75 the flat rates have p_o = .80; seed 1 is .01 better at everything.
POINTS = {
    HIGH: [(0.80, 0.70), (0.81, 0.71)],
    LOW: [(0.70, 0.90), (0.71, 0.91)],
    BETTER: [(0.75, 0.83), (0.76, 0.842)],
    NOISE: [(0.75, 0.78), (0.76, 0.84)],
    WORSE: [(0.75, 0.76), (0.76, 0.772)],
    OUTSIDE: [(0.60, 0.95), (0.61, 0.95)],
}


@pytest.fixture(scope="module")
def result(tiny_comparison) -> ComparisonResult:
    real: ComparisonResult = tiny_comparison[0]
    baseline = [task["baseline"] for task in real.tasks]
    runs = []
    for label, points in POINTS.items():
        for seed, (p_s, p_o) in enumerate(points):
            matrix = [[0.5, 0.5], [0.95, 0.5], [p_o, p_s]]
            run = {
                "matrix": matrix,
                "metrics": sequence_metrics(matrix),
                "metrics_above_baseline": sequence_metrics(above_baseline(matrix, baseline)),
                "train_seconds": 12.0 + seed,
                "held_bytes": 3 * 2**20 if "l2-sp" in label else 0,
                "held_examples": 0,
            }
            runs.append({**real.runs[0], **run, "arm": label, "seed": seed})
    return replace(
        real,
        arms=[Arm.parse(label).to_dict(1e-5, 3) for label in POINTS],
        runs=runs,
        planned_runs=len(runs),
        summary=[summarise_runs(label, [run for run in runs if run["arm"] == label]) for label in POINTS],
    )


def test_each_arm_stands_where_its_numbers_put_it(result):
    standing = standings(result)
    assert standing.line is not None
    assert standing.line.labels == (LOW, HIGH)
    kinds = {label: each.kind for label, each in standing.of.items()}
    expected = {BETTER: "better", NOISE: "noise", WORSE: "worse", OUTSIDE: "outside", LOW: "the line", HIGH: "the line"}
    assert kinds == expected
    # .80 + .03 and .80 + .032 by seed, which is .01 better at p_s, too: .031 with a half width of 12.706 * .001.
    assert standing.of[BETTER].text == "+.031 ± .013"
    assert standing.of[OUTSIDE].text == "n/a"


def test_the_paragraph_says_what_won_what_is_noise_and_what_cannot_be_compared(result):
    text = paragraph(result, standings(result))
    won, lost, noise, outside, rough = re.split(r"(?<=\.) (?=Clearly|Not|With)", text)
    assert BETTER in won
    assert "+.031 ± .013" in won
    assert WORSE in lost
    assert NOISE in noise
    assert OUTSIDE in outside
    assert rough == "With 2 seeds the intervals are rough."
    alone = replace(result, arms=[entry for entry in result.arms if entry["label"] != LOW])
    assert "Add flat rates" in paragraph(alone, standings(alone))


def test_without_an_arm_that_is_clearly_better_none_is_named(result):
    labels = [LOW, HIGH, NOISE]
    fewer = replace(
        result,
        arms=[entry for entry in result.arms if entry["label"] in labels],
        summary=[entry for entry in result.summary if entry["arm"] in labels],
        runs=[run for run in result.runs if run["arm"] in labels],
    )
    assert "no arm clearly retains more" in paragraph(fewer, standings(fewer))


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_the_difference_and_if_wide_the_costs(result, width):
    console = Console(file=io.StringIO(), width=width)
    print_comparison(result, console)
    text = console.file.getvalue()
    assert "+.031" in text
    assert "n/a" in text
    assert ("12 s" in text) == ("3.0 MiB" in text) == (width == 120)
    assert max(map(len, text.splitlines())) <= width


def test_a_row_sorts_by_its_mean_and_what_is_unknown_has_no_number(result):
    rows = {row.label: row for row in table_rows(result, standings(result))}
    assert rows[BETTER].numbers["at_equal"] == pytest.approx(0.031)
    assert rows[BETTER].numbers["p_s"] == pytest.approx(0.755)
    assert "at_equal" not in rows[OUTSIDE].numbers
    assert (rows[BETTER].seconds, rows[BETTER].kept) == ("12 s", "3.0 MiB")


def test_the_figure_joins_families_names_each_point_and_has_no_colour_of_one_scheme(result):
    svg, legend = tradeoff_figure(result, standings(result))
    assert [entry.name for entry in legend] == ["flat:lr=…", "flat:lr=3e-4 + l2-sp:alpha=…"]
    assert [entry.is_line for entry in legend] == [True, False]
    for label in POINTS:
        assert f"<title>{label}: p_o" in svg
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "#1f77b4" not in svg.replace("var(--c0, #1f77b4)", "")


def test_the_page_can_be_sorted_and_is_dark_where_the_reader_wants_it(result):
    page = render_report(result)
    assert "prefers-color-scheme: dark" in page
    assert 'class="sortable"' in page
    assert "addEventListener" in page
    # The label of the arm, the costs and the verdict are there without the script.
    assert re.search(r'<p class="verdict">At the same p_s', page)
    assert 'class="better">+.031 ± .013' in page
    assert page.count("data-sort=") >= 9 * len(POINTS)
