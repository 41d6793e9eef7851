"""A study means the same however often it is opened; its first trials, and its draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.pruners import HyperbandPruner, NopPruner, WilcoxonPruner

from lr_dist.errors import (
    ConfigurationError,
    NothingToTrainError,
    RateRangeWarning,
    StudyMismatchError,
    UnknownStudyError,
)
from lr_dist.search.engine.slots import LABEL, SLOT, by_slot, fill
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.space import Space
from lr_dist.search.trials.config import Goal, SearchConfig
from lr_dist.search.trials.study import IDENTITY, check_queued, load_study, open_study, plan
from lr_dist.sequence.settings import SequenceSettings

CONFIG = SearchConfig("minilm", (("sst2", "qqp"),), trials=12)
DATA = [["fingerprint of sst2", "fingerprint of qqp"]]


def opened(url: str, config: SearchConfig = CONFIG, data: Any = DATA) -> optuna.Study:
    return open_study(open_storage(url), "study", config, config.identity("weights", data))


def objective(trial: optuna.Trial) -> tuple[float, ...]:
    distribution = CONFIG.space.suggest(trial)
    return (-abs(distribution.rates(6)["layers.3"] - 1e-5) * 1e5,)


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def test_the_first_trials_are_flat_rates_and_then_every_shipped_preset():
    slots = plan(replace(CONFIG, space=Space("grouped", low=1e-9)), 12)
    labels = [slot["attrs"].get("label") for slot in slots]
    assert labels[:3] == ["flat 1e-05", "flat 2e-05", "flat 0.0001"]
    assert [set(slot["params"].values()) for slot in slots[:3]] == [{1e-5}, {2e-5}, {1e-4}]
    # The relative presets are the same rates at the optimizer's own rate of 1e-5, so they are tried once.
    assert labels[3:6] == ["kenneweg2022", "kenneweg2022-taskshift", None]
    assert len(slots) == 12
    assert slots[-1] == {"params": {}, "attrs": {}}


def test_what_the_space_does_not_hold_exactly_is_labelled_as_near():
    slots = plan(replace(CONFIG, space=Space("knots", low=2e-5)), 6)
    # Flat 2e-5 and all that lies below the bound is the same now.
    assert [slot["attrs"].get("label") for slot in slots[:3]] == ["near flat 1e-05", "flat 0.0001", None]
    # Interpolated, their digits differ; the relative ones are still tried once.
    labels = [slot["attrs"].get("label") for slot in plan(CONFIG, 6)]
    assert labels[3:6] == ["near kenneweg2022", "near kenneweg2022-taskshift", None]
    fixed = plan(replace(CONFIG, space=Space("knots", fixed={"embeddings": 0})), 6)
    assert fixed[0]["attrs"]["label"] == "near flat 1e-05"


def test_a_queued_distribution_follows_the_presets():
    slots = plan(replace(CONFIG, queued=("decay:lr=4e-4,factor=0.7",)), 6)
    (mine,) = [slot for slot in slots if "decay:lr=4e-4,factor=0.7" in slot["attrs"].get("label", "")]
    assert mine["params"]["head"] == pytest.approx(4e-4)
    assert mine["params"]["embeddings"] == pytest.approx(4e-4 * 0.7**7)


def test_a_queued_distribution_that_cannot_be_tried_is_an_error():
    with pytest.raises(ConfigurationError, match="space flat cannot represent the queued decay"):
        plan(replace(CONFIG, space=Space("flat"), queued=("decay:lr=4e-4,factor=0.7",)), 6)
    with pytest.raises(
        ConfigurationError,
        match=r"no trial left for the queued flat:lr=3e-4: the study has 2 trials, .*Increase --trials",
    ):
        plan(replace(CONFIG, trials=2, queued=("flat:lr=3e-4",)), 6)


def test_what_the_user_queues_is_warned_of_and_refused_where_nothing_would_train() -> None:
    with pytest.warns(RateRangeWarning, match=r"4e-4 times 1e-5.*leave relative=true out"):
        check_queued(replace(CONFIG, queued=("decay:lr=4e-4,factor=0.7,relative=true",)), 6)
    with pytest.raises(NothingToTrainError, match="flat:lr=0"):
        check_queued(replace(CONFIG, queued=("flat:lr=0",)), 6)


def test_a_distribution_queued_later_gets_a_trial_of_its_own(url):
    config = replace(CONFIG, trials=9)
    drain(opened(url, config), objective, plan(config, 6))
    more = replace(CONFIG, trials=11, queued=("flat:lr=3e-4",))
    study = opened(url, more)
    drain(study, objective, plan(more, 6))
    found = by_slot(study.trials)
    assert sorted(found) == list(range(11))
    assert found[9].user_attrs[LABEL] == "flat:lr=3e-4"
    assert set(found[9].params.values()) == {3e-4}
    assert LABEL not in found[10].user_attrs


def test_a_smaller_total_stops_there_and_a_larger_one_goes_on(url):
    study = opened(url)
    fill(study, plan(CONFIG, 6))
    few = replace(CONFIG, trials=4)
    drain(study, objective, plan(few, 6))
    assert sorted(t.user_attrs[SLOT] for t in study.trials if t.state.is_finished()) == [0, 1, 2, 3]
    drain(study, objective, plan(CONFIG, 6))
    assert sorted(t.user_attrs[SLOT] for t in study.trials if t.state.is_finished()) == list(range(12))


@pytest.mark.parametrize(
    ("changes", "data", "named"),
    [
        ({"space": Space("grouped")}, DATA, "space: "),
        ({"space": Space("knots", high=2e-3)}, DATA, "'high': 0.002"),
        ({"goal": Goal("sum")}, DATA, "goal: "),
        ({"goal": Goal("pareto")}, DATA, "goal: "),
        ({"seeds": (0, 1)}, DATA, "seeds: "),
        ({"limit": 100}, DATA, "limit: stored None, given 100"),
        ({"settings": SequenceSettings(epochs=5, evaluate_on="dev")}, DATA, "'epochs': 5"),
        ({"sequences": (("qqp", "sst2"),)}, [DATA[0][::-1]], "sequences: "),
        ({}, [["other rows", "fingerprint of qqp"]], "data: "),
    ],
)
def test_another_search_of_the_same_name_is_refused_and_nothing_is_touched(changes, data, named, url, tmp_path):
    drain(opened(url), objective, plan(replace(CONFIG, trials=2), 6))
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(StudyMismatchError, match="has another configuration") as error:
        opened(url, replace(CONFIG, **changes), data)
    assert named in str(error.value)
    assert "Nothing was changed" in str(error.value)
    assert (tmp_path / "study.db").read_bytes() == before
    assert len(opened(url).trials) == 2


def test_other_weights_are_another_search(url):
    opened(url)
    with pytest.raises(StudyMismatchError, match="weights: stored 'weights', given 'others'"):
        open_study(open_storage(url), "study", CONFIG, CONFIG.identity("others", DATA))


def test_the_same_weights_and_data_at_another_path_are_the_same_search(url):
    opened(url, replace(CONFIG, model="/home/one/model", sequences=(("my=/home/one/my", "qqp"),)))
    opened(url, replace(CONFIG, model="/home/two/model", sequences=(("my=/home/two/my", "qqp"),)))


def test_trials_workers_and_what_is_queued_may_change(url):
    opened(url)
    opened(url, replace(CONFIG, trials=99, queued=("flat:lr=3e-4",)))


def test_a_study_that_something_else_made_is_refused(url):
    study = optuna.create_study(storage=open_storage(url), study_name="study", direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(StudyMismatchError, match="that lr-dist search did not create"):
        opened(url)


def test_an_empty_study_that_minimises_is_refused(url, monkeypatch):
    optuna.create_study(storage=open_storage(url), study_name="study", direction="minimize")
    monkeypatch.setattr("lr_dist.search.trials.study.PATIENCE_S", 0.0)
    with pytest.raises(StudyMismatchError, match="that lr-dist search did not create"):
        opened(url)


def test_a_study_whose_maker_died_before_it_said_what_for_is_taken_over(url, monkeypatch):
    optuna.create_study(storage=open_storage(url), study_name="study", direction="maximize")
    monkeypatch.setattr("lr_dist.search.trials.study.PATIENCE_S", 0.0)
    assert opened(url).user_attrs[IDENTITY]["weights"] == "weights"


def test_an_unknown_study_is_an_error_that_lists_the_others(url):
    opened(url)
    with pytest.raises(UnknownStudyError, match=r"no study 'studi'. It has: study"):
        load_study(open_storage(url), "studi")


def drawn(study: optuna.Study) -> list[dict[str, float]]:
    return [by_slot(study.trials)[slot].params for slot in range(12)]


def test_one_sampler_seed_and_one_worker_give_the_same_trials(tmp_path):
    config = replace(CONFIG, sampler_seed=7)
    studies = []
    for name in "ab":
        study = opened(f"sqlite:///{tmp_path}/{name}.db", config)
        drain(study, objective, plan(config, 6))
        studies.append(study)
    assert drawn(studies[0]) == drawn(studies[1])
    assert [t.values for t in studies[0].trials] == [t.values for t in studies[1].trials]
    other = opened(f"sqlite:///{tmp_path}/c.db", replace(CONFIG, sampler_seed=8))
    drain(other, objective, plan(config, 6))
    assert drawn(other)[:5] == drawn(studies[0])[:5]  # queued
    assert drawn(other)[-1] != drawn(studies[0])[-1]


def test_a_search_continued_with_its_seed_draws_nothing_twice(url):
    for trials in (8, 10, 12):
        config = replace(CONFIG, sampler_seed=7, trials=trials)
        drain(opened(url, config), objective, plan(config, 6))
    free = [t.params for t in opened(url).trials if LABEL not in t.user_attrs]
    assert len(free) >= 5
    assert len({tuple(params.values()) for params in free}) == len(free)


def test_two_workers_with_one_seed_do_not_draw_the_same(url):
    config = replace(CONFIG, sampler_seed=7)
    first, second = opened(url, config), opened(url, config)
    fill(first, [{"params": {}, "attrs": {}}] * 2)
    from lr_dist.search.engine.slots import claim

    assert claim(first).suggest_float("lr", 1e-7, 1e-3, log=True) != claim(second).suggest_float(
        "lr", 1e-7, 1e-3, log=True
    )


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, HyperbandPruner),
        ({"seeds": (0, 1, 2, 3)}, HyperbandPruner),
        ({"seeds": (0, 1, 2, 3, 4)}, WilcoxonPruner),
        ({"seeds": (0, 1), "pruner": "wilcoxon"}, WilcoxonPruner),
        ({"pruner": "none"}, NopPruner),
        ({"seeds": (0, 1, 2, 3, 4), "goal": Goal("pareto")}, NopPruner),
    ],
)
def test_the_pruner_is_chosen_by_the_number_of_instances_or_as_given(url, changes, kind):
    assert type(opened(url, replace(CONFIG, **changes)).pruner) is kind


def test_a_study_goes_on_with_the_pruner_that_it_was_begun_with(url):
    several = replace(CONFIG, seeds=(0, 1, 2, 3, 4))
    study = optuna.create_study(storage=open_storage(url), study_name="study", direction="maximize")
    # As studies were made before there was a choice.
    study.set_user_attr(IDENTITY, several.identity("weights", DATA))
    assert type(opened(url, several).pruner) is HyperbandPruner
    assert type(opened(url, replace(several, pruner="hyperband")).pruner) is HyperbandPruner
    with pytest.raises(StudyMismatchError, match="was begun with the pruner hyperband, and wilcoxon is given"):
        opened(url, replace(several, pruner="wilcoxon"))


def test_a_wrong_pruner_is_refused():
    with pytest.raises(ConfigurationError, match="pruner must be one of auto, wilcoxon, hyperband, none, not 'median'"):
        replace(CONFIG, pruner="median")
    with pytest.raises(ConfigurationError, match="Two objectives cannot be pruned"):
        replace(CONFIG, goal=Goal("pareto"), pruner="wilcoxon")
