"""A single task is a sequence, too: its score is p_s, and what needs an earlier task is absent, never 0."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from comparison import FLAT, FROZEN, Listener, config_of
from rich.console import Console

from lr_dist.errors import InvalidResultError
from lr_dist.report.differences import differences_markdown
from lr_dist.report.markdown import markdown_table
from lr_dist.report.page import render_report
from lr_dist.report.terminal import print_comparison
from lr_dist.sequence.compare import compare
from lr_dist.sequence.differences import differences
from lr_dist.sequence.result import ComparisonResult


@pytest.fixture(scope="module")
def single(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    listener = Listener()
    config = config_of(tiny_model, tasks=("demo-sentiment",), epochs=1)
    return compare(config, folder, listener=listener, command="test"), listener, folder / "result.json"


def test_a_single_task_is_compared_by_its_score(single):
    result, listener, path = single
    assert listener.steps == listener.announced[2] == 4 * 6
    for run in result.runs:
        assert [len(row) for row in run["matrix"]] == [1, 1]
        score = run["matrix"][1][0]
        absent = dict.fromkeys(("p_o", "forgetting", "backward_transfer", "forward_transfer"))
        assert run["metrics"] == {**absent, "p_s": score, "average_accuracy": score}
    assert ComparisonResult.load(path) == result
    assert json.loads(path.read_text())["summary"][0]["metrics"]["forgetting"] is None


def test_its_tables_and_page_show_the_score_alone(single):
    result, _, _ = single
    printed = StringIO()
    print_comparison(result, Console(file=printed, width=120))
    page = render_report(result)
    for text in (printed.getvalue(), markdown_table(result), page):
        assert "p_s" in text
        assert "p_o" not in text
        assert "orgetting" not in text
    assert "Retention and learning" not in page


def test_its_differences_have_no_p_o(single):
    result, _, _ = single
    rows = differences([result], FLAT)
    assert rows[0].metrics.keys() == {"p_s", "average_accuracy"}
    by_hand = [
        sum(run["metrics"]["p_s"] * (1 if run["arm"] == FROZEN else -1) for run in result.runs if run["seed"] == seed)
        for seed in (0, 1)
    ]
    assert rows[0].metrics["p_s"].mean == pytest.approx(sum(by_hand) / 2)
    (line,) = [each for each in differences_markdown(rows, FLAT, 0.95).splitlines() if FROZEN in each]
    assert line.count("n/a") == 2


@pytest.mark.parametrize("metric", ["p_s", "average_accuracy"])
def test_a_score_that_a_single_task_has_must_not_be_missing(single, tmp_path, metric):
    data = json.loads(single[2].read_text())
    data["runs"][0]["metrics"][metric] = None
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(InvalidResultError, match=f"metrics.{metric}"):
        ComparisonResult.load(tmp_path / "result.json")


def test_two_tasks_must_have_a_p_o(tiny_comparison, tmp_path):
    data = json.loads((tiny_comparison[2] / "result.json").read_text())
    data["summary"][0]["metrics"]["p_o"] = None
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(InvalidResultError, match=r"metrics\.p_o"):
        ComparisonResult.load(tmp_path / "result.json")
