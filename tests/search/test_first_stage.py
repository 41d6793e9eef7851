"""With `--first`, the first stage is the same in every trial and is learned once; later stages alone are searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from tiny_search import PAIR, config_of, sqlite

from lr_dist import LRDistribution
from lr_dist.cli import main
from lr_dist.errors import ConfigurationError
from lr_dist.rate_plan import RatePlan
from lr_dist.search.engine.storage import default_storage, open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.page.findings import Findings
from lr_dist.search.page.report import render_report
from lr_dist.search.space import Space
from lr_dist.search.trials.config import Goal
from lr_dist.search.trials.first_stages import first_stages
from lr_dist.search.trials.objective import Reference
from lr_dist.search.trials.references import run_references
from lr_dist.search.trials.session import identity, load_benches
from lr_dist.search.trials.study import open_study
from lr_dist.search.trials.summary import distribution_of, plan_of
from lr_dist.search.trials.trial import SequenceObjective, run_once
from lr_dist.sequence.arm import Arm

FIRST = LRDistribution.flat(2e-3)


def entry(lr: float, **attrs: Any) -> dict[str, Any]:
    return {"params": {"lr": lr}, "attrs": attrs}


def run(config: Any, folder: Path, store_folder: Path | None) -> optuna.Study:
    benches = load_benches(config)
    study = open_study(open_storage(sqlite(folder)), "study", config, identity(config, benches))
    references = [Reference(tuple(bench.baseline)) for bench in benches]
    store = first_stages(store_folder, config, benches, config.seeds)
    drain(study, SequenceObjective(config, benches, references, store), [entry(1e-3), entry(1e-4)])
    return study


def test_trials_go_on_from_one_first_stage_with_the_scores_of_trials_that_learn_it_themselves(tiny_model, tmp_path):
    config = config_of(tiny_model, first="flat:lr=2e-3", seeds=(0, 1), epochs=2)
    for name in ("shared", "alone"):
        (tmp_path / name).mkdir()
    shared = run(config, tmp_path / "shared", tmp_path)
    alone = run(config, tmp_path / "alone", None)
    # One file for each seed: the second stages are nobody else's.
    assert len(list((tmp_path / "stages").iterdir())) == 2
    taken = [["taken_over_seconds" in r for r in t.user_attrs["runs"]] for t in shared.trials]
    assert taken == [[False, False], [True, True]]
    for ours, theirs, rate in zip(shared.trials, alone.trials, (1e-3, 1e-4), strict=True):
        finals = [[r["final"] for r in t.user_attrs["runs"]] for t in (ours, theirs)]
        assert finals[0] == finals[1]
        assert ours.values == theirs.values
        assert plan_of(ours) == RatePlan((FIRST, LRDistribution.flat(rate)))
        assert distribution_of(ours) == LRDistribution.flat(rate)
        # Only the epochs of the second task are reported, so that Hyperband compares what is searched.
        assert list(ours.intermediate_values) == list(theirs.intermediate_values) == [1, 2]
    assert shared.pruner._max_resource == 2


def test_a_trial_is_a_run_of_its_plan(tiny_model, tmp_path):
    config = config_of(tiny_model, first="flat:lr=2e-3")
    (bench,) = load_benches(config)
    study = run(config, tmp_path, tmp_path)
    arm = Arm.parse("flat:lr=2e-3 | flat:lr=1e-3")
    assert run_once(bench, arm, 0)["final"] == study.trials[0].user_attrs["runs"][0]["final"]


def test_stages_are_not_kept_if_that_is_not_wanted(tiny_model, tmp_path):
    config = config_of(tiny_model, first="flat:lr=2e-3", keep_stages=False)
    assert first_stages(tmp_path, config, load_benches(config), (0,)) is None
    assert first_stages(tmp_path, config_of(tiny_model), load_benches(config), (0,)) is None


def test_the_flat_reference_of_a_sequence_has_the_given_first_stage(tiny_model, tmp_path):
    goal = Goal("constrained", reference_rates=(1e-3,))
    config = config_of(tiny_model, goal=goal, first="flat:lr=2e-3")
    benches = load_benches(config)
    (found,) = run_references(open_storage(sqlite(tmp_path)), config, benches)
    (plain,) = run_references(open_storage(sqlite(tmp_path)), config_of(tiny_model, goal=goal), benches)
    final = run_once(benches[0], Arm.parse("flat:lr=2e-3 | flat:lr=1e-3"), 0)["final"]
    assert found.flat_p_s == final[1]
    studies = optuna.get_all_study_names(open_storage(sqlite(tmp_path)))
    assert len(studies) == 2  # they are not taken for each other
    assert plain.flat_p_s is not None


def test_studies_without_it_keep_their_identity(tiny_model):
    config = config_of(tiny_model)
    assert "first" not in config.identity("w", [["a", "b"]])
    given = config_of(tiny_model, first="flat:lr=0.002").identity("w", [["a", "b"]])
    assert given["first"] == "flat:lr=2e-3"
    # Of one text and another for the same rates.
    assert given == config_of(tiny_model, first="flat:lr=2e-3").identity("w", [["a", "b"]])


def test_a_first_stage_of_two_stages_or_with_a_staged_space_is_refused(tiny_model):
    with pytest.raises(ConfigurationError, match="has 2 stages"):
        config_of(tiny_model, first="flat:lr=1e-3 | flat:lr=1e-4")
    with pytest.raises(ConfigurationError, match="Leave out --first"):
        config_of(tiny_model, first="flat:lr=1e-3", space=Space("flat", staged=True))


def test_the_report_names_the_plan_and_its_command_compares_plans(tiny_model, tmp_path):
    study = run(config_of(tiny_model, first="flat:lr=2e-3"), tmp_path, tmp_path)
    findings = Findings.of(study)
    assert findings.best_flat is not None
    page = render_report(study, storage=sqlite(tmp_path))
    best = distribution_of(findings.best)
    assert f"--arms &#39;flat:lr=2e-3 | {best}&#39;" in page
    assert f"LayerwiseLR(&#34;{best}&#34;)" in page


def test_a_staged_trial_runs_its_plan(tiny_model, tmp_path):
    config = config_of(tiny_model, space=Space("flat", staged=True))
    benches = load_benches(config)
    study = open_study(open_storage(sqlite(tmp_path)), "study", config, identity(config, benches))
    plan = [{"params": {"lr": 2e-3, "later": 0.5}, "attrs": {}}]
    drain(study, SequenceObjective(config, benches, [Reference(tuple(benches[0].baseline))]), plan)
    (trial,) = study.trials
    assert plan_of(trial) == RatePlan((LRDistribution.flat(2e-3), LRDistribution.flat(1e-3)))
    arm = Arm.parse("flat:lr=2e-3 | flat:lr=1e-3")
    assert run_once(benches[0], arm, 0)["final"] == trial.user_attrs["runs"][0]["final"]
    assert Findings.of(study).best_flat is None
    assert "flat:lr=2e-3 | flat:lr=1e-3" in render_report(study, storage=sqlite(tmp_path))


def test_the_command_searches_the_later_stage(tiny_model, tmp_path):
    arguments = ["search", "--model", tiny_model, "--tasks", *PAIR, "--first", "flat:lr=2e-3", "--space", "flat"]
    training = ["--objective", "sum", "--trials", "2", "--limit", "64", "--epochs", "1", "--precision", "32-true"]
    assert main([*arguments, *training, "--output", str(tmp_path)]) == 0
    study = optuna.load_study(study_name="search", storage=open_storage(default_storage(tmp_path)))
    assert study.user_attrs["lr_dist_identity"]["first"] == "flat:lr=2e-3"
    assert all(trial.user_attrs["plan"]["stages"][0] == FIRST.to_dict() for trial in study.trials)
    # The worker processes took it over too.
    assert ["taken_over_seconds" in run for trial in study.trials for run in trial.user_attrs["runs"]] == [False, True]
