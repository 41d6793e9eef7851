"""A slot is filled once, whoever dies, returns late, or looks at the same moment."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from fast_worker import plan_of
from optuna.trial import TrialState

from lr_dist.search.engine import process, slots
from lr_dist.search.engine.slots import (
    BEAT,
    ERROR,
    MAX_LOST,
    OWNER,
    REASON,
    SLOT,
    Liveness,
    by_slot,
    claim,
    fill,
    release_dead,
    settled,
)
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import MAX_ERRORS, drain, run_trial

KINDS = ["sqlite:///{}/study.db", "journal:{}/study.log"]


def new_study(url: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=open_storage(url), study_name="study", direction="maximize", load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )  # fmt: skip


@pytest.fixture(params=KINDS, ids=["sqlite", "journal"])
def study(request: Any, tmp_path: Path) -> optuna.Study:
    return new_study(request.param.format(tmp_path))


@pytest.fixture
def database(tmp_path: Path) -> optuna.Study:
    return new_study(KINDS[0].format(tmp_path))


def claimed(study: optuna.Study) -> optuna.Trial:
    trial = claim(study)
    assert trial is not None
    return trial


def lr_of(trial: optuna.Trial) -> tuple[float, ...]:
    return (trial.suggest_float("lr", 1e-7, 1.0, log=True),)


def move(trial: optuna.Trial, **changes: Any) -> None:
    """Make another process the owner of a running trial."""
    trial.set_user_attr(OWNER, {**trial.user_attrs[OWNER], **changes})


def test_filling_twice_queues_nothing_more(study):
    for _ in range(2):
        fill(study, plan_of(5))
    assert [t.user_attrs[SLOT] for t in study.trials] == [0, 1, 2, 3, 4]


def test_a_trial_at_work_is_not_given_to_another_worker(study):
    fill(study, plan_of(2 + 1))
    taken = [claimed(study).number for _ in range(3)]
    assert taken == [0, 1, 2]
    assert claim(study) is None


def test_of_two_trials_in_one_slot_the_earlier_one_is_run(study):
    for _ in range(2):
        study.enqueue_trial({"lr": 0.1}, user_attrs={SLOT: 0})
    assert claimed(study).number == 0
    assert claim(study) is None
    assert [t.state for t in study.trials] == [TrialState.RUNNING, TrialState.FAIL]


def test_a_trial_that_somebody_queued_by_hand_is_not_counted_and_not_run(study):
    study.enqueue_trial({"lr": 0.5})
    drain(study, lr_of, plan_of(3))
    assert [t.state for t in study.trials] == [TrialState.WAITING] + [TrialState.COMPLETE] * 3
    assert sorted(by_slot(study.trials)) == [0, 1, 2]


def test_the_trial_of_a_living_process_is_left_alone(study):
    fill(study, plan_of(3))
    claimed(study)
    assert release_dead(study) == []


def test_what_a_dead_worker_had_finished_of_a_trial_is_kept(study):
    fill(study, plan_of(3))
    trial = claimed(study)
    lr_of(trial)
    trial.set_user_attr("runs", [{"seed": 0}])
    trial.set_user_attr(ERROR, "an old error")
    move(trial, started=1.0)  # its number is that of another process by now
    assert release_dead(study) == [0]
    fill(study, plan_of(3))
    again = by_slot(study.trials)[0]
    assert again.number == 3
    assert again.user_attrs == {SLOT: 0, "label": "flat 0", "runs": [{"seed": 0}]}
    assert again.system_attrs["fixed_params"] == {"lr": 1e-3}


def test_a_draw_that_was_lost_is_tried_again(study):
    fill(study, [{"params": {}, "attrs": {}}])
    trial = claimed(study)
    (drawn,) = lr_of(trial)
    move(trial, pid=2**22 + 1)
    assert release_dead(study) == [0]
    drain(study, lr_of, [{"params": {}, "attrs": {}}])
    assert study.trials[-1].params == {"lr": drawn}


def test_what_was_queued_and_only_half_drawn_keeps_all_its_parameters(study):
    plan = [{"params": {"a": 0.25, "b": 0.5}, "attrs": {"label": "mine"}}]
    fill(study, plan)
    trial = claimed(study)
    trial.suggest_float("a", 0, 1)
    move(trial, pid=2**22 + 1)
    release_dead(study)
    fill(study, plan)
    assert study.trials[-1].system_attrs["fixed_params"] == {"a": 0.25, "b": 0.5}


def test_a_trial_taken_by_nobody_is_released_after_a_minute_of_the_watchers_own_clock(study, monkeypatch):
    fill(study, plan_of(3))
    study._storage.set_trial_state_values(study.trials[0]._trial_id, state=TrialState.RUNNING)
    liveness = Liveness()
    assert release_dead(study, liveness) == []
    monkeypatch.setattr(slots, "NAMELESS_S", 0.1)
    time.sleep(0.15)
    assert release_dead(study) == []  # somebody who has just come has not seen it for long
    assert release_dead(study, liveness) == [0]


def test_another_machines_process_numbers_say_nothing(study):
    fill(study, plan_of(3))
    move(claimed(study), machine="elsewhere", pid=2**22 + 1)
    assert release_dead(study) == []


def test_on_a_journal_another_machines_trial_is_released_when_its_beat_stops(tmp_path, monkeypatch):
    study = new_study(KINDS[1].format(tmp_path))
    fill(study, plan_of(3))
    trial = claimed(study)
    move(trial, machine="elsewhere")
    liveness = Liveness()
    monkeypatch.setattr(slots, "GRACE_S", 0.2)
    for beat in range(4):
        trial.set_user_attr(BEAT, beat)
        assert release_dead(study, liveness) == []
        time.sleep(0.1)
    time.sleep(0.2)
    assert release_dead(study, liveness) == [0]


def test_a_worker_on_a_journal_beats(tmp_path, monkeypatch):
    study = new_study(KINDS[1].format(tmp_path))
    monkeypatch.setattr("lr_dist.search.engine.worker.HEARTBEAT_S", 0.05)

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        time.sleep(0.4)
        return lr_of(trial)

    drain(study, objective, plan_of(3)[:1])
    assert study.trials[0].user_attrs[BEAT] >= 3


def test_in_a_database_a_trial_is_queued_again_when_its_heartbeat_stops(database):
    fill(database, plan_of(3))
    trial = claimed(database)
    lr_of(trial)
    trial.set_user_attr("runs", ["kept"])
    move(trial, machine="elsewhere")
    release_dead(database)
    assert database.trials[0].state == TrialState.RUNNING  # the heartbeat of the claim is fresh
    with database._storage._backend.engine.begin() as connection:
        changed = connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'"))
        assert changed.rowcount == 1
    release_dead(database)
    fill(database, plan_of(3))
    again = by_slot(database.trials)[0]
    assert (again.number, again.state) == (3, TrialState.WAITING)
    # Not the dead worker's name: whoever takes it would be held for dead.
    assert again.user_attrs == {SLOT: 0, "label": "flat 0", "runs": ["kept"]}
    drain(database, lr_of, plan_of(3))
    assert [t.params["lr"] for t in database.trials if settled(t) and t.user_attrs[SLOT] == 0] == [1e-3]


def test_a_worker_that_was_taken_for_dead_drops_what_it_found_and_goes_on(study):
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        found = lr_of(trial)
        if trial.number == 0:
            # Another worker believes that this one is dead, while it works.
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        return found

    drain(study, objective, plan_of(3))
    assert [t.state for t in study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert sorted(t.user_attrs[SLOT] for t in study.trials if settled(t)) == [0, 1, 2]


def test_writing_to_a_trial_that_was_taken_away_is_no_error_either(study):
    fill(study, plan_of(3))
    trial = claimed(study)
    study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    run_trial(study, trial, lambda taken: (taken.set_user_attr("late", 1), lr_of(taken))[1])
    assert study.trials[0].state == TrialState.FAIL
    assert "late" not in study.trials[0].user_attrs


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_settles_its_slot_as_failed(bad, study):
    drain(study, lambda trial: (bad,) if trial.user_attrs[SLOT] == 1 else lr_of(trial), plan_of(3))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert "scores must be finite" in study.trials[1].user_attrs[REASON]


def test_a_trial_that_keeps_failing_is_settled_with_its_reason_after_three_errors(study):
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        if trial.user_attrs[SLOT] == 1:
            raise ZeroDivisionError("on purpose")
        return (1.0,)

    for _ in range(MAX_ERRORS):
        with pytest.raises(RuntimeError, match=r"Trial .* ended with ZeroDivisionError: on purpose"):
            drain(study, objective, plan_of(4))
    drain(study, objective, plan_of(4))
    found = by_slot(study.trials)
    assert Counter(t.state for t in found.values()) == {TrialState.COMPLETE: 3, TrialState.FAIL: 1}
    assert "failed 3 times" in found[1].user_attrs[REASON]


def test_an_interrupted_trial_is_handed_back_at_once(study):
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drain(study, objective, plan_of(3))
    assert not study.get_trials(states=(TrialState.RUNNING,))
    drain(study, lr_of, plan_of(3))
    assert sorted(t.user_attrs[SLOT] for t in study.trials if settled(t)) == [0, 1, 2]


def test_an_interrupt_while_a_trial_is_taken_hands_it_back(study, monkeypatch):
    name = study._storage.set_trial_state_values
    monkeypatch.setattr(
        study._storage,
        "set_trial_state_values",
        lambda *args, **options: (name(*args, **options), signal.raise_signal(signal.SIGINT))[0],
    )
    with pytest.raises(KeyboardInterrupt):
        drain(study, lr_of, plan_of(3))
    assert not study.get_trials(states=(TrialState.RUNNING,))


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_an_interrupt_at_any_moment_of_the_databases_work_hands_the_trial_back(kind, request, tmp_path):
    """Within a statement, at its commit, when the connection goes back to its pool: nothing stays open or running."""
    url = KINDS[0].format(tmp_path) if kind == "sqlite" else request.getfixturevalue("postgres").database("interrupts")
    study, plan, left = new_study(url), plan_of(100), 0
    engine = study._storage._backend.engine
    main = threading.current_thread()

    def hear(*_: Any) -> None:
        nonlocal left
        # The thread of the heartbeats takes part in it at times of its own.
        if threading.current_thread() is main:
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)

    for name in ("begin", "before_cursor_execute", "after_cursor_execute", "commit", "rollback"):
        sqlalchemy.event.listen(engine, name, hear)
    for name in ("checkout", "checkin", "reset"):
        sqlalchemy.event.listen(engine.pool, name, hear)

    drain(study, lr_of, plan[:4])
    left = 0
    drain(study, lr_of, plan[:5])
    one_trial = -left
    for moment in random.Random(4).sample(range(1, one_trial), 40):
        left = moment
        with pytest.raises(KeyboardInterrupt):
            drain(study, lr_of, plan)
        assert engine.pool.checkedout() == 0
        assert not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def test_this_process_lives_and_its_number_with_another_start_does_not():
    here = process.this_process()
    assert not process.is_gone_here(here)
    assert process.is_gone_here({**here, "started": here["started"] + 1})
    assert process.is_gone_here({**here, "pid": 2**22 + 1})


def test_a_process_that_ended_and_was_not_collected_is_gone():
    child = subprocess.Popen(["sleep", "60"])
    started = process._started(child.pid)
    assert started is not None
    child.kill()
    deadline = time.monotonic() + 5
    while process._started(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    # Its parent has not asked how it ended, so its number is still taken.
    assert process.is_gone_here({"pid": child.pid, "started": started})
    child.wait()


@pytest.mark.parametrize("kind", ["postgres", *KINDS], ids=["postgres", "sqlite", "journal"])
def test_four_workers_of_which_half_die_all_the_time_fill_every_slot_once(kind, request, tmp_path, monkeypatch):
    """Threads with a storage each, so that a death costs nothing: they stop in the middle and come back."""
    if kind == "postgres":
        url = request.getfixturevalue("postgres").database("deaths")
    else:
        url = kind.format(tmp_path)
    count, trials = 4, 20
    # Half of all attempts end like that here; none is given up.
    monkeypatch.setattr(slots, "MAX_LOST", 1000)
    new_study(url)
    deaths: list[int] = []
    errors: list[BaseException] = []

    class Death(BaseException):
        """Ends a worker without anything being told."""

    def live(index: int) -> None:
        rng = random.Random(index)
        mine = new_study(url)

        def objective(trial: optuna.Trial) -> tuple[float, ...]:
            found = lr_of(trial)
            if index % 2 and rng.random() < 0.5:
                # The others see a process that has ended.
                move(trial, started=1.0)
                raise Death
            return found

        try:
            while True:
                fill(mine, plan_of(trials))
                release_dead(mine)
                trial = claim(mine, trials)
                if trial is None:
                    found = by_slot(mine.get_trials(deepcopy=False))
                    if len(found) == trials and all(settled(t) for t in found.values()):
                        return
                    time.sleep(0.05)
                    continue
                try:
                    values = objective(trial)
                except Death:
                    deaths.append(trial.number)
                    continue
                run_trial(mine, trial, lambda _, values=values: values)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=live, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not errors
    finished = [t for t in new_study(url).trials if settled(t)]
    assert sorted(t.user_attrs[SLOT] for t in finished) == list(range(trials))
    assert all(t.values == [t.params["lr"]] for t in finished)
    assert deaths


def test_a_worker_whose_trial_was_failed_while_it_was_taking_it_drops_it_and_goes_on(study, monkeypatch):
    """As after a SIGSTOP of longer than the heartbeat's grace between taking a trial and writing its owner."""
    named = slots.this_process

    def taken_for_dead() -> dict[str, Any]:
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if trial.number == 0:
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        return named()

    monkeypatch.setattr(slots, "this_process", taken_for_dead)
    drain(study, lr_of, plan_of(3))
    assert [t.state for t in study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3
    assert OWNER not in study.trials[0].user_attrs
    assert sorted(t.user_attrs[SLOT] for t in study.trials if settled(t)) == [0, 1, 2]


def lose(study, slot, times, **attrs):
    """Let so many workers die at a slot's trial; returns how often it was there to be taken."""
    taken = 0
    for _ in range(times):
        fill(study, plan_of(3))
        waiting = [t for t in study.get_trials(states=(TrialState.WAITING,)) if t.user_attrs[SLOT] == slot]
        if not waiting:
            break
        (trial,) = waiting
        study._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING)
        for name, attr in {OWNER: {**slots.this_process(), "started": 1.0}, **attrs}.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, attr)
        taken += 1
        assert release_dead(study) == [trial.number]
    fill(study, plan_of(3))
    return taken


