"""A search on a single task: its value is the score above the majority class, and it needs no reference."""

from __future__ import annotations

import pytest
from tiny_search import config_of, sqlite

from lr_dist.cli.search import overview
from lr_dist.search.combining.sources import from_csv, from_study
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.page.export import write_csv
from lr_dist.search.page.report import render_report
from lr_dist.search.trials.config import Goal
from lr_dist.search.trials.objective import Reference, value
from lr_dist.search.trials.references import run_references
from lr_dist.search.trials.session import identity, load_benches
from lr_dist.search.trials.study import open_study
from lr_dist.search.trials.summary import StudySummary
from lr_dist.search.trials.trial import SequenceObjective

TASK = ("demo-sentiment",)


@pytest.fixture(scope="module")
def study(tiny_model, tmp_path_factory):
    config = config_of(tiny_model, sequences=(TASK,), goal=Goal(), seeds=(0, 1))
    storage = open_storage(sqlite(tmp_path_factory.mktemp("single")))
    benches = load_benches(config)
    study = open_study(storage, "study", config, identity(config, benches))
    references = run_references(storage, config, benches)
    assert references == [Reference(tuple(benches[0].baseline))]
    # Queued trials are not pruned.
    plan = [{"params": {"lr": lr}, "attrs": {"label": f"flat {lr:g}"}} for lr in (1e-3, 1e-4)]
    drain(study, SequenceObjective(config, benches, references), plan)
    return study


def test_the_value_is_the_score_above_the_majority_class(study):
    for trial in study.trials:
        (scores,) = trial.user_attrs["sequences"]
        assert trial.value == pytest.approx(scores["p_s"] - scores["baseline"][0])
        assert scores["p_o"] is None
        assert scores["p_o_sd"] is None
        assert scores["p_s_sd"] is not None
    assert value(Goal("sum"), Reference((0.5,)), [0.8]) == (0.8,)


def test_the_study_is_shown_and_exported(study, tmp_path):
    page = render_report(study, storage="sqlite:///study.db")
    assert "Retention and learning" not in page
    assert "the score minus that of the majority class" in page
    assert overview(StudySummary.of(study)) is not None
    assert write_csv(study, tmp_path / "trials.csv") == 2
    (source,) = from_csv(tmp_path / "trials.csv")
    assert source.name == from_study(study).name == TASK[0]
    assert sorted(t.score for t in source.trials) == pytest.approx(sorted(t.value for t in study.trials))


def test_several_single_tasks_are_brought_to_one_scale(tiny_model, tmp_path):
    goal = Goal(reference_rates=(1e-3,))
    config = config_of(tiny_model, sequences=(TASK, ("demo-acceptability",)), goal=goal)
    references = run_references(open_storage(sqlite(tmp_path)), config, load_benches(config))
    assert all(reference.alone is not None for reference in references)
