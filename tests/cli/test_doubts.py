"""Doubtful rates in the commands: one line each, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from comparison import TASKS

from lr_dist.cli import main

TOO_LOW = "decay:lr=4e-4,factor=0.7,relative=true"


def ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("lr-dist ")]


def test_compare_tells_once_for_all_runs(tiny_model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--model", tiny_model, "--tasks", *TASKS, "--limit", "64", "--epochs", "1", "--seeds", "0"]
    assert main(["compare", *options, "--distributions", TOO_LOW, "--output", str(tmp_path / "out")]) == 0
    printed = capfd.readouterr()
    (line,) = ours(printed.err)
    assert line.startswith("lr-dist compare: RateRangeWarning: ")
    assert "4e-4 times 1e-5" in line
    assert "RateRangeWarning" not in printed.out


def test_compare_refuses_a_distribution_that_trains_nothing(
    tiny_model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", tiny_model, "--tasks", *TASKS, "--limit", "64"]
    assert main(["compare", *options, "--distributions", "flat:lr=0", "--output", str(tmp_path / "out")]) == 2
    assert "NothingToTrainError: The distribution flat:lr=0" in capfd.readouterr().err


def test_layers_tells_of_rates_and_of_multiples(tiny_model: str, capfd: pytest.CaptureFixture[str]) -> None:
    for text, says in (("flat:lr=2", "only optimizers such as SGD"), (TOO_LOW, "largest multiple")):
        assert main(["layers", "--model", tiny_model, "--distribution", text]) == 0
        (line,) = ours(capfd.readouterr().err)
        assert line.startswith("lr-dist layers: RateRangeWarning: ")
        assert says in line
    assert main(["layers", "--model", tiny_model, "--distribution", "kenneweg2022"]) == 0
    assert ours(capfd.readouterr().err) == []


def test_presets_show_tells_of_a_presets_rates_on_so_many_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    preset = {
        "schema_version": 1,
        "name": "steep",
        "purpose": "Falls fast.",
        "distribution": {"family": "decay", "lr": 4e-4, "factor": 0.7},
        "provenance": {
            "source": "a test",
            "model": "bert-base-uncased",
            "tasks": ["sst2>qqp"],
            "trials": 1,
            "seeds": 1,
            "version": "1",
            "date": "2026-11-22",
            "evidence": ["none"],
        },
    }
    (tmp_path / "steep.yaml").write_text(yaml.safe_dump(preset))
    monkeypatch.setenv("LR_DIST_PRESETS", str(tmp_path))
    assert main(["presets", "show", "steep", "--layers", "12"]) == 0
    assert ours(capfd.readouterr().err) == []
    assert main(["presets", "show", "steep", "--layers", "24"]) == 0
    (line,) = ours(capfd.readouterr().err)
    assert line.startswith("lr-dist presets: StuckLayersWarning: ")