def test_a_trial_that_kills_its_worker_again_and_again_is_given_up_with_a_reason(study):
    assert lose(study, slot=1, times=20) == MAX_LOST
    drain(study, lr_of, plan_of(3))
    found = by_slot(study.trials)
    assert Counter(t.state for t in found.values()) == {TrialState.COMPLETE: 2, TrialState.FAIL: 1}
    assert f"died {MAX_LOST} times without an error message" in found[1].user_attrs[REASON]


def test_a_trial_that_finishes_another_run_before_every_loss_is_tried_on(study):
    for runs in range(1, MAX_LOST + 3):
        assert lose(study, slot=1, times=1, runs=[{"seed": seed} for seed in range(runs)]) == 1
    drain(study, lr_of, plan_of(3))
    assert all(t.state == TrialState.COMPLETE for t in by_slot(study.trials).values())


def test_trials_that_were_handed_back_are_not_counted_as_lost(study):
    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        raise KeyboardInterrupt

    for _ in range(MAX_LOST + 2):
        with pytest.raises(KeyboardInterrupt):
            drain(study, objective, plan_of(3)[:1])
    drain(study, lr_of, plan_of(3)[:1])
    assert by_slot(study.trials)[0].state == TrialState.COMPLETE


def test_a_long_study_is_queued_bit_by_bit_and_every_slot_once(database: optuna.Study, monkeypatch: Any) -> None:
    monkeypatch.setattr(slots, "WINDOW", 10)
    first = {"params": {"lr": 1e-3}, "attrs": {"label": "flat 1e-3"}}
    late = {"params": {"lr": 1e-2}, "attrs": {"label": "flat 1e-2"}}
    plan = [first, *[{"params": {}, "attrs": {}}] * 38, late]
    fill(database, plan)
    assert [t.user_attrs[SLOT] for t in database.trials] == list(range(10))
    assert slots.number_of_slots(database, by_slot(database.trials)) == 40
    for _ in range(4):  # six are left: nothing is queued
        run_trial(database, claimed(database), lr_of)
        fill(database, plan)
    assert len(database.trials) == 10
    # A lost one is queued again at once, however many wait.
    trial = claimed(database)
    move(trial, started=1.0)
    release_dead(database)
    fill(database, plan)
    assert database.trials[10].user_attrs[SLOT] == 4
    drain(database, lr_of, plan)
    done = [t for t in database.trials if settled(t)]
    assert sorted(t.user_attrs[SLOT] for t in done) == list(range(40))
    assert {t.user_attrs.get("label"): t.params["lr"] for t in done if "label" in t.user_attrs} == {
        "flat 1e-3": 1e-3,
        "flat 1e-2": 1e-2,
    }
