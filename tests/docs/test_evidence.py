"""The tables of docs/evidence.md say what the kept results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lr_dist.evidence.analysis import Estimate
from lr_dist.evidence.table import percent, with_interval
from lr_dist.runs.numbers import number

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "configs" / "evidence").glob("*/evidence.json"))


def table_row(text: str) -> list[str]:
    """The cells of the row of an arm."""
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith(f"| `{text}`")]
    assert len(rows) == 1, f"{len(rows)} rows of {text}"
    return [cell.strip() for cell in rows[0].split("|")[2:-1]]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_arm_of_a_kept_result_is_in_the_table_with_its_figures(path: Path) -> None:
    control, *others = json.loads(path.read_text())["findings"]
    assert table_row(control["text"])[:3] == [
        number(control["means"]["p_o"]),
        number(control["means"]["p_s"]),
        "control",
    ]
    for finding in others:
        p_o, p_s, p_o_more, p_s_more, *rest = table_row(finding["text"])
        assert (p_o, p_s) == (number(finding["means"]["p_o"]), number(finding["means"]["p_s"]))
        differences = {name: Estimate(**values) for name, values in finding["differences"].items()}
        assert (p_o_more, p_s_more) == (with_interval(differences["p_o"]), with_interval(differences["p_s"]))
        assert rest[0] == percent(Estimate(**finding["forgetting_gone"]))
        if len(rest) > 1 and finding["at_equal_p_s"] is not None:
            assert rest[1] == with_interval(Estimate(**finding["at_equal_p_s"]))


def test_the_readme_says_what_the_kept_result_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## What we found") : readme.index("## Development")]
    result = json.loads((ROOT / "configs" / "evidence" / "forgetting-v2" / "evidence.json").read_text())
    findings = {finding["name"]: finding for finding in result["findings"]}
    named = [
        "replay-ewc-interpolate",
        "ewc-interpolate",
        "llrd-replay-interpolate",
        "llrd-interpolate",
        "searched-interpolate",
        "llrd",
        "interpolate",
    ]
    rows = [line for line in section.splitlines() if " % [" in line]
    for name, row in zip(named, rows, strict=True):
        assert percent(Estimate(**findings[name]["forgetting_gone"])) in row
        assert with_interval(Estimate(**findings[name]["at_equal_p_s"])) in row
