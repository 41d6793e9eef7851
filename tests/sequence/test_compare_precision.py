"""A comparison with `auto`: what was chosen is recorded and said, one precision holds, other machines are named."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparison import FLAT, TASKS, Listener, config_of

from lr_dist.cli import main
from lr_dist.errors import MixedHardwareWarning
from lr_dist.report.page import render_report
from lr_dist.runs import precision
from lr_dist.runs.precision import choose_precision, measure
from lr_dist.sequence.compare import compare
from lr_dist.sequence.result import ComparisonResult

SMALL: dict[str, Any] = {"distributions": (FLAT,), "seeds": (0,), "epochs": 1, "limit": 32}


def other(chosen: str) -> str:
    return "32-true" if chosen == "bf16-mixed" else "bf16-mixed"


def test_what_was_asked_chosen_and_why_is_in_the_result_and_in_every_run(tiny_model: str, tmp_path: Path) -> None:
    listener = Listener()
    result = compare(config_of(tiny_model, precision="auto", **SMALL), tmp_path, listener=listener)
    choice = choose_precision("auto")
    assert listener.notes == [choice.line]
    read = ComparisonResult.load(tmp_path / "result.json")
    for environment in (result.environment, read.environment, read.runs[0]["environment"]):
        assert environment["precision"] == choice.to_dict()
        assert environment["fused_adamw"] is True
        assert environment["packed"] is True
        assert environment["threads"] >= 1
    assert choice.to_dict()["asked"] == "auto"
    assert read.config["precision"] == choice.chosen
    page = render_report(read)
    assert choice.chosen in page
    assert choice.reason in page
    # The same run as one that names the precision: nothing is run again, and nothing is said.
    again = Listener()
    compare(config_of(tiny_model, precision=choice.chosen, **SMALL), tmp_path, listener=again)
    assert (again.ran, again.notes) == ([], [])


def test_a_comparison_goes_on_in_the_precision_that_it_was_begun_in(tiny_model: str, tmp_path: Path) -> None:
    first = other(choose_precision("auto").chosen)
    compare(config_of(tiny_model, precision=first, **SMALL), tmp_path, listener=Listener())
    listener = Listener()
    with pytest.warns(MixedHardwareWarning, match=f"started in {first}; this machine would choose {other(first)}"):
        result = compare(
            config_of(tiny_model, precision="auto", **{**SMALL, "seeds": (0, 1)}), tmp_path, listener=listener
        )
    assert listener.ran == [(FLAT, 1)]
    assert listener.notes[0].startswith(f"precision: {first} (as the comparison was started; ")
    assert result.config["precision"] == first
    (chosen,) = {run["environment"]["precision"]["chosen"] for run in result.runs}
    assert chosen == first
    assert result.runs[1]["environment"]["precision"]["asked"] == "auto"


def test_a_machine_that_would_choose_otherwise_goes_on_as_the_first_one_chose(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(config_of(tiny_model, precision="auto", **SMALL), tmp_path, listener=Listener())
    here = measure()
    monkeypatch.setitem(precision._MEASURED, here.device, replace(here, fast=not here.fast))
    with pytest.warns(MixedHardwareWarning, match="cannot be compared"):
        result = compare(config_of(tiny_model, precision="auto", **SMALL), tmp_path, listener=Listener())
    assert result.config["precision"] == ("bf16-mixed" if here.fast else "32-true")


def test_a_comparison_that_is_continued_on_another_machine_says_so(tiny_model: str, tmp_path: Path) -> None:
    compare(config_of(tiny_model, **SMALL), tmp_path, listener=Listener())
    (file,) = (tmp_path / "runs").glob("*.json")
    run = json.loads(file.read_text(encoding="utf-8"))
    run["environment"]["processor"] = "Another Processor [avx2]"
    file.write_text(json.dumps(run), encoding="utf-8")
    with warnings.catch_warnings():
        # What is complete is only read.
        warnings.simplefilter("error", MixedHardwareWarning)
        compare(config_of(tiny_model, **SMALL), tmp_path, listener=Listener())
    with pytest.warns(MixedHardwareWarning, match=r"another machine: processor 'Another Processor \[avx2\]'"):
        compare(config_of(tiny_model, **{**SMALL, "seeds": (0, 1)}), tmp_path, listener=Listener())


def test_the_command_says_its_choice_once_and_records_it(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--limit", "32", "--epochs", "1", "--batch-size", "16", "--seeds", "0"]
    command = ["compare", "--model", tiny_model, "--tasks", *TASKS, "--distributions", FLAT, *sizes]
    assert main([*command, "--output", str(tmp_path)]) == 0
    choice = choose_precision("auto")
    assert capsys.readouterr().out.count(choice.line) == 1
    assert ComparisonResult.load(tmp_path / "result.json").environment["precision"] == choice.to_dict()
