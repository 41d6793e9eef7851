"""`--logger`: every finished run or trial becomes a run of the tracker, once."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from studies import config_of, study_of

from lr_dist.cli import main
from lr_dist.cli.loggers import Tracker
from lr_dist.cli.search import SearchView
from lr_dist.errors import MissingExtraError
from lr_dist.sequence.result import ComparisonResult


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def compared(tiny_model: str, output: Path, *options: str) -> ComparisonResult:
    tasks = ["--tasks", "demo-sentiment", "demo-entailment", "--limit", "64", "--epochs", "1", "--precision", "32-true"]
    rates = ["--distributions", "flat:lr=1e-3", "decay:lr=1e-3,factor=0.5", "--batch-size", "32"]
    assert main(["compare", "--model", tiny_model, *tasks, *rates, "--output", str(output), *options]) == 0
    return ComparisonResult.load(output / "result.json")


def test_each_run_of_a_comparison_is_logged_once_with_its_matrix(tiny_model: str, tmp_path: Path) -> None:
    result = compared(tiny_model, tmp_path, "--seeds", "0", "--logger", "csv")
    folders = sorted((tmp_path / "logs" / "lr-dist").iterdir())
    assert len(folders) == 2
    for run, folder in zip(sorted(result.runs, key=lambda run: run["arm"]), folders, strict=True):
        settings = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert (settings["arm"], settings["seed"], settings["epochs"]) == (run["arm"], 0, 1)
        assert settings["tasks"] == "demo-sentiment > demo-entailment"
        logged = rows_of(folder)
        assert [float(row["score/demo-sentiment"]) for row in logged] == [row[0] for row in run["matrix"]]
        assert float(logged[-1]["p_s"]) == run["metrics"]["p_s"]
    # Started again with one more seed, only the new runs are logged.
    before = {folder: (folder / "metrics.csv").stat().st_mtime_ns for folder in folders}
    compared(tiny_model, tmp_path, "--seeds", "0", "1", "--logger", "csv")
    assert len(list((tmp_path / "logs" / "lr-dist").iterdir())) == 4
    assert {folder: (folder / "metrics.csv").stat().st_mtime_ns for folder in folders} == before


def test_each_trial_that_ends_is_logged_once(tmp_path: Path) -> None:
    study = study_of(config_of("sum"), 3)
    with SearchView(Console(quiet=True), Tracker("csv", tmp_path), study) as view:
        view.track(study)
        assert not (tmp_path / "lr-dist").exists()  # these were there before
        study.add_trials(study_of(config_of("sum"), 5).trials[3:])
        view.track(study)
        view.track(study)
    folders = sorted((tmp_path / "lr-dist").iterdir())
    assert [folder.name for folder in folders] == ["a_study,_trial_3", "a_study,_trial_4"]
    for trial, folder in zip(study.trials[3:], folders, strict=True):
        assert yaml.safe_load((folder / "hparams.yaml").read_text()).items() >= trial.params.items()
        (row,) = rows_of(folder)
        (scores,) = trial.user_attrs["sequences"]
        assert float(row["sst2-qqp p_o"]) == pytest.approx(scores["p_o"])


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_tracker_that_is_missing_is_named_before_any_work(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("lr_dist.cli.loggers.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=f"pip install {kind}"):
        Tracker(kind, tmp_path)
