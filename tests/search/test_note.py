"""What a person sees of a study in optuna-dashboard: names of the values, and a note with the rates over depth."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from studies import config_of, empty_study, study_of

from lr_dist.search import Space, optimize
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.page.note import MARK, depth_figure, write_note
from lr_dist.search.trials.study import IDENTITY, open_study
from lr_dist.search.trials.summary import best_trial, plan_of

dashboard = pytest.importorskip("optuna_dashboard")


@pytest.mark.parametrize(("mode", "names"), [("sum", ["p_o + p_s"]), ("pareto", ["p_o", "p_s"])])
def test_the_values_have_names(mode: str, names: list[str], tmp_path: Path) -> None:
    config = config_of(mode)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = open_study(storage, "named", config, config.identity("w", [["a", "b"]]))
    assert study.metric_names == names
    assert optuna.load_study(study_name="named", storage=storage).metric_names == names


def test_an_own_search_names_its_score() -> None:
    study = optimize(lambda trial: 1.0, Space("shape"), trials=1, seed=0)
    assert study.metric_names == ["score"]


def test_the_note_shows_the_best_trials_rates_by_layer() -> None:
    study = study_of(config_of(), 6)
    study.set_user_attr(IDENTITY, {**study.user_attrs[IDENTITY], "num_layers": 6})
    assert write_note(study)
    text = dashboard.get_note(study)
    best = best_trial(study, study.trials)
    assert best is not None
    shown = dict(re.findall(r"^(\S+) +(\d\.\d\de-\d\d)  #+$", text, flags=re.MULTILINE))
    rates = plan_of(best).stages[0].rates(6)
    assert shown == {group: f"{rate:.2e}" for group, rate in rates.items()}
    assert f"Best trial so far: {best.number}" in text
    assert not write_note(study)  # nothing has changed


def test_the_bars_are_as_long_as_the_rates_are_high() -> None:
    trial = study_of(config_of(), 5).trials[4]
    rates = plan_of(trial).stages[0].rates(6)
    figure = depth_figure(trial, 6)
    bars = {m[1]: len(m[2]) for m in re.finditer(r"^(\S+) .*? (#+)$", figure, flags=re.MULTILINE)}
    assert bars.keys() == rates.keys()
    assert bars[max(rates, key=rates.__getitem__)] == 24
    assert bars[min(rates, key=rates.__getitem__)] == 1
    ordered = [bars[group] for group in sorted(rates, key=rates.__getitem__)]
    assert ordered == sorted(ordered)


def test_somebodys_own_note_is_left_alone_and_ours_is_renewed() -> None:
    study = study_of(config_of(), 4)
    study.set_user_attr(IDENTITY, {**study.user_attrs[IDENTITY], "num_layers": 6})
    write_note(study)
    before = dashboard.get_note(study)
    study.add_trials([study_of(config_of(), 5).trials[4]])
    assert write_note(study)
    assert dashboard.get_note(study) != before
    dashboard.save_note(study, "mine")
    assert not write_note(study)
    assert dashboard.get_note(study) == "mine"


def test_a_study_without_trials_has_a_note_and_another_programs_study_has_none() -> None:
    study = empty_study(config_of())
    assert write_note(study)
    assert MARK in dashboard.get_note(study)
    foreign = optuna.create_study()
    assert not write_note(foreign)
