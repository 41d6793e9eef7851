"""The best trials are run again with fresh seeds; references count in the progress; what a search says at its end."""

from __future__ import annotations

import html
import shlex
import statistics
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from studies import config_of, study_of
from tiny_search import PAIR, sqlite
from tiny_search import config_of as tiny_config

from lr_dist.cli import main
from lr_dist.errors import ConfigurationError
from lr_dist.search.engine.slots import LABEL, SLOT, by_slot
from lr_dist.search.engine.storage import default_storage, open_storage
from lr_dist.search.page.commands import next_commands
from lr_dist.search.space import Space
from lr_dist.search.trials.config import Goal
from lr_dist.search.trials.confirmation import confirmation_config, confirmation_name, confirmation_plan, flat_rates
from lr_dist.search.trials.references import reference_work, run_references, trial_steps
from lr_dist.search.trials.session import load_benches
from lr_dist.search.trials.study import IDENTITY, hopeless_presets, plan
from lr_dist.search.trials.summary import StudySummary, complete_trials
from lr_dist.search.trials.workload import WORKLOAD, Work, note_workload, seconds_left


def labels(slots: list[dict]) -> list[str]:
    return [slot["attrs"][LABEL] for slot in slots]


def test_the_best_trials_and_the_best_flat_one_are_confirmed():
    config = config_of(confirm=3)
    study = study_of(config, 12)
    ranked = sorted(complete_trials(study), key=lambda t: -t.values[0])
    (flat,) = flat_rates(study, ranked)
    best_flat = next(t for t in ranked if t.user_attrs.get(LABEL, "").startswith("flat"))
    assert best_flat.user_attrs[LABEL] == f"flat {flat:g}"
    slots = confirmation_plan(study, config, 6)
    expected = [f"trial {t.number}" for t in ranked[:3]]
    assert labels(slots) == expected + ([f"flat {flat:g}"] if best_flat not in ranked[:3] else [])
    assert [slot["params"] for slot in slots[:3]] == [t.params for t in ranked[:3]]


def test_what_is_confirmed_keeps_its_slot_when_the_study_grows():
    study = study_of(config_of(), 12)
    few = confirmation_plan(study, config_of(confirm=1), 6)
    confirmation = optuna.create_study(storage=study._storage, study_name=confirmation_name(study.study_name))
    for slot, entry in enumerate(few):
        confirmation.enqueue_trial(entry["params"], user_attrs={**entry["attrs"], SLOT: slot})
    more = confirmation_plan(study, config_of(confirm=4), 6)
    assert labels(more[: len(few)]) == labels(few)
    assert len(set(labels(more))) == len(more) >= 4


def test_fresh_seeds_are_none_of_the_search_and_a_wrong_number_is_refused():
    assert confirmation_config(config_of(seeds=(3, 7), confirm=2, confirm_seeds=2)).seeds == (8, 9)
    assert config_of(confirm=5).identity("w", [["d"]]) == config_of().identity("w", [["d"]])
    with pytest.raises(ConfigurationError, match="confirm_seeds must be a whole number from 1, not 0"):
        config_of(confirm_seeds=0)
    with pytest.raises(ConfigurationError, match="no best trials"):
        config_of("pareto", confirm=1)


def test_a_space_without_the_flat_rate_has_no_control():
    config = config_of(space=Space("knots", fixed={"embeddings": 0}), confirm=1)
    assert len(confirmation_plan(study_of(config, 6), config, 6)) == 1


def running(done: float, seconds: float, began: datetime) -> FrozenTrial:
    trial = create_trial(
        state=TrialState.RUNNING,
        user_attrs={SLOT: 0, "progress": {"done": done, "total": 100, "seconds": seconds}} if done else {SLOT: 0},
    )
    trial.datetime_start = began
    return trial


def test_time_left_is_estimated_from_the_first_epoch_and_counts_references():
    now = datetime.now()
    began = now - timedelta(seconds=10)
    assert seconds_left([Work([running(0, 0, began)], 1, 100), Work([], 4, 200)]) is None
    # 10 steps in 10 s: a reference of 100 steps takes 100 s, of which 10 are over; four trials of 200 steps 800 s.
    left = seconds_left([Work([running(10, 10, began)], 1, 100), Work([], 4, 200)])
    assert left == pytest.approx(890, abs=2)
    done = create_trial(state=TrialState.PRUNED, user_attrs={SLOT: 0})
    done.datetime_start, done.datetime_complete = began, now
    # Finished trials say more than steps; two workers share the rest.
    second = running(10, 10, began)
    second.user_attrs[SLOT] = 1
    left = seconds_left([Work([done, running(10, 10, now), second], 5, 1000)])
    assert left == pytest.approx((4 * 10 - 10) / 2, abs=2)
    assert seconds_left([Work([done], 1, 100)]) == 0


