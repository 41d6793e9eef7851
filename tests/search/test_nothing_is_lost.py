"""Whatever is killed, and whenever: every trial of a study is there once in the end, and the total is exact."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from fast_worker import INTERRUPTED, STORAGE_ERROR, Workers
from kills import BACKENDS, run_round
from optuna.trial import TrialState

from lr_dist.search.engine.slots import SLOT, settled
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.team import _stop

# LR_DIST_SOAK=N makes these tests N times as long.
TIMES = int(os.environ.get("LR_DIST_SOAK") or 1)


def load(url: str, study: str) -> optuna.Study:
    return optuna.load_study(study_name=study, storage=open_storage(url))


def complete(url: str, study: str) -> dict[int, float]:
    """Number -> value of the trials that are complete now; none while there is no study yet."""
    try:
        found = load(url, study).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    except KeyError:
        return {}
    return {trial.number: trial.values[0] for trial in found}


def assert_exact(study: optuna.Study, trials: int, kept: dict[int, float] | None = None) -> None:
    finished = [t for t in study.get_trials(deepcopy=False) if settled(t)]
    assert sorted(t.user_attrs[SLOT] for t in finished) == list(range(trials))
    assert all(t.state == TrialState.COMPLETE and t.values == [t.params["lr"]] for t in finished)
    assert [t.params["lr"] for t in sorted(finished, key=lambda t: t.user_attrs[SLOT])[:3]] == [1e-3, 1e-4, 1e-5]
    assert not study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
    # What was complete at any time is so at the end.
    assert {t.number: t.values[0] for t in finished}.items() >= (kept or {}).items()


def assert_run_once(crew: Workers, trials: int, interrupted: int) -> None:
    """A trial that ended is run again only where its worker was killed before it could say so."""
    ended = Counter(rest for _, rest in crew.lines("end"))
    assert len(ended) == trials
    assert sum(ended.values()) - trials <= interrupted


def kill_at_random(crew: Workers, team: list[Any], kills: int, rng: random.Random, deadline: float) -> int:
    """Kill one of the team at a time, and start another in its place; returns how many were killed at work."""
    killed = 0
    while killed < kills and time.monotonic() < deadline:
        victim = rng.randrange(len(team))
        if team[victim].is_alive() and crew.has_begun(team[victim].pid):
            time.sleep(rng.uniform(0.0, 0.15))
            team[victim].kill()
            team[victim].join()
            killed += team[victim].exitcode == -9
        for i, process in enumerate(team):
            assert process.exitcode in (None, 0, -9), "a worker ended with an error"
            if process.exitcode == -9:
                team[i] = crew.start()
        time.sleep(0.01)
    return killed


def join(team: list[Any], seconds: float) -> list[int | None]:
    deadline = time.monotonic() + seconds
    for process in team:
        process.join(max(0.0, deadline - time.monotonic()))
    return [process.exitcode for process in team]


def wait_for(url: str, study: str, trials: int, seconds: float = 60) -> dict[int, float]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = complete(url, study)
        if len(found) >= trials:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{trials} trials took more than {seconds} s")


def test_24_kills_of_two_workers_on_postgresql_lose_and_double_nothing(postgres: Any, tmp_path: Path) -> None:
    kills, trials = 24 * TIMES, 200 * TIMES
    url = postgres.database("kills")
    crew = Workers(url, "kills", trials, tmp_path / "log")
    rng = random.Random(0)
    kept: dict[int, float] = {}
    with crew.team(2) as team:
        for _ in range(4):
            assert kill_at_random(crew, team, kills // 4, rng, time.monotonic() + 90 * TIMES) == kills // 4
            kept |= complete(url, "kills")
        assert 0 < len(kept) < trials, "all of the kills must be in the middle of the study"
        assert join(team, 90 * TIMES) == [0, 0]
    assert_exact(load(url, "kills"), trials, kept)
    assert_run_once(crew, trials, kills)


@pytest.mark.parametrize("kind", ["postgres", "sqlite:///{}/study.db"], ids=["postgres", "sqlite"])
def test_a_worker_that_is_asked_to_end_hands_its_trial_back_whatever_it_does(kind, request, tmp_path: Path) -> None:
    """Most of the time of such a short trial is spent in the storage: taking it, and telling its value."""
    if kind == "postgres":
        url = request.getfixturevalue("postgres").database("asked")
    else:
        url = kind.format(tmp_path)
    rounds = 8 * TIMES
    trials = 10_000 * rounds
    crew = Workers(url, "asked", trials, tmp_path / "log", seconds=0.002)
    rng = random.Random(2)
    for _ in range(rounds):
        with crew.team(2) as team:
            while not all(crew.has_begun(process.pid) for process in team):
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.2))
            _stop(team)
            assert [process.exitcode for process in team] == [INTERRUPTED] * 2
        assert not load(url, "asked").get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    assert 0 < len(complete(url, "asked")) < trials


def test_killing_all_workers_at_once_loses_nothing(postgres: Any, tmp_path: Path) -> None:
    url, trials, rounds = postgres.database("all_at_once"), 24, 3
    crew = Workers(url, "all", trials, tmp_path / "log")
    kept: dict[int, float] = {}
    for done in range(rounds):
        with crew.team(3):
            kept |= wait_for(url, "all", 5 * done + 3)
    with crew.team(3) as team:
        assert join(team, 60) == [0, 0, 0]
    assert_exact(load(url, "all"), trials, kept)
    assert_run_once(crew, trials, 3 * rounds)


def test_a_restart_of_the_database_loses_nothing(postgres: Any, tmp_path: Path) -> None:
    url, trials, gate = postgres.database("restarts"), 24, tmp_path / "gate"
    # The gate keeps the team from finishing the study before the database stops.
    crew = Workers(url, "restarts", trials, tmp_path / "log", gate=(8, gate))
    with crew.team(2) as team:
        kept = wait_for(url, "restarts", 5)
        postgres.stop("immediate")
        gate.touch()
        try:
            # Without its storage a worker cannot go on; it ends with an error instead of waiting for ever.
            assert join(team, 60) == [STORAGE_ERROR] * 2
        finally:
            postgres.start()
    messages = [text for _, text in crew.lines("error")]
    assert len(messages) == 2
    assert all(
        "postgresql" in text and ("cannot be" in text or "can no longer be" in text) and "same command again" in text
        for text in messages
    )
    with crew.team(2) as team:
        assert join(team, 60) == [0, 0]
    assert_exact(load(url, "restarts"), trials, kept)


# The second row of rounds is that in which only heartbeats show who is dead.
@pytest.mark.parametrize("number", [0, 1, 4, 5], ids=["sqlite", "journal", "journal, elsewhere", "postgres, elsewhere"])
def test_kills_and_stops_beyond_the_heartbeat_lose_and_double_nothing(number, request, tmp_path: Path) -> None:
    """A round of `tests/kills.py`, which counts many of them."""
    backend = BACKENDS[number % len(BACKENDS)]
    kinds = ("stop", "stop", "kill") if number > 2 else ("kill", "terminate")
    url = f"sqlite:///{tmp_path}/study.db" if backend == "sqlite" else f"journal:{tmp_path}/study.log"
    if backend == "postgres":
        url = request.getfixturevalue("postgres").database("stops")
    result = run_round(number, backend, url, tmp_path, 5 * TIMES, kinds=kinds)
    assert sum(result.events.values()) >= 3
    assert (result.lost, result.doubled, result.wrong, result.unreadable, result.errors) == (0, 0, 0, 0, [])


@pytest.mark.parametrize("kind", ["sqlite:///{}/study.db", "journal:{}/study.log"])
def test_a_full_disk_is_a_named_error_and_with_room_the_study_goes_on(kind: str, tmp_path: Path) -> None:
    url, trials = kind.format(tmp_path), 40
    with Workers(url, "full", trials, tmp_path / "log", seconds=0.0).team(1) as team:
        wait_for(url, "full", 3)
    file = tmp_path / Path(url).name
    crew = Workers(url, "full", trials, tmp_path / "log", seconds=0.0, file_mb=file.stat().st_size / 2**20 + 0.004)
    with crew.team(1) as team:
        assert join(team, 60) == [STORAGE_ERROR]
    (message,) = [text for _, text in crew.lines("error")]
    assert file.name in message
    assert "run the same command again" in message
    kept = complete(url, "full")
    assert 3 <= len(kept) < trials
    crew = Workers(url, "full", trials, tmp_path / "log", seconds=0.0)
    with crew.team(1) as team:
        assert join(team, 60) == [0]
    assert_exact(load(url, "full"), trials, kept)


def test_a_raised_total_adds_the_missing_trials(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    for trials in (5, 5, 8):
        crew = Workers(url, "more", trials, tmp_path / "log", seconds=0.0)
        with crew.team(1) as team:
            assert join(team, 60) == [0]
        assert_exact(load(url, "more"), trials)
        assert_run_once(crew, trials, 0)
