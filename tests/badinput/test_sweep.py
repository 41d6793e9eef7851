"""The sweep of generated bad inputs, short: no bare traceback, nothing unanswered, nothing leaked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import bad_inputs
import pytest
from bad_inputs import RIGHT
from kinds import KINDS, Case, Sources, drawn

CASES = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


def test_every_bad_input_gets_an_answer_with_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    outcomes = bad_inputs.sweep(CASES, 0, folder, 1, 0)
    print(bad_inputs.table(outcomes))
    assert len(outcomes) == CASES
    assert {outcome.kind for outcome in outcomes} == set(KINDS)
    assert [outcome for outcome in outcomes if outcome.outcome not in RIGHT] == []


def test_a_sweep_goes_on_where_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = folder / "cases-9.jsonl"
    log.write_text(
        json.dumps({"number": 0, "kind": "option", "outcome": "named", "said": "before", "seconds": 1.0})
        + '\n{"number": 1, "ki'
    )
    outcomes = bad_inputs.sweep(2, 9, folder, 1, 0)
    assert [outcome.number for outcome in outcomes] == [0, 1]
    assert outcomes[0].said == "before"
    # The line that a kill had cut does not spoil the next one.
    assert json.loads(log.read_text().splitlines()[-1])["number"] == 1


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (lambda arguments: 1, "unknown"),
        (lambda arguments: [][0], "traceback"),
        (lambda arguments: print("password is hunter2") or 2, "leak"),
        (lambda arguments: print("\x1b[2J") or 0, "leak"),
        (lambda arguments: 2, "named"),
    ],
)
def test_what_is_wrong_is_counted_as_wrong(
    work: Any, outcome: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_dist.cli.main", work)
    monkeypatch.setattr(bad_inputs, "drawn", lambda *_: ("option", Case(["presets", "list"])))
    assert bad_inputs.run_case(0, 0, Sources(folder, folder, ()), folder).outcome == outcome


def test_cases_are_the_same_each_time_and_leave_the_environment_as_it_was(folder: Path, tmp_path: Path) -> None:
    before = dict(os.environ)
    sources = bad_inputs.prepare(folder)
    for number in range(30):
        drawn_twice = []
        for turn in ("a", "b"):
            place = tmp_path / turn / str(number)
            place.mkdir(parents=True)
            kind, case = drawn(3, number, place, sources)
            drawn_twice.append((kind, str(case).replace(str(place), "")))
        assert drawn_twice[0] == drawn_twice[1]
    assert dict(os.environ) == before