def test_references_count_in_the_summary_before_and_after_they_run(tiny_model, tmp_path):
    config = tiny_config(tiny_model, goal=Goal("constrained", reference_rates=(1e-3, 2e-3)), first="flat:lr=2e-3")
    benches = load_benches(config)
    storage = open_storage(sqlite(tmp_path))
    study = optuna.create_study(storage=storage, study_name="study", direction="maximize")
    work = reference_work(config, benches)
    note_workload(study, trial_steps(config, benches), work)
    assert list(work.values()) == [(2, 8)]  # two tasks of 64 examples, 16 a step
    assert study.user_attrs[WORKLOAD]["trial"] == 4  # the first task is learned once for all
    before = StudySummary.of(study)
    assert (before.references_done, before.references) == (0, 2)
    run_references(storage, config, benches)
    after = StudySummary.of(study)
    assert (after.references_done, after.references) == (2, 2)
    (name,) = work
    (trial, _) = optuna.load_study(study_name=name, storage=storage).trials
    assert trial.user_attrs["progress"]["done"] == trial.user_attrs["progress"]["total"] == 8


def test_presets_that_cannot_learn_are_not_queued_and_take_no_trial():
    config = config_of("sum", "grouped", space=Space("grouped", low=1e-9))
    queued = [slot["attrs"].get(LABEL) for slot in plan(config, 12, steps=94)]
    assert queued[:4] == ["flat 1e-05", "flat 2e-05", "flat 0.0001", None]
    assert set(hopeless_presets(config, 12, 94)) >= {"kenneweg2022", "kenneweg2022-taskshift"}
    # At the size for which they were found they can.
    assert hopeless_presets(config, 12, 4000) == {}
    assert plan(config, 12, steps=4000) == plan(config, 12)
    # Who asks for one gets it.
    wanted = config_of("sum", space=Space("grouped", low=1e-9), queued=("kenneweg2022",))
    assert plan(wanted, 12, steps=94)[3]["attrs"][LABEL] == "kenneweg2022"


def test_the_command_confirms_writes_the_page_and_says_what_is_next(tiny_model, tmp_path, capsys):
    options = ["--space", "decay", "--trials", "4", "--limit", "64", "--epochs", "1", "--precision", "32-true"]
    rates = ["--reference-rates", "[1e-3, 2e-3]", "--high", "5e-3", "--first", "flat:lr=2e-3"]
    confirm = ["--confirm", "1", "--confirm-seeds", "2", "--output", str(tmp_path)]
    assert main(["search", "--model", tiny_model, "--tasks", *PAIR, *options, *rates, *confirm]) == 0
    out = capsys.readouterr().out
    assert "Not queued: kenneweg2022" in out.replace("\n", " ")
    storage = open_storage(default_storage(tmp_path))
    confirmation = optuna.load_study(study_name=confirmation_name("search"), storage=storage)
    assert confirmation.user_attrs[IDENTITY]["seeds"] == [1, 2]
    found = by_slot(confirmation.trials)
    assert {run["seed"] for trial in found.values() for run in trial.user_attrs["runs"]} == {1, 2}
    # The rates that were best for a task alone, and the best flat trial of the sequence.
    flats = [trial for trial in found.values() if trial.params["factor"] == pytest.approx(1)]
    assert flats
    control = max(flats, key=lambda trial: trial.value)
    page = html.unescape(Path(tmp_path / "search.html").read_text(encoding="utf-8"))
    assert "Confirmed with fresh seeds" in page
    assert f"{statistics.fmean(v for (v,) in control.user_attrs['values_by_seed']):.4f}" in page
    study = optuna.load_study(study_name="search", storage=storage)
    commands = next_commands(study, default_storage(tmp_path))
    assert [shlex.split(command)[1] for command in commands] == ["compare", "combine", "dashboard"]
    words = shlex.split(commands[0])
    assert words[words.index("--arms") + 1].startswith("flat:lr=2e-3")
    assert all(command in out for command in commands)
    summary = StudySummary.of(study)
    assert summary.confirmations_done == summary.confirmations == len(found)
    assert summary.references_done == summary.references == 4
    assert not (tmp_path / "stages").exists()
    # Run again, nothing is left to do.
    assert main(["search", "--model", tiny_model, "--tasks", *PAIR, *options, *rates, *confirm]) == 0
    assert len(optuna.load_study(study_name=confirmation_name("search"), storage=storage).trials) == len(found)
