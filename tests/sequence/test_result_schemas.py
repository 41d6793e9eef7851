"""Result files of earlier versions are still read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lr_dist.errors import InvalidResultError
from lr_dist.report.markdown import markdown_table
from lr_dist.report.page import render_report
from lr_dist.sequence.result import ComparisonResult

OLD = Path(__file__).parents[2] / "configs" / "evidence" / "glue-first-result.json"


def test_the_first_result_is_of_schema_1_and_gives_the_same_table():
    data = json.loads(OLD.read_text())
    assert data["schema_version"] == 1
    result = ComparisonResult.load(OLD)
    assert [arm["label"] for arm in result.arms] == [entry["label"] for entry in data["distributions"]]
    assert result.arms[2]["stages"][0]["rates"] == data["distributions"][2]["rates"]
    assert "method" not in result.config
    page = (OLD.parents[2] / "docs" / "first-result.md").read_text()
    for line in markdown_table(result).splitlines():
        if line.startswith("| `"):
            assert line in page
    assert "kenneweg2022" in render_report(result)


def test_what_it_becomes_is_read_back_the_same(tmp_path):
    result = ComparisonResult.load(OLD)
    result.save(tmp_path / "new.json")
    assert json.loads((tmp_path / "new.json").read_text())["schema_version"] == 2
    assert ComparisonResult.load(tmp_path / "new.json") == result


def test_a_method_for_the_whole_comparison_becomes_part_of_every_arm(tmp_path):
    data = json.loads(OLD.read_text())
    data["config"]["method"] = "l2-sp:alpha=0.01"
    (tmp_path / "result.json").write_text(json.dumps(data))
    result = ComparisonResult.load(tmp_path / "result.json")
    label = data["distributions"][0]["label"] + " + l2-sp:alpha=0.01"
    assert result.arms[0]["label"] == result.runs[0]["arm"] == result.summary[0]["arm"] == label
    assert result.arms[0]["methods"] == ["l2-sp:alpha=0.01"]
    assert result.config["arms"][0] == label


@pytest.mark.parametrize("gone", ["config", "distributions", "runs", "summary"])
def test_a_cut_file_of_schema_1_is_named(tmp_path, gone):
    data = json.loads(OLD.read_text())
    del data[gone]
    (tmp_path / "result.json").write_text(json.dumps(data))
    with pytest.raises(InvalidResultError, match="does not follow that schema"):
        ComparisonResult.load(tmp_path / "result.json")
