"""Kill and stop workers at random moments, restart the database, and count what is lost, doubled or unreadable.

    python tests/kills.py --events 500 --output runs/kills

A round is a study of its own on SQLite, PostgreSQL or a journal, in turn, with three workers. In every other round the
workers take each other for processes of other machines, so that only the heartbeat shows who is dead. What ends:

- kill: SIGKILL at a random moment of the work or of its dealings with the storage;
- terminate: SIGTERM, after which the trial has to be handed back;
- stop: SIGSTOP for longer than the heartbeat's grace, then SIGCONT, as a paused machine;
- restart: PostgreSQL is stopped at once (`immediate`) and started again.

At the end of a round every slot must be filled exactly once, by the value that its worker computed, and whatever was
complete at any time must still be there. Every round is a file in the output folder; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import optuna
from fast_worker import INTERRUPTED, STORAGE_ERROR, Workers
from optuna.trial import TrialState
from postgres_server import Server, installed, running

from lr_dist.search.engine.slots import REASON, SLOT, settled
from lr_dist.search.engine.storage import open_storage

BACKENDS = ("sqlite", "journal", "postgres")
WORKERS, BEAT_S, GRACE_S = 3, 1, 3
# Exit statuses after which a worker is replaced; any other but 0 is an error of ours.
EXPECTED = {-signal.SIGKILL, INTERRUPTED, STORAGE_ERROR}


@dataclass
class Round:
    """What happened to one study.

    Attributes:
        number, backend, elsewhere, trials: which; `elsewhere`: only heartbeats show who is dead.
        events: kind -> how many.
        attempts: trials in the storage, with those that were queued again.
        lost: slots without a result, and results that were there and are not any more.
        doubled: results of a slot beyond one.
        wrong: results with another value than their worker computed.
        unreadable: times that the study could not be read.
        given_up: slots whose workers were killed too often in a row; each has a reason.
        errors: what workers ended with that nobody asked for.
        seconds: of the round.
    """

    number: int
    backend: str
    elsewhere: bool
    trials: int
    events: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    unreadable: int = 0
    given_up: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Crew:
    """Three workers that are disturbed and replaced.

    Args:
        workers: starts them.
        rng: decides what happens when.
    """

    def __init__(self, workers: Workers, rng: random.Random) -> None:
        self.workers = workers
        self.rng = rng
        self.team: list[Any] = [workers.start() for _ in range(WORKERS)]
        self.stopped: dict[int, float] = {}
        self.events: Counter[str] = Counter()
        self.errors: list[str] = []

    def disturb(self, kind: str) -> None:
        """Do one thing to a worker that has begun; nothing where there is none."""
        able = [p for p in self.team if p.is_alive() and p.pid not in self.stopped and self.workers.has_begun(p.pid)]
        if not able or (kind == "stop" and len(self.stopped) >= WORKERS - 1):
            time.sleep(0.05)
            return
        victim = self.rng.choice(able)
        time.sleep(self.rng.uniform(0.0, 0.15))
        if kind == "stop":
            try:
                os.kill(victim.pid, signal.SIGSTOP)
            except ProcessLookupError:  # it has ended by itself meanwhile
                return
            self.stopped[victim.pid] = time.monotonic() + GRACE_S + self.rng.uniform(1, 3)
        elif kind == "kill":
            victim.kill()
            victim.join()
        else:
            victim.terminate()
            victim.join(120)
        self.events[kind] += kind == "stop" or victim.exitcode != 0

    def resume(self, *, everyone: bool = False) -> None:
        """Let those go on that were stopped for long enough."""
        for pid, until in list(self.stopped.items()):
            if everyone or time.monotonic() > until:
                os.kill(pid, signal.SIGCONT)
                del self.stopped[pid]

    def replace(self) -> bool:
        """Start anew what was ended from outside; whether anybody is at work."""
        for index, process in enumerate(self.team):
            if process.exitcode in EXPECTED:
                self.team[index] = self.workers.start()
            elif process.exitcode not in (None, 0):
                self.errors.append(f"a worker ended with exit status {process.exitcode}")
                self.team[index] = self.workers.start()
        return any(p.is_alive() for p in self.team)

    def end(self, seconds: float) -> None:
        """Wait until the study is complete."""
        self.resume(everyone=True)
        deadline = time.monotonic() + seconds
        while self.replace() and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in self.team:
            if process.is_alive():
                self.errors.append("a worker did not end")
                process.kill()
                process.join()


def run_round(
    number: int,
    backend: str,
    url: str,
    folder: Path,
    events: int,
    *,
    server: Server | None = None,
    kinds: tuple[str, ...] = (),
) -> Round:
    """One study, disturbed so often.

    Args:
        number: of the round; seeds everything that is random in it.
        backend: of `BACKENDS`.
        url: of an empty storage.
        folder: for the workers' log.
        events: how many; fewer where the study is complete before.
        server: PostgreSQL's, to be restarted.
        kinds: what may happen; all of it by default.
    """
    began, rng = time.monotonic(), random.Random(number)
    result = Round(number, backend, elsewhere=number // len(BACKENDS) % 2 == 1, trials=6 * events)
    heartbeat = (BEAT_S, GRACE_S) if result.elsewhere else None
    workers = Workers(url, "study", result.trials, folder / "log", seconds=0.03, heartbeat=heartbeat)
    kinds = kinds or ("kill", "terminate", *(("stop", "stop") if result.elsewhere else ("stop",)))
    kept: dict[int, float] = {}
    crew = Crew(workers, rng)
    try:
        while sum(crew.events.values()) < events and crew.replace():
            crew.resume()
            if backend == "postgres" and server is not None and rng.random() < 0.06:
                _restart(crew, server)
            crew.disturb(rng.choice(kinds))
            # A stopped worker may hold the lock of a SQLite file, and could not be resumed while this waits for it.
            if not crew.stopped and rng.random() < 0.2:
                kept |= _complete(url, result)
        crew.end(seconds=300)
    finally:
        crew.resume(everyone=True)
        for process in crew.team:
            process.kill()
            process.join()
    result.events = dict(crew.events)
    result.errors += crew.errors
    _count(url, result, kept)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _restart(crew: Crew, server: Server) -> None:
    if not any(p.is_alive() and crew.workers.has_begun(p.pid) for p in crew.team):
        return
    server.stop("immediate")
    try:
        crew.resume(everyone=True)
        for process in crew.team:
            process.join(120)
    finally:
        server.start()
    crew.events["restart"] += 1


def _complete(url: str, result: Round) -> dict[int, float]:
    try:
        study = optuna.load_study(study_name="study", storage=open_storage(url))
        return {t.number: t.values[0] for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    except KeyError:
        return {}
    except Exception as error:
        result.unreadable += 1
        result.errors.append(f"{type(error).__name__}: {error}"[:300])
        return {}


def _count(url: str, result: Round, kept: dict[int, float]) -> None:
    try:
        trials = optuna.load_study(study_name="study", storage=open_storage(url)).get_trials(deepcopy=False)
    except Exception as error:
        result.unreadable += 1
        result.errors.append(f"{type(error).__name__}: {error}"[:300])
        return
    done = [t for t in trials if settled(t)]
    complete = [t for t in done if t.state == TrialState.COMPLETE]
    slots = Counter(t.user_attrs[SLOT] for t in done)
    now = {t.number: t.values[0] for t in complete}
    result.attempts = len(trials)
    result.lost = len(set(range(result.trials)) - set(slots)) + sum(now.get(n) != value for n, value in kept.items())
    result.doubled = sum(slots.values()) - len(slots)
    result.wrong = sum(t.values != [t.params["lr"]] for t in complete)
    result.given_up = sum("times without an error message" in str(t.user_attrs.get(REASON)) for t in done)


def summary(rounds: list[Round], command: str) -> dict[str, Any]:
    """All rounds in one small mapping."""
    by_backend: dict[str, Counter[str]] = {}
    for one in rounds:
        by_backend.setdefault(one.backend, Counter()).update(one.events)
    counts = ("trials", "attempts", "lost", "doubled", "wrong", "unreadable", "given_up")
    return {
        "command": command,
        "rounds": len(rounds),
        "events": sum(sum(one.events.values()) for one in rounds),
        "by_kind": dict(sum((Counter(one.events) for one in rounds), Counter())),
        "by_backend": {name: dict(found) for name, found in sorted(by_backend.items())},
        **{name: sum(getattr(one, name) for one in rounds) for name in counts},
        "errors": sorted({text for one in rounds for text in one.errors}),
        "seconds": round(sum(one.seconds for one in rounds)),
        "environment": {
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            **{name: metadata.version(name) for name in ("lr-dist", "optuna", "sqlalchemy", "psycopg")},
        },
    }


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--events", type=int, default=500, help="kills, stops and restarts in all")
    p.add_argument("--per-round", type=int, default=20, help="in one study")
    p.add_argument("--minutes", type=float, default=float("inf"), help="begin no further round after this time")
    p.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    p.add_argument("--output", type=Path, default=Path("runs/kills"), help="folder; the same command goes on there")
    settings = p.parse_args()
    # So that the server and the workers are ended, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with ExitStack() as stack:
        server = _server(stack) if "postgres" in settings.backends else None
        rounds = [Round(**json.loads(path.read_text())) for path in sorted(settings.output.glob("round-*.json"))]
        number = max((one.number for one in rounds), default=-1) + 1
        while sum(sum(one.events.values()) for one in rounds) < settings.events:
            if time.monotonic() - began > 60 * settings.minutes:
                break
            backend = BACKENDS[number % len(BACKENDS)]
            if backend in settings.backends:
                rounds.append(_one(number, backend, settings, server))
                done = summary(rounds, f"python tests/kills.py --events {settings.events}")
                _write(settings.output / "kills.json", done)
                print({key: done[key] for key in ("events", "lost", "doubled", "unreadable", "errors")}, flush=True)
            number += 1
    bad = any(one.lost or one.doubled or one.wrong or one.unreadable or one.errors for one in rounds)
    return 1 if bad else 0


def _one(number: int, backend: str, settings: argparse.Namespace, server: Server | None) -> Round:
    folder = settings.output / f"study-{number:05d}"
    # An earlier start of this command was interrupted in it.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    addresses: dict[str, Callable[[], str]] = {
        "sqlite": lambda: f"sqlite:///{folder}/study.db",
        "journal": lambda: f"journal:{folder}/study.log",
        "postgres": lambda: server.database(f"round_{number}") if server else "",
    }
    result = run_round(number, backend, addresses[backend](), folder, settings.per_round, server=server)
    _write(settings.output / f"round-{number:05d}.json", asdict(result))
    if not (result.lost or result.doubled or result.wrong or result.unreadable or result.errors):
        shutil.rmtree(folder)
    return result


def _server(stack: ExitStack) -> Server:
    programs = installed()
    if programs is None:
        raise SystemExit("PostgreSQL is not installed; leave it out: --backends sqlite journal.")
    return stack.enter_context(running(programs))


def _write(path: Path, content: dict[str, Any]) -> None:
    written = path.with_name(f".{path.name}.{os.getpid()}")
    written.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    written.replace(path)


if __name__ == "__main__":
    sys.exit(main())
