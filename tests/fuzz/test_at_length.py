"""The command that runs the properties at length, on two small properties of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROPERTIES = """
from harness import cases
from hypothesis import given, strategies as st

@cases(5)
@given(st.integers(0, 10**9))
def test_that_holds(number):
    assert number >= 0

@cases(5)
@given(st.integers(0, 10**9))
def test_that_does_not_hold(number):
    assert number < 1234
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "properties"
    path.mkdir()
    (path / "test_numbers.py").write_text(PROPERTIES)
    return path


def command(folder: Path, output: Path, *options: str) -> list[str]:
    script = Path(__file__).with_name("at_length.py")
    return [sys.executable, str(script), "--folder", str(folder), "--output", str(output), "--turn", "50", *options]


def test_a_run_counts_goes_on_where_it_ended_and_writes_the_shrunk_failure_down(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    first = subprocess.run(command(folder, output, "--cases", "120"), capture_output=True, text=True)
    state = json.loads((output / "state.json").read_text())
    assert first.returncode == 1, first.stdout + first.stderr
    assert state["failed"] == ["numbers.test_that_does_not_hold"]
    failure = (output / "failure-numbers.test_that_does_not_hold.txt").read_text()
    assert "number=1234," in failure  # the smallest that fails
    assert "reproduce_failure" in failure
    assert sum(state["cases"].values()) >= 120

    # What failed stays out while its file is there, and the counts go on.
    second = subprocess.run(command(folder, output, "--cases", "300"), capture_output=True, text=True)
    continued = json.loads((output / "state.json").read_text())
    assert second.returncode == 1
    assert continued["turns"]["numbers.test_that_does_not_hold"] == 1
    assert continued["cases"]["numbers.test_that_holds"] >= state["cases"]["numbers.test_that_holds"] + 150
    other_seed = subprocess.run(command(folder, output, "--seed", "7"), capture_output=True, text=True)
    assert other_seed.returncode == 1
    assert "--seed 0" in other_seed.stderr


def test_an_interrupted_run_leaves_a_state_that_can_be_continued(folder: Path, tmp_path: Path) -> None:
    (folder / "test_numbers.py").write_text(
        PROPERTIES.partition("@cases(5)\n@given(st.integers(0, 10**9))\ndef test_that_does")[0]
    )
    output = tmp_path / "run"
    run = subprocess.Popen(command(folder, output), stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if (output / "state.json").exists():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 0
    assert "interrupted; the same command continues" in said
    assert json.loads((output / "state.json").read_text())["cases"]["numbers.test_that_holds"] >= 50
    assert not (output / "hang.txt").exists()
