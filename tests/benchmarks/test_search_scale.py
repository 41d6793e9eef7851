"""The benchmark of the search's storage, in a small version: its counts are exact and its figures can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from postgres_server import installed

BENCHMARK = Path(__file__).with_name("search_scale.py")


def test_the_benchmark_counts_exactly_and_goes_on_where_it_was(tmp_path: Path) -> None:
    if installed() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the driver of the extra `postgres` is not installed")
    # The server's own user has to reach its data.
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/lr-dist-pg-XXXXXX"], text=True).strip())
    options = ["--workers", "2", "--trials", "30", "--finished", "100", "--queued", "20", "--turns", "2"]
    command = [sys.executable, str(BENCHMARK), *options, "--folder", str(folder), "--output", str(tmp_path / "a.json")]
    try:
        # The clock is looked at before each part: the first one is measured, then the time is up.
        first = subprocess.run([*command, "--minutes", "0.02"], capture_output=True, text=True, timeout=240)
        assert first.returncode == 75, first.stderr
        assert list(json.loads((folder / "measured.json").read_text())) == ["workers=2 trials=30"]
        assert not (tmp_path / "a.json").exists()
        subprocess.run(command, check=True, capture_output=True, timeout=240)
        figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)
    workers = figures["workers=2 trials=30"]
    assert (workers["trials"], workers["lost"], workers["doubled"]) == (30, 0, 0)
    assert 0 < workers["pruned"] < 30
    assert workers["trials_per_second"] == pytest.approx(30 / workers["seconds"], rel=0.01)
    assert 0.005 < workers["server_cpu_seconds_a_trial"] < workers["worker_cpu_seconds_a_trial"] < 5
    # Each worker has one for its trial and one for its heartbeat, at most.
    assert 2 <= workers["peak_connections"] <= 6
    waiting, finished = figures["queued=20"], figures["finished=100"]
    assert (waiting["trials"], finished["trials"]) == (20, 100)
    for part in (waiting, finished):
        parts = [part[f"{name}_seconds"] for name in ("release_dead", "fill", "claim", "suggest", "rest_of_trial")]
        assert all(seconds > 0 for seconds in parts)
        assert max(parts) <= part["turn_seconds"] < 10
    commands = figures["finished=100 commands"]
    assert 0.5 < commands["status_seconds"] < 60
    assert commands["csv_mb"] > 0.005
