"""What Optuna's private names do, as lr-dist uses them; and that nothing else in lr-dist uses any."""

from __future__ import annotations

import ast
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna import Study
from optuna.storages import fail_stale_trials
from optuna.trial import TrialState

from lr_dist.search.engine.optuna_private import (
    backend_of,
    engine_of,
    fixed_params,
    has_heartbeats,
    record_heartbeat,
    running_trial,
    storage_of,
    study_id,
    trial_id,
)
from lr_dist.search.engine.storage import open_storage

SEARCH = (Path(__file__).parents[2] / "lr_dist" / "search").resolve()
KINDS = ("sqlite:///{}/study.db", "journal:{}/study.log")


@pytest.fixture(params=KINDS, ids=("sqlite", "journal"))
def second(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    """A study that is not the first of its storage, whose keys therefore differ from its numbers."""
    storage = open_storage(request.param.format(tmp_path))
    first = optuna.create_study(storage=storage, study_name="first")
    first.enqueue_trial({"lr": 0.5})
    first.enqueue_trial({"lr": 0.5})
    return optuna.create_study(storage=storage, study_name="second")


@pytest.fixture
def database(tmp_path: Path) -> Study:
    return optuna.create_study(storage=open_storage(KINDS[0].format(tmp_path)), study_name="study")


def draw(trial: optuna.Trial) -> float:
    return trial.suggest_float("lr", 1e-7, 1.0, log=True)


def test_a_studys_storage_and_key_lead_to_its_attributes(second: Study) -> None:
    second.set_user_attr("mine", 1)
    assert storage_of(second).get_study_user_attrs(study_id(second)) == {"mine": 1}
    storage_of(second).set_study_user_attr(study_id(second), "mine", 2)
    assert second.user_attrs == {"mine": 2}


def test_a_trials_key_is_not_its_number_and_one_can_be_failed_by_it(second: Study) -> None:
    second.enqueue_trial({"lr": 0.25})
    (waiting,) = second.trials
    assert waiting.number == 0
    assert trial_id(waiting) not in {
        trial_id(t) for t in optuna.load_study(study_name="first", storage=storage_of(second)).trials
    }
    assert storage_of(second).set_trial_state_values(trial_id(waiting), state=TrialState.RUNNING)
    # A second worker does not get it.
    assert not storage_of(second).set_trial_state_values(trial_id(waiting), state=TrialState.RUNNING)
    storage_of(second).set_trial_state_values(trial_id(waiting), state=TrialState.FAIL)
    assert [t.state for t in second.trials] == [TrialState.FAIL]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage_of(second).set_trial_state_values(trial_id(waiting), state=TrialState.RUNNING)


def test_a_running_trial_is_made_of_its_key_and_draws_what_was_fixed(second: Study) -> None:
    second.enqueue_trial({"lr": 0.125})
    (waiting,) = second.trials
    storage_of(second).set_trial_state_values(trial_id(waiting), state=TrialState.RUNNING)
    trial = running_trial(second, trial_id(waiting))
    assert trial_id(trial) == trial_id(waiting)
    assert (trial.number, draw(trial)) == (0, 0.125)
    second.tell(trial, 3.0)
    assert (second.trials[0].value, second.trials[0].params) == (3.0, {"lr": 0.125})


def test_what_was_fixed_when_a_trial_was_queued_stays_readable(second: Study) -> None:
    second.enqueue_trial({"lr": 0.125}, user_attrs={"mine": 1})
    assert fixed_params(second.trials[0]) == {"lr": 0.125}
    second.optimize(draw, n_trials=2)
    queued, drawn = second.trials
    assert (fixed_params(queued), queued.params) == ({"lr": 0.125}, {"lr": 0.125})
    assert (fixed_params(drawn), drawn.params.keys()) == ({}, {"lr"})


def test_behind_the_cache_of_a_database_is_its_engine(database: Study) -> None:
    database.optimize(draw, n_trials=2)
    storage = storage_of(database)
    assert backend_of(storage).url.startswith("sqlite:///")
    with engine_of(storage).connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM trials")).scalar() == 2


def test_a_journal_has_neither_engine_nor_heartbeats(tmp_path: Path) -> None:
    storage = open_storage(KINDS[1].format(tmp_path))
    assert engine_of(storage) is None
    assert not has_heartbeats(storage)
    assert backend_of(storage).shown == f"journal:{tmp_path.resolve() / 'study.log'}"


def test_a_recorded_heartbeat_keeps_a_trial_from_being_failed(database: Study) -> None:
    storage = storage_of(database)
    assert has_heartbeats(storage)
    silent, alive = database.ask(), database.ask()
    for trial in (silent, alive):
        record_heartbeat(storage, trial_id(trial))
    with engine_of(storage).begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'"))
    record_heartbeat(storage, trial_id(alive))
    fail_stale_trials(database)
    assert [t.state for t in database.trials] == [TrialState.FAIL, TrialState.RUNNING]


def test_no_other_module_of_the_search_uses_a_private_name() -> None:
    found = {
        f"{path.relative_to(SEARCH).as_posix()}: {node.attr}"
        for path in SEARCH.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) not in ("self", "cls", "super()")
    }
    private = {name for name in found if name.startswith("engine/optuna_private.py: ")}
    assert {name.partition(": ")[2] for name in private} == {"_storage", "_study_id", "_trial_id"}
    # The one of Python's own: to end a process at once.
    assert found - private == {"engine/team.py: _exit"}
