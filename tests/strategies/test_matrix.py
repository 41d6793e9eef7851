"""The command that makes the table, on a small part of it, and the page that shows what it made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from strategies import matrix

ROOT = Path(__file__).parents[2]
FILE = ROOT / "configs" / "evidence" / "strategies.json"


SMALL = ["--strategies", "single", "ddp", "--schedules", "StepLR"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        # Someone may edit the code while the tests run.
        patch.setattr(matrix, "_code", lambda: "this code")
        assert matrix.main(["--output", str(folder), *SMALL]) == 0
        yield folder


def test_the_command_runs_every_check_of_a_cell(made: Path) -> None:
    cells = json.loads((made / "strategies.json").read_text())["cells"]
    assert cells["ddp"]["StepLR"] == {"rates": [], "weights": [], "resume": [], "window": [], "refusal": []}
    assert list(cells["single"]["StepLR"]) == ["rates", "resume", "window", "refusal"]
    assert "| StepLR | 4 of 4 | 5 of 5 |" in (made / "strategies.md").read_text()


def test_the_command_goes_on_where_it_was_stopped(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = made / "strategies.json"
    result = json.loads(file.read_text())
    del result["cells"]["single"]["StepLR"]["refusal"]
    file.write_text(json.dumps(result))
    assert matrix.main(["--output", str(made), *SMALL]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("[1/2] single, StepLR: rates ok")
    assert "done before" not in first
    assert "done before" in second
    assert json.loads(file.read_text())["cells"]["single"]["StepLR"]["refusal"] == []


def test_what_other_code_has_made_is_not_continued(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strategies.json").write_text((made / "strategies.json").read_text())
    monkeypatch.setattr(matrix, "_code", lambda: "other code")
    monkeypatch.setattr(matrix, "CHECKS", {"rates": matrix.CHECKS["rates"]})
    small = ["--output", str(tmp_path), "--strategies", "single", "--schedules", "none"]
    assert matrix.main(small) == 0
    assert "starting over" in capsys.readouterr().out
    assert json.loads((tmp_path / "strategies.json").read_text())["cells"] == {"single": {"none": {"rates": []}}}


def test_what_fails_is_counted_and_named() -> None:
    environment = {"python": "3", "machine": "m", "packages": {"torch": "2"}}
    cells = {
        "single": {"StepLR": {"rates": []}, "OneCycleLR": {"rates": []}},
        "ddp": {"StepLR": {"rates": [], "resume": ["process 1: weights: other numbers"]}},
    }
    text = matrix.render({"environment": environment, "cells": cells}).replace("\N{EN DASH}", "-")
    assert "| DDP | 1 of 1 | - | 0 of 1 | - | - |" in text
    assert "| StepLR | 1 of 1 | 1 of 2, not resume |" in text
    assert "| OneCycleLR | 1 of 1 | - |" in text
    assert "3 of 4 checks pass" in text


def test_the_page_shows_what_the_committed_file_says() -> None:
    result = json.loads(FILE.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert matrix.render(result) in page
    assert set(result["cells"]) == set(matrix.TITLES)
    assert all(set(schedules) == set(matrix.SCHEDULES) for schedules in result["cells"].values())
