"""A search whose trials may lose no more than so much of the pre-training."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from tiny_folder import save_tiny_model
from tiny_search import PAIR, config_of, sqlite

from lr_dist.errors import ConfigurationError, StudyMismatchError
from lr_dist.retention.measure import retention_of
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.page.report import render_report
from lr_dist.search.trials.config import Goal
from lr_dist.search.trials.objective import Reference, value
from lr_dist.search.trials.references import run_references
from lr_dist.search.trials.session import identity, load_benches
from lr_dist.search.trials.study import open_study
from lr_dist.search.trials.summary import best_trial, feasible
from lr_dist.search.trials.trial import SequenceObjective
from lr_dist.tasks import load_task


def test_a_trial_that_loses_more_than_allowed_is_not_the_best(tmp_path) -> None:
    model = str(save_tiny_model(tmp_path / "model", mask=True))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(dict.fromkeys(load_task(PAIR[0]).train["text_a"])))
    asked = f"{text},texts=12,sizes=4,least=5,fit_texts=64,fit_epochs=1"
    config = config_of(model, retention=asked, limit=32)
    benches = load_benches(config)
    storage = open_storage(sqlite(tmp_path))
    study = open_study(storage, "study", config, identity(config, benches))
    measures = retention_of(config.retention, model, tmp_path / "retention")
    references = [Reference(tuple(bench.baseline)) for bench in benches]
    objective = SequenceObjective(config, benches, references, None, measures)
    drain(study, objective, [{"params": {"lr": lr}, "attrs": {}} for lr in (1e-7, 1e-3)])
    for trial in study.trials:
        lost = statistics.fmean(run["metrics"]["retention_lost"] for run in trial.user_attrs["runs"])
        assert trial.constraints == {"nats lost of sequence 0": pytest.approx(lost - config.most_lost)}
    slow, fast = study.trials
    # A rate of 1e-7 loses nothing that can be measured.
    assert abs(slow.constraints["nats lost of sequence 0"] + config.most_lost) < 1e-3
    assert slow.constraints != fast.constraints
    assert feasible(slow)
    assert feasible(best_trial(study, study.trials))
    # Another bound is another study.
    other = config_of(model, retention=config.retention, most_lost=0.5, limit=32)
    with pytest.raises(StudyMismatchError, match="retention"):
        open_study(storage, "study", other, identity(other, benches))


def test_a_bound_below_0_is_refused(tiny_model) -> None:
    with pytest.raises(ConfigurationError, match="most_lost must be a finite number of at least 0"):
        config_of(tiny_model, most_lost=-0.1)


def test_what_is_retained_of_the_pre_training_is_an_objective_of_a_search_on_one_task(tmp_path) -> None:
    task = PAIR[1]
    model = str(save_tiny_model(tmp_path / "model", mask=True))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(dict.fromkeys(load_task(PAIR[0]).train["text_a"])))
    asked = f"{text},texts=12,sizes=4,least=5,fit_texts=64,fit_epochs=1"
    config = config_of(model, sequences=((task,),), goal=Goal("retention"), retention=asked, limit=32, seeds=(0, 1))
    benches = load_benches(config)
    storage = open_storage(sqlite(tmp_path))
    study = open_study(storage, "study", config, identity(config, benches))
    references = run_references(storage, config, benches)
    assert references == [Reference(tuple(benches[0].baseline))]
    measures = retention_of(config.retention, model, tmp_path / "retention")
    objective = SequenceObjective(config, benches, references, None, measures)
    drain(study, objective, [{"params": {"lr": lr}, "attrs": {}} for lr in (1e-7, 1e-3)])
    slow, fast = study.trials
    for trial in study.trials:
        runs = trial.user_attrs["runs"]
        scores = statistics.fmean(run["final"][0] for run in runs)
        lost = statistics.fmean(run["metrics"]["retention_lost"] for run in runs)
        assert trial.values == pytest.approx([scores - benches[0].baseline[0], -lost])
        assert not trial.constraints
    assert abs(slow.values[1]) < 1e-3 < abs(fast.values[1])
    assert study.metric_names == config.goal.names
    assert best_trial(study, study.trials) is None
    page = render_report(study, storage="sqlite:///study.db")
    assert "minus the nats a token that are lost of the pre-training" in page
    assert "What is lost of the pre-training, against the score" in page
    # The bound of the constraint is no part of this study.
    other = config_of(model, sequences=((task,),), goal=Goal("retention"), retention=asked, limit=32, seeds=(0, 1))
    open_study(storage, "study", replace(other, most_lost=0.5), identity(replace(other, most_lost=0.5), benches))


def test_scores_of_several_tasks_are_rescaled_as_in_relative() -> None:
    reference = Reference((0.5, 0.6), alone=(0.9, 0.8))
    score, kept = value(Goal("retention"), reference, [0.7, 0.8], lost=0.25)
    assert (score, kept) == (pytest.approx(0.5 + 1.0), -0.25)
    assert score == value(Goal("relative"), reference, [0.7, 0.8])[0]


def test_the_objective_needs_a_text_and_has_no_best_trial(tiny_model) -> None:
    with pytest.raises(ConfigurationError, match="add --retention FILE"):
        config_of(tiny_model, goal=Goal("retention"))
    with pytest.raises(ConfigurationError, match="leave out --confirm, or --objective retention"):
        config_of(tiny_model, goal=Goal("retention"), retention="text.txt", confirm=1)
