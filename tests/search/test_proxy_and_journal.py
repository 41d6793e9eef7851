"""Storages that keep no heartbeats, Optuna's gRPC proxy and its journal: dead workers are seen all the same."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from lr_dist.search.engine.optuna_private import has_heartbeats, storage_of
from lr_dist.search.engine.process import machine
from lr_dist.search.engine.slots import BEAT, OWNER, SLOT, Liveness, claim, fill, release_dead, settled
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import run_trial

PAGE = Path(__file__).parents[2] / "docs" / "workers.md"
PLAN: list[dict[str, Any]] = [{"params": {}, "attrs": {}}] * 6
# Drains a study with trials of so many seconds, and prints number and rate of each.
WORKER = """
import sys, time
import optuna
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
url, name, seconds = sys.argv[1:]
study = optuna.load_study(study_name=name, storage=open_storage(url), sampler=optuna.samplers.RandomSampler())
def objective(trial):
    trial.set_user_attr("runs", [{"seed": 0}])
    print(trial.number, trial.suggest_float("lr", 1e-7, 1.0, log=True), flush=True)
    time.sleep(float(seconds))
    return (1.0,)
drain(study, objective, [{"params": {}, "attrs": {}}] * 6, poll_s=0.1)
"""


def command_of_the_page(start: str) -> list[str]:
    (line,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.strip().startswith(start)]
    return shlex.split(line)


@pytest.fixture(scope="module")
def proxy(postgres: Any) -> Iterator[str]:
    """The proxy that the docs start, in a process of its own in front of PostgreSQL."""
    pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python, option, code = command_of_the_page("python -c")
    assert (python, option) == ("python", "-c")
    url = postgres.database("behind_the_proxy").replace("postgresql:", "postgresql+psycopg:")
    there = code.replace("postgresql+psycopg://lr_dist@127.0.0.1/lr_dist", url).replace("13000", str(port))
    assert url in there
    assert str(port) in there
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", there])
    try:
        _wait_for_port(port, process)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["proxy", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("proxy") if request.param == "proxy" else f"journal:{tmp_path}/study.journal"


def test_the_trial_of_a_killed_worker_is_marked_and_run_again_at_the_next_start(url: str) -> None:
    study = new_study(url, "kill")
    fill(study, PLAN)
    stuck = start_worker(url, seconds=600)
    workers = [stuck]
    try:
        assert stuck.stdout is not None
        line = stuck.stdout.readline().split()
        number, rate = int(line[0]), float(line[1])
        # Only now, or it might do all trials before the other has one.
        first = start_worker(url, seconds=0.01)
        workers.append(first)
        _wait_until(lambda: len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) == 5)
        # The other worker waits for the last one, because its process lives.
        assert first.poll() is None
        # Before the other one dies, or it would see that and queue the trial again.
        first.kill()
        first.wait()
        os.kill(stuck.pid, signal.SIGKILL)
        stuck.wait()
        lost = study.get_trials()[number]
        assert lost.state == TrialState.RUNNING
        again = start_worker(url, seconds=0.01)
        said, _ = again.communicate(timeout=60)
        assert again.returncode == 0
        assert len(said.splitlines()) == 1
    finally:
        for process in workers:
            process.kill()
            process.wait()
    trials = study.get_trials()
    assert trials[number].state == TrialState.FAIL
    done = [t for t in trials if settled(t)]
    assert sorted(t.user_attrs[SLOT] for t in done) == list(range(6))
    (retried,) = [t for t in done if t.user_attrs[SLOT] == lost.user_attrs[SLOT]]
    assert retried.number > number
    assert retried.params == {"lr": rate}
    assert retried.user_attrs["runs"] == [{"seed": 0}]


def test_a_worker_elsewhere_is_dead_when_its_sign_of_life_stops_and_not_before(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_dist.search.engine.worker.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("lr_dist.search.engine.slots.GRACE_S", 1.5)
    study = new_study(url, "elsewhere")
    assert not has_heartbeats(storage_of(study))
    fill(study, PLAN[:3])
    silent = claim(study)
    assert silent is not None
    _move_elsewhere(silent)
    ended = threading.Event()

    def at_work() -> None:
        here = new_study(url, "elsewhere")
        beating = claim(here)
        assert beating is not None
        _move_elsewhere(beating)
        run_trial(here, beating, lambda trial: (float(ended.wait(60)),))

    thread = threading.Thread(target=at_work)
    thread.start()
    liveness = Liveness()
    try:
        released: list[int] = []
        began = time.monotonic()
        while time.monotonic() - began < 4.0:
            if not released and time.monotonic() - began < 1.4:
                assert release_dead(study, liveness) == []
            released += release_dead(study, liveness)
            time.sleep(0.1)
    finally:
        ended.set()
        thread.join()
    assert released == [silent.number]
    states = [t.state for t in study.get_trials()]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.WAITING]
    assert study.get_trials()[1].user_attrs[BEAT] > 10


def test_two_workers_search_through_the_proxy(proxy: str, postgres: Any, tiny_model: str, tmp_path: Path) -> None:
    search = f"search --model {tiny_model} --tasks demo-sentiment demo-acceptability --space flat --objective sum "
    search += f"--trials 5 --limit 24 --epochs 1 --batch-size 12 --workers 2 --storage {proxy} --study through"
    command = [sys.executable, "-m", "lr_dist.cli", *search.split()]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    # Seen in the database itself, not through the proxy.
    study = optuna.load_study(study_name="through", storage=open_storage(f"{postgres.url}/behind_the_proxy"))
    finished = [t for t in study.get_trials() if settled(t)]
    assert sorted(t.user_attrs[SLOT] for t in finished) == list(range(5))
    assert all(t.user_attrs[OWNER]["machine"] == machine() for t in finished)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["through.html"]


def start_worker(url: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", WORKER, url, "kill", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment())


def new_study(url: str, name: str) -> optuna.Study:
    return optuna.create_study(
        storage=open_storage(url),
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )


def _move_elsewhere(trial: optuna.Trial) -> None:
    trial.set_user_attr(OWNER, {**trial.user_attrs[OWNER], "machine": "another one", "host": "another one"})


def _wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.1)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        assert process.poll() is None, "the proxy ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    _wait_until(answers)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
