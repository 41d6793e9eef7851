"""The chain from searches to held-out pairs at its smallest: the files that are kept hold what was run."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from lr_dist.presets import read_preset
from lr_dist.sequence.result import ComparisonResult

SCRIPT = Path(__file__).with_name("search_evidence.py")
SEARCHED, HELD_OUT = "demo-sentiment>demo-entailment", "demo-entailment>demo-sentiment"


@pytest.mark.timeout(500)
def test_what_is_found_is_measured_on_the_pairs_that_were_held_out(tiny_model: str, tmp_path: Path) -> None:
    sizes = ["--knots", "6", "--flat", "4", "--seeds", "2", "--limit", "48", "--epochs", "1", "--workers", "1"]
    folders = ["--folder", str(tmp_path / "runs"), "--files", str(tmp_path / "files")]
    command = [sys.executable, str(SCRIPT), "--pairs", SEARCHED, "--held-out", HELD_OUT, "--model", tiny_model]
    run = subprocess.run([*command, *sizes, *folders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    files = tmp_path / "files"
    with (files / "demo-sentiment-demo-entailment-knots.csv").open(newline="") as lines:
        assert len(list(csv.DictReader(lines))) == 6
    result = ComparisonResult.load(files / "demo-entailment-demo-sentiment.json")
    flat = read_preset(files / "combined-flat.yaml").distribution.rates(3)["head"]
    labels = [entry["label"] for entry in result.arms]
    assert labels == ["combined-knots", f"flat:lr={flat:.3g}", "flat:lr=2e-5"]
    found = read_preset(files / "combined-knots.yaml").distribution
    assert result.arms[0]["fingerprint"] == found.fingerprint
    assert len(result.runs) == result.planned_runs == 6
    assert result.config["evaluate_on"] == "validation"
    table = (files / "differences.md").read_text(encoding="utf-8")
    assert f"{HELD_OUT} (2 seeds) | `combined-knots`" in table
