"""Whatever is killed, and whenever: every trial of a study is there once in the end, and the total is exact."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from fast_worker import plan_of
from optuna.trial import TrialState

from lr_dist.search.slots import REASON, SLOT, by_slot, claim, fill, release_dead, settled
from lr_dist.search.storage import open_storage
from lr_dist.search.worker import MAX_ERRORS, drain

SOAK = pytest.mark.skipif(
    not os.environ.get("LR_DIST_SOAK"), reason="minutes of kills, not stable yet: LR_DIST_SOAK=1 runs it"
)
WORKER = Path(__file__).parents[1] / "fast_worker.py"


def start(url: str, study: str, trials: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(WORKER), url, study, str(trials)])


@contextmanager
def workers(url: str, study: str, trials: int, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    team = [start(url, study, trials) for _ in range(count)]
    try:
        yield team
    finally:
        for process in team:
            process.kill()
            process.wait()


def load(url: str, study: str) -> optuna.Study:
    return optuna.load_study(study_name=study, storage=open_storage(url))


def assert_exact(study: optuna.Study, trials: int) -> None:
    finished = [t for t in study.get_trials(deepcopy=False) if settled(t)]
    assert sorted(t.user_attrs[SLOT] for t in finished) == list(range(trials))
    assert all(t.state == TrialState.COMPLETE and t.values == [t.params["lr"]] for t in finished)
    assert [t.params["lr"] for t in sorted(finished, key=lambda t: t.user_attrs[SLOT])[:3]] == [1e-3, 1e-4, 1e-5]
    assert not study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))


@SOAK
def test_twenty_kills_of_two_workers_on_postgresql_lose_and_double_nothing(postgres: Any) -> None:
    url, trials, kills = postgres.database("kills"), 150, 20
    rng = random.Random(0)
    killed = 0
    with workers(url, "kills", trials, 2) as team:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and any(p.poll() is None for p in team):
            if killed < kills:
                time.sleep(rng.uniform(0.0, 0.4))
                victim = rng.randrange(2)
                # Only one that has begun to work: killing Python while it starts proves nothing.
                if team[victim].poll() is None and _works(url, team[victim].pid):
                    team[victim].kill()
                    team[victim].wait()
                    killed += 1
            for i, process in enumerate(team):
                if process.poll() not in (None, 0):
                    team[i] = start(url, "kills", trials)
            time.sleep(0.05)
    assert killed == kills
    assert_exact(load(url, "kills"), trials)


@SOAK
def test_a_restart_of_the_database_loses_nothing(postgres: Any) -> None:
    url, trials = postgres.database("restarts"), 60
    with workers(url, "restarts", trials, 2) as team:
        _wait_for(url, "restarts", 5)
        postgres.stop("immediate")
        for process in team:
            # Without its storage a worker cannot go on; it ends with an error instead of waiting for ever.
            assert process.wait(timeout=60) != 0
        postgres.start()
    with workers(url, "restarts", trials, 2) as team:
        assert [process.wait(timeout=120) for process in team] == [0, 0]
    assert_exact(load(url, "restarts"), trials)


@SOAK
@pytest.mark.parametrize("kind", ["sqlite:///{}/study.db", "journal:{}/study.log"])
def test_files_survive_kills_too(kind: str, tmp_path: Path) -> None:
    url, trials = kind.format(tmp_path), 40
    for seconds in (0.3, 0.7):
        with workers(url, "files", trials, 2):
            _wait_for(url, "files", 3)
            time.sleep(seconds)
    with workers(url, "files", trials, 2) as team:
        assert [process.wait(timeout=120) for process in team] == [0, 0]
    assert_exact(load(url, "files"), trials)


def test_a_raised_total_adds_the_missing_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    for trials in (5, 5, 8):
        with workers(url, "more", trials, 1) as team:
            assert team[0].wait(timeout=60) == 0
        assert_exact(load(url, "more"), trials)


def test_a_trial_that_keeps_failing_is_settled_with_its_reason_after_three_errors(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/s.db"))

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        if trial.user_attrs[SLOT] == 1:
            raise ZeroDivisionError("on purpose")
        return (1.0,)

    for _ in range(MAX_ERRORS):
        with pytest.raises(RuntimeError, match=r"Trial .* ended with ZeroDivisionError: on purpose"):
            drain(study, objective, plan_of(4))
    drain(study, objective, plan_of(4))
    found = by_slot(study.get_trials())
    assert Counter(t.state for t in found.values()) == {TrialState.COMPLETE: 3, TrialState.FAIL: 1}
    assert "failed 3 times" in found[1].user_attrs[REASON]


def test_of_two_trials_in_one_slot_the_earlier_one_is_run(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/s.db"))
    for _ in range(2):
        study.enqueue_trial({"lr": 0.1}, user_attrs={SLOT: 0})
    first = claim(study)
    assert first is not None
    assert first.number == 0
    assert claim(study) is None
    assert [t.state for t in study.trials] == [TrialState.RUNNING, TrialState.FAIL]


def test_what_a_dead_worker_had_finished_of_a_trial_is_kept(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/s.db"))
    fill(study, plan_of(3))
    trial = claim(study)
    assert trial is not None
    trial.suggest_float("lr", 1e-7, 1.0, log=True)
    trial.set_user_attr("runs", [{"seed": 0}])
    assert release_dead(study) == []  # its owner, this process, lives
    trial.set_user_attr("owner", {**trial.user_attrs["owner"], "started": 1.0})
    assert release_dead(study) == [0]
    fill(study, plan_of(3))
    again = by_slot(study.get_trials())[0]
    assert again.number == 3
    assert again.user_attrs["runs"] == [{"seed": 0}]
    assert again.system_attrs["fixed_params"] == {"lr": 1e-3}


def _works(url: str, pid: int) -> bool:
    try:
        running = load(url, "kills").get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    except KeyError:
        return False
    return any(t.user_attrs.get("owner", {}).get("pid") == pid for t in running)


def _wait_for(url: str, study: str, trials: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if len(load(url, study).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= trials:
                return
        except KeyError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{trials} trials took more than {seconds} s")
