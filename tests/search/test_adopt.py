"""A study of another program is copied into one that lr-dist's commands read."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import optuna
import pytest
import tiny
import torch
from optuna.trial import TrialState, create_trial
from tiny_trainer import layerwise, rows

from lr_dist import LRDistribution
from lr_dist.cli import main
from lr_dist.errors import ConfigurationError, InvalidTrialsError, StudyMismatchError
from lr_dist.rate_plan import RatePlan
from lr_dist.search import Space, adopt
from lr_dist.search.page.findings import named
from lr_dist.search.trials.summary import StudySummary, distribution_of

SPACE = Space("shape", low=1e-6, high=1e-2)


def test_a_hyperparameter_search_of_transformers_gets_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    tried: list[LRDistribution] = []

    def model_init(trial: Any = None) -> torch.nn.Module:
        if trial is not None:
            tried.append(SPACE.suggest(trial))
            trainer.layerwise_lr = tried[-1]
        return tiny.bert()

    trainer, _ = layerwise(
        tmp_path / "out",
        "flat:lr=1e-4",
        model_init=model_init,
        eval_dataset=rows(4, seed=1),
        max_steps=2,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
    )

    def others(trial: optuna.Trial) -> dict[str, Any]:
        return {"per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [2, 4])}

    best = trainer.hyperparameter_search(
        others, backend="optuna", n_trials=3, direction="minimize", study_name="rates", storage=url
    )
    theirs = optuna.load_study(study_name="rates", storage=url)
    copy = adopt(theirs, SPACE, name="report", storage=url, num_layers=tiny.LAYERS, model="tiny")
    assert [distribution_of(trial) for trial in copy.trials] == tried
    assert [trial.value for trial in copy.trials] == [-trial.value for trial in theirs.trials]
    assert [trial.duration for trial in copy.trials] == [trial.duration for trial in theirs.trials]
    assert copy.best_trial.number == int(best.run_id)
    where = ["--storage", url]
    capsys.readouterr()
    assert main(["search", "status", "--study", "report", *where]) == 0
    assert "3 of 3 done" in capsys.readouterr().out
    assert main(["search", "report", "report", *where, "--output-file", str(tmp_path / "page.html")]) == 0
    page = html.unescape((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert str(named(RatePlan((tried[int(best.run_id)],)))) in page
    assert "minus the objective, which the program minimised" in page
    assert main(["search", "export", "--study", "report", *where, "--csv", str(tmp_path / "trials.csv")]) == 0
    assert main(["combine", "report", *where, "--output", str(tmp_path / "combined.yaml")]) == 0
    # The original is as it was, and the copy's name is taken now.
    assert [trial.user_attrs for trial in optuna.load_study(study_name="rates", storage=url).trials] == [{}] * 3
    with pytest.raises(StudyMismatchError, match="a study 'report' already"):
        adopt(theirs, SPACE, name="report", storage=url)


def test_trials_in_every_state_keep_it_and_those_that_run_are_left_out() -> None:
    study = optuna.create_study(direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            raise ValueError("before it asked for rates")
        SPACE.suggest(trial)
        trial.report(0.25, 3)
        if trial.number == 1:
            raise optuna.TrialPruned
        trial.set_constraint("memory", 0.5 if trial.number == 2 else -0.5)
        return float(trial.number)

    study.optimize(objective, n_trials=4, catch=ValueError)
    study.ask()
    copy = adopt(study, SPACE, name="copy")
    states = [TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE, TrialState.COMPLETE]
    assert [trial.state for trial in copy.trials] == states
    assert [trial.params for trial in copy.trials] == [trial.params for trial in study.trials[:4]]
    assert [trial.value for trial in copy.trials[2:]] == [2.0, 3.0]
    assert copy.trials[1].intermediate_values == {3: 0.25}
    assert copy.trials[2].constraints == {"memory": 0.5}
    summary = StudySummary.of(copy)
    assert (summary.slots, summary.complete, summary.pruned, summary.failed, summary.waiting) == (4, 2, 1, 1, 0)
    assert summary.best is not None
    assert summary.best.value == 3.0


def test_a_staged_space_keeps_the_later_stages_rates() -> None:
    space = Space("flat", staged=True)
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda trial: len(space.suggest_plan(trial).stages), n_trials=2)
    copy = adopt(study, space, name="copy")
    for trial in copy.trials:
        assert trial.user_attrs["plan"] == space.plan(trial.params).to_dict()


def test_what_cannot_be_adopted_is_refused() -> None:
    study = optuna.create_study(study_name="theirs")
    with pytest.raises(InvalidTrialsError, match="No trial of the study 'theirs' has finished"):
        adopt(study, SPACE, name="copy")
    distribution = optuna.distributions.FloatDistribution(1e-6, 1.0)
    study.add_trial(create_trial(params={"level": 1e-4}, distributions={"level": distribution}, value=1.0))
    with pytest.raises(InvalidTrialsError, match="Trial 0 of the study 'theirs' has the parameters 'level', and"):
        adopt(study, SPACE, name="copy")
    with pytest.raises(ConfigurationError, match="not a valid study name"):
        adopt(study, SPACE, name="reference/x")
    with pytest.raises(ConfigurationError, match="has 2 objectives"):
        adopt(optuna.create_study(directions=["maximize", "minimize"]), SPACE, name="copy")
