"""The terminal's table and the page, from a real result."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from comparison import FLAT, FROZEN
from rich.console import Console

from lr_dist.errors import InvalidResultError
from lr_dist.report.differences import differences_markdown
from lr_dist.report.markdown import markdown_table
from lr_dist.report.page import render_report, write_report
from lr_dist.report.rows import table_rows
from lr_dist.report.terminal import print_comparison
from lr_dist.runs.numbers import number
from lr_dist.sequence.differences import differences
from lr_dist.sequence.result import ComparisonResult


@pytest.fixture(scope="module")
def result(tiny_comparison) -> ComparisonResult:
    return tiny_comparison[0]


def printed(result: ComparisonResult, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(result, console)
    return console.file.getvalue()


def test_the_table_shows_the_mean_and_spread_that_the_runs_have(result):
    p_o = [run["metrics"]["p_o"] for run in result.runs if run["arm"] == FLAT]
    mean, sd = sum(p_o) / 2, abs(p_o[0] - p_o[1]) / 2**0.5
    row = next(row for row in table_rows(result) if row.label == FLAT)
    assert row.cells["p_o"][0] == f"{number(mean)} ± {number(sd)}"
    assert row.cells["p_o"][0] in printed(result)
    assert row.runs == "2"


def test_the_majority_class_is_a_row_and_stands_beside_each_task(result):
    row = table_rows(result)[-1]
    assert row.label == "majority class"
    assert row.cells["p_o"] == (number(result.tasks[0]["baseline"]), ".000")
    assert row.cells["forgetting"] == (".000", ".000")
    text = printed(result, width=200)
    for task in result.tasks:
        assert re.search(rf"{task['name']}: accuracy on [\d,]+ validation examples.*majority class", text)


def test_a_task_that_was_not_learned_is_marked(result):
    low = [[0.5, 0.5], [0.9, 0.5], [0.9, result.tasks[1]["baseline"]]]
    summary = [{**s, "matrix": {"mean": low, "sd": low}} for s in result.summary]
    changed = replace(result, summary=summary)
    assert table_rows(changed)[0].not_learned == ("demo-entailment",)
    assert "demo-entailment not learned" in printed(changed)
    assert "demo-entailment not learned" in render_report(changed)


def test_the_markdown_table_has_a_line_for_each_distribution_and_the_majority_class(result):
    lines = markdown_table(result).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 2 + 1
    assert len({line.count("|") for line in table}) == 1
    p_o = next(row for row in table_rows(result) if row.label == FLAT).cells["p_o"]
    assert f"{p_o[0]} ({p_o[1]})" in next(line for line in table if FLAT in line and FROZEN not in line)


def test_a_bar_in_an_arm_is_no_column_of_a_markdown_table(result):
    plan = "flat:lr=1e-3 | decay:lr=4e-4,factor=0.7"
    arms = [{**entry, "label": plan if entry["label"] == FLAT else entry["label"]} for entry in result.arms]
    summary = [{**each, "arm": plan if each["arm"] == FLAT else each["arm"]} for each in result.summary]
    runs = [{**run, "arm": plan if run["arm"] == FLAT else run["arm"]} for run in result.runs]
    renamed = replace(result, arms=arms, summary=summary, runs=runs)
    texts = (markdown_table(renamed), differences_markdown(differences([renamed], FROZEN), FROZEN, 0.95))
    for table in ([line for line in text.splitlines() if line.startswith("|")] for text in texts):
        assert any(plan.replace("|", r"\|") in line for line in table)
        assert len({line.replace(r"\|", "").count("|") for line in table}) == 1


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.fetched.append(value)


def test_the_page_holds_every_figure_and_fetches_nothing(result, tmp_path):
    page = _Page()
    text = write_report(result, tmp_path / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    assert page.fetched == []
    # p_o against p_s, the distributions over depth, an accuracy matrix for each distribution
    assert page.count["svg"] == 2 + 2
    assert "lr-dist compare --test &lt;&amp;&gt;" in text  # texts are escaped
    assert FROZEN in text
    assert result.tasks[0]["fingerprint"][:16] in text


def test_equal_results_give_equal_pages(result):
    assert render_report(result) == render_report(result)


def test_a_page_can_be_made_before_the_first_run_is_done(result):
    empty = {"runs": 0, "diverged": 1, "metrics": {}, "metrics_above_baseline": {}, "matrix": {"mean": [], "sd": []}}
    unfinished = replace(result, runs=[], summary=[{**s, **empty} for s in result.summary])
    assert "not complete" in render_report(unfinished)
    assert "0 (1" in printed(unfinished)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not readable JSON"),
        ("[]", "not a result file"),
        ('{"kind": "compare", "schema_version": 99}', "schema_version 99"),
        ('{"kind": "compare", "schema_version": 1}', "does not follow that schema"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, content, says):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InvalidResultError, match=says):
        ComparisonResult.load(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, ".500"), (-0.25, "-.250"), (1.0, "1.000"), (-0.0001, ".000"), (0.0, ".000"), (12.5, "12.500")],
)
def test_numbers_are_printed_as_papers_do(value, text):
    assert number(value) == text
