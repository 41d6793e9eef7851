"""The throughput benchmark at its smallest: it runs, adds up, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("search_throughput.py")


@pytest.mark.minilm
@pytest.mark.timeout(300)
def test_it_measures_both_kinds_of_trial_and_the_workers(minilm_path: Path, tmp_path: Path) -> None:
    sizes = ["--limit", "32", "--dev-size", "32", "--epochs", "1", "--seeds", "1", "--rounds", "1"]
    command = [sys.executable, str(SCRIPT), *sizes, "--state", str(tmp_path / "state.jsonl")]
    # Generated tasks stand in for GLUE.
    environment = {**os.environ, "LR_DIST_DATA": str(tmp_path / "nothing")}
    first = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found["generated_stand_in"] is True
    plain, ours = found["trial"]["plain"], found["trial"]["ours"]
    assert found["trial"]["times_as_fast"] == pytest.approx(plain["median_seconds"] / ours["median_seconds"], rel=0.3)
    assert all(0 <= kind[score]["mean"] <= 1 for kind in (plain, ours) for score in ("p_o", "p_s"))
    hours = found["workers"]["trials_an_hour"]
    assert set(hours) == {"1 x 1 thread(s)", "2 x 1 thread(s)", "1 x 2 thread(s)"}
    assert 0 < found["rate"]["share_of_matrix_rate"] < 1
    # What is done is not run again: the same figures, at once.
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert json.loads(again.stdout)["trial"] == found["trial"]
    assert again.stderr.count(" s\n") == 0
