"""Real trials: a tiny model learns generated tasks, and what the trial keeps is what happened."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tiny_search import PAIR, config_of, sqlite

from lr_dist import LRDistribution
from lr_dist.errors import TrialError
from lr_dist.search.engine.slots import REASON, by_slot, claim, fill
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.space import Space
from lr_dist.search.trials.config import Goal
from lr_dist.search.trials.objective import Reference
from lr_dist.search.trials.references import run_references
from lr_dist.search.trials.session import identity, load_benches
from lr_dist.search.trials.study import open_study
from lr_dist.search.trials.summary import StudySummary, distribution_of
from lr_dist.search.trials.trial import SequenceObjective

BACK = (PAIR[1], PAIR[0])


def entry(lr: float, label: str | None = None) -> dict[str, Any]:
    return {"params": {"lr": lr}, "attrs": {"label": label} if label else {}}


def run(config: Any, folder: Path, plan: list[dict[str, Any]], references: list[Reference] | None = None) -> Any:
    """The study after its plan, run in this process."""
    benches = load_benches(config)
    study = open_study(open_storage(sqlite(folder)), "study", config, identity(config, benches))
    given = references or [Reference(tuple(bench.baseline)) for bench in benches]
    drain(study, SequenceObjective(config, benches, given), plan)
    return study


def test_a_trial_keeps_scores_matrix_seconds_distribution_and_versions(tiny_model, tmp_path):
    config = config_of(tiny_model, seeds=(0, 1), sequences=(PAIR, BACK))
    study = run(config, tmp_path, [entry(1e-3, "mine")])
    (trial,) = study.trials
    attrs = trial.user_attrs
    assert distribution_of(trial) == LRDistribution.flat(1e-3)
    assert attrs["environment"]["versions"].keys() >= {"torch", "lightning", "transformers", "lr-dist"}
    assert [(r["seed"], r["sequence"]) for r in attrs["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one in attrs["runs"]:
        # Only tasks that have begun are tested.
        assert [[score is None for score in row] for row in one["matrix"]] == [[True] * 2, [False, True], [False] * 2]
        assert one["final"] == one["matrix"][-1] == [scores["accuracy"] for scores in one["scores"]]
        assert one["seconds"] > one["train_seconds"] > 0
    assert attrs["seconds"] == pytest.approx(sum(one["seconds"] for one in attrs["runs"]))

    # The mean over the seeds of the mean over the sequences of p_o + p_s, and the spread over the seeds.
    by_seed = [statistics.fmean(sum(r["final"]) for r in attrs["runs"] if r["seed"] == seed) for seed in (0, 1)]
    assert trial.value == pytest.approx(statistics.fmean(by_seed))
    assert [v for (v,) in attrs["values_by_seed"]] == pytest.approx(by_seed)
    assert attrs["value_sd"] == pytest.approx([statistics.stdev(by_seed)])
    first, second = attrs["sequences"]
    assert (first["tasks"], second["tasks"]) == (list(PAIR), list(BACK))
    assert first["p_o"] == pytest.approx(statistics.fmean(r["final"][0] for r in attrs["runs"][::2]))
    assert second["p_s"] == pytest.approx(statistics.fmean(r["final"][1] for r in attrs["runs"][1::2]))
    assert first["p_s_sd"] == pytest.approx(statistics.stdev(r["final"][1] for r in attrs["runs"][::2]))
    assert first["baseline"] == [pytest.approx(0.5, abs=0.15)] * 2


def test_one_seed_has_no_spread(tiny_model, tmp_path):
    study = run(config_of(tiny_model), tmp_path, [entry(1e-3)])
    attrs = study.trials[0].user_attrs
    assert attrs["value_sd"] == [None]
    assert attrs["sequences"][0]["p_o_sd"] is None


def test_what_needs_no_training_is_chosen_inside_the_trial_by_evaluation(tiny_model, tmp_path):
    method = {"method": "interpolate:alpha=auto"}
    study = run(config_of(tiny_model, **method), tmp_path, [entry(1e-3), entry(5e-4)])
    for trial in study.trials:
        (learned,) = trial.user_attrs["runs"]
        assert "interpolate" not in learned["methods"][0]  # there is no earlier task to keep
        assert learned["methods"][1]["interpolate"]["alphas"]
    assert len(StudySummary.of(study).best.user_attrs["runs"][0]["methods"]) == 2


def test_a_shift_of_one_task_is_a_sequence_of_two(tiny_model, tmp_path):
    config = config_of(tiny_model, sequences=(("demo-sentiment@length",),), limit=128, epochs=2)
    study = run(config, tmp_path, [entry(1e-3, "mine")])
    (trial,) = study.trials
    assert trial.user_attrs["sequences"][0]["tasks"] == ["demo-sentiment@short", "demo-sentiment@long"]
    assert list(trial.intermediate_values) == [1, 2, 3, 4]
    assert study.pruner._max_resource == 4


def test_bf16_trials_run(tiny_model, tmp_path):
    study = run(config_of(tiny_model, precision="bf16-mixed"), tmp_path, [entry(1e-3)])
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_diverging_trial_fails_at_once_with_the_reason_and_the_study_goes_on(tiny_model, tmp_path):
    config = config_of(tiny_model, space=Space("flat", high=1e38), epochs=2)
    study = run(config, tmp_path, [entry(1e36), entry(1e-3)])
    found = by_slot(study.trials)
    assert len(study.trials) == 2
    assert found[0].state == TrialState.FAIL
    assert "The loss became" in found[0].user_attrs[REASON]
    assert "rates are too high" in found[0].user_attrs[REASON]
    assert found[0].intermediate_values == {}  # it did not even end an epoch
    assert found[1].state == TrialState.COMPLETE
    summary = StudySummary.of(study)
    assert (summary.done, summary.failed, summary.best.number) == (2, 1, 1)


def test_hyperband_prunes_the_hopeless_and_never_what_is_labelled(tiny_model, tmp_path):
    config = config_of(tiny_model, space=Space("flat", low=1e-9, high=1e-1), epochs=2, limit=160, sequences=(BACK,))
    good, hopeless = 2e-3, 1e-9
    labelled = [entry(rate, f"flat {i}") for i, rate in enumerate([good] * 3 + [hopeless])]
    study = run(config, tmp_path, [*labelled, *(entry(hopeless) for _ in range(2))])
    by_label = [t for t in study.trials if "label" in t.user_attrs]
    assert [t.state for t in by_label] == [TrialState.COMPLETE] * 4
    # Epochs of all tasks are reported: two of the first, two of the second.
    assert [list(t.intermediate_values) for t in by_label] == [[1, 2, 3, 4]] * 4
    final = sum(by_label[0].user_attrs["runs"][0]["final"])
    assert by_label[0].intermediate_values[4] == pytest.approx(final)
    assert min(t.value for t in by_label[:3]) > by_label[3].value
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert pruned
    assert all(len(t.user_attrs.get("runs", ())) == 0 for t in pruned)
    assert min(len(t.intermediate_values) for t in pruned) <= 2  # without the second task


def test_several_sequences_are_reported_one_after_the_other(tiny_model, tmp_path):
    study = run(config_of(tiny_model, sequences=(PAIR, BACK)), tmp_path, [entry(1e-3, "mine")])
    (trial,) = study.trials
    reported = trial.intermediate_values
    first, second = (sum(r["final"]) for r in trial.user_attrs["runs"])
    assert list(reported) == [1, 2, 3, 4]
    assert reported[2] == pytest.approx(first)
    assert reported[4] == pytest.approx(first + second)


def test_pareto_has_two_values_and_reports_nothing(tiny_model, tmp_path):
    study = run(config_of(tiny_model, goal=Goal("pareto")), tmp_path, [entry(1e-3), entry(1e-7)])
    for trial in study.trials:
        assert trial.values == trial.user_attrs["runs"][0]["final"]
        assert trial.intermediate_values == {}
    assert {t.number for t in study.best_trials} <= {0, 1}


def test_under_a_constraint_the_best_trial_of_optuna_is_feasible(tiny_model, tmp_path):
    config = config_of(tiny_model, goal=Goal("constrained", tolerance=0.0), space=Space("flat", 1e-9, 1e-1))
    plan = [entry(1e-9, "low"), entry(5e-3, "high")]
    found = []
    # What the better one reaches on the last task is the bar of the second study.
    for number, bar in enumerate((0.0, None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        p_s = [trial.user_attrs["sequences"][0]["p_s"] for trial in found]
        bar = max(p_s) if bar is None else bar
        study = run(config, folder, plan, [Reference((0.5, 0.5), flat_p_s=bar)])
        found = study.trials
        for trial in found:
            (excess,) = trial.constraints.values()
            assert excess == pytest.approx(bar - trial.user_attrs["sequences"][0]["p_s"])
    assert p_s[0] != p_s[1]
    assert study.best_trial.number == p_s.index(max(p_s))


def test_references_are_tuned_once_and_shared_by_studies(tiny_model, tmp_path):
    goal = Goal("relative", reference_rates=(1e-9, 2e-3))
    config = config_of(tiny_model, goal=goal, limit=160, epochs=2)
    benches = load_benches(config)
    storage = open_storage(sqlite(tmp_path))
    (reference,) = run_references(storage, config, benches)
    names = optuna.get_all_study_names(storage)
    assert sorted(name.split("/")[1] for name in names) == sorted(PAIR)
    for task, name in enumerate(PAIR):
        (study,) = [optuna.load_study(study_name=n, storage=storage) for n in names if f"/{name}/" in n]
        finals = [t.user_attrs["final"][0] for t in study.trials]
        assert [t.params["lr"] for t in study.trials] == [1e-9, 2e-3]
        assert reference.alone[task] == max(finals)
        assert len(set(finals)) == 2
    assert run_references(storage, config, benches) == [reference]
    assert sum(len(optuna.load_study(study_name=n, storage=storage).trials) for n in names) == 4


def test_the_flat_rate_of_a_constraint_is_tuned_on_the_whole_sequence(tiny_model, tmp_path):
    config = config_of(tiny_model, goal=Goal("constrained", reference_rates=(1e-9, 2e-3)))
    benches = load_benches(config)
    storage = open_storage(sqlite(tmp_path))
    (reference,) = run_references(storage, config, benches)
    (name,) = optuna.get_all_study_names(storage)
    best = optuna.load_study(study_name=name, storage=storage).best_trial
    assert reference.flat_p_s == best.user_attrs["final"][1]


def test_references_that_all_diverge_are_a_clear_error(tiny_model, tmp_path, monkeypatch):
    config = config_of(tiny_model, goal=Goal("relative", reference_rates=(1.0,)))
    benches = load_benches(config)
    # Weights that are not finite stand for a model on which every rate diverges.
    import torch

    with torch.no_grad():
        next(benches[0].view().backbone.parameters()).fill_(float("inf"))
    with pytest.raises(
        TrialError, match=r"Every flat reference rate diverged on demo-entailment.* Give lower --reference-rates"
    ):
        run_references(open_storage(sqlite(tmp_path)), config, benches)


def test_finished_runs_of_a_lost_trial_are_taken_over(tiny_model, tmp_path):
    config = config_of(tiny_model, seeds=(0, 1))
    benches = load_benches(config)
    study = open_study(open_storage(sqlite(tmp_path)), "study", config, identity(config, benches))
    objective = SequenceObjective(config, benches, [Reference(tuple(benches[0].baseline))])
    fill(study, [entry(1e-3)])
    trial = claim(study)
    kept = {"sequence": 0, "seed": 0, "final": [0.25, 0.75], "seconds": 1.5, "matrix": [], "scores": []}
    trial.set_user_attr("runs", [kept])
    assert len(objective(trial)) == 1
    runs = study.trials[0].user_attrs["runs"]
    assert runs[0] == kept
    assert [r["seed"] for r in runs] == [0, 1]
    assert study.trials[0].user_attrs["values_by_seed"][0] == [1.0]


def test_trials_of_several_instances_are_stopped_by_wilcoxons_test_but_not_queued_ones(tiny_model, tmp_path):
    config = config_of(tiny_model, seeds=(0, 1, 2, 3, 4), limit=32)
    benches = load_benches(config)
    study = open_study(open_storage(sqlite(tmp_path)), "study", config, identity(config, benches))
    # A trial that no run of this model can reach.
    best = optuna.trial.create_trial(
        params={"lr": 5e-4},
        distributions={"lr": optuna.distributions.FloatDistribution(1e-7, 1e-3, log=True)},
        value=2.0,
        intermediate_values=dict.fromkeys(range(5), 2.0),
    )
    study.add_trial(best)
    objective = SequenceObjective(config, benches, [Reference(tuple(benches[0].baseline))])
    drain(study, objective, [entry(1e-3, "queued"), entry(1e-3)])
    _, queued, sampled = study.trials
    assert [queued.state, sampled.state] == [TrialState.COMPLETE, TrialState.PRUNED]
    # One value an instance, by its place among seeds and sequences; the trial's value is their mean.
    assert list(queued.intermediate_values) == [0, 1, 2, 3, 4]
    assert list(queued.intermediate_values.values()) == [sum(r["final"]) for r in queued.user_attrs["runs"]]
    assert queued.value == pytest.approx(statistics.fmean(queued.intermediate_values.values()))
    # Four pairs that all are worse have p = 1/16; three have 1/8.
    assert sampled.intermediate_values == {step: queued.intermediate_values[step] for step in range(4)}
    assert len(sampled.user_attrs["runs"]) == 4


def test_the_instances_of_a_lost_trial_are_reported_again(tiny_model, tmp_path):
    config = config_of(tiny_model, seeds=(0, 1), pruner="wilcoxon")
    benches = load_benches(config)
    study = open_study(open_storage(sqlite(tmp_path)), "study", config, identity(config, benches))
    fill(study, [entry(1e-3)])
    trial = claim(study)
    trial.set_user_attr("runs", [{"sequence": 0, "seed": 0, "final": [0.25, 0.75], "seconds": 1.5}])
    SequenceObjective(config, benches, [Reference(tuple(benches[0].baseline))])(trial)
    assert list(study.trials[0].intermediate_values) == [0, 1]
    assert study.trials[0].intermediate_values[0] == 1.0
