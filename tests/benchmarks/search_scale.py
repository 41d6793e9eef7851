"""How far the search's storage carries: trials a second by workers, and what a study of 10,000 trials costs.

Everything but the training is real (see `instant_search`), against a PostgreSQL server of its own on loopback whose
commits wait for the disk. Three parts:

- `workers`: 1, 2, 4, 8 and 16 worker processes begin an empty study at the same moment, as a job array does, and drain
  it; finished trials a second between the first start and the last end, and the largest number of connections.
  `superseded` are trials that two workers queued for the same slot, of which one was dropped. More processes than cores
  measure contention, not more work.
- `queued`: a study of 10,000 trials that all still wait: what it takes to queue them, and a worker's turn.
- `finished`: a study of 10,000 finished trials: what it takes a worker to look, to claim the next trial and to suggest
  its rates, and the wall seconds of each command that reads the study, imports included.

Long: with `--folder` it keeps the server's data and what it has measured there, stops after `--minutes`, and goes on
when the same command is started again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the workers: they compute nothing.
os.environ["OMP_NUM_THREADS"] = "1"

import instant_search
import psycopg
from common import parser, publish
from optuna import Study
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from postgres_server import Server, installed, running

from lr_dist.sequence.environment import peak_memory_mb

CHUNK = 250
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"


class Paused(Exception):
    """The time is up; what is measured is kept."""


class Bench:
    """One server, what has been measured so far, and the time that is left."""

    def __init__(self, server: Server, state: Path | None, minutes: float | None) -> None:
        self.server = server
        self._state = state
        self._end = time.monotonic() + 60 * minutes if minutes else None
        self.measured: dict[str, Any] = json.loads(state.read_text()) if state and state.exists() else {}

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """Measure, unless it is already known."""
        if key not in self.measured:
            self.look_at_the_clock()
            self.measured[key] = {**measure(), "load_average_1_min": round(os.getloadavg()[0], 2)}
            self._write()
        print(f"{key}: {self.measured[key]}", file=sys.stderr, flush=True)
        return self.measured[key]

    def look_at_the_clock(self) -> None:
        if self._end is not None and time.monotonic() > self._end:
            raise Paused

    def _write(self) -> None:
        if self._state:
            self._state.write_text(json.dumps(self.measured, indent=1))

    def database(self, name: str) -> str:
        """The URL of a database, made where it is not there yet."""
        url = f"{self.server.url}/{name}"
        try:
            with psycopg.connect(url):
                return url
        except psycopg.OperationalError:
            return self.server.database(name)


def throughput(bench: Bench, workers: int, trials: int) -> dict[str, Any]:
    """Drain a new study with that many processes."""
    # A new one each time: what an interrupted measurement left would count.
    url = bench.server.database(f"workers_{workers}_{time.time_ns()}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["instant_search"])
    study, _ = instant_search.open_instant(url, "scale", trials)
    together = context.Barrier(workers)
    spent = context.Queue()
    team = [
        context.Process(target=instant_search.work, args=(url, "scale", trials, together, spent))
        for _ in range(workers)
    ]
    before = bench.server.cpu_seconds()
    for process in team:
        process.start()
    peak = 0
    with psycopg.connect(f"{bench.server.url}/postgres", autocommit=True) as watcher:
        while any(process.is_alive() for process in team):
            row = watcher.execute(CONNECTIONS, [Path(url).name])
            # This process holds one that is no worker's.
            peak = max(peak, int((row.fetchone() or [1])[0]) - 1)
            time.sleep(0.05)
    if any(process.exitcode for process in team):
        raise SystemExit(f"a worker failed: {[process.exitcode for process in team]}")
    # What counts once workers and server have machines of their own.
    cpu = {
        "worker_cpu_seconds_a_trial": round(sum(spent.get(timeout=10) for _ in team) / trials, 4),
        "server_cpu_seconds_a_trial": round((bench.server.cpu_seconds() - before) / trials, 4),
    }
    return {**count(study, trials), **cpu, "peak_connections": peak}


def count(study: Study, trials: int) -> dict[str, Any]:
    """Finished trials a second, and whether each slot was filled exactly once."""
    found = study.get_trials(deepcopy=False)
    done = [t for t in found if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    slots = Counter(t.user_attrs["slot"] for t in done)
    begun = min(t.datetime_start for t in done if t.datetime_start)
    ended = max(t.datetime_complete for t in done if t.datetime_complete)
    seconds = (ended - begun).total_seconds()
    return {
        "trials": len(done),
        "lost": len(set(range(trials)) - set(slots)),
        "doubled": sum(slots.values()) - len(slots),
        "superseded": len(found) - len(done),
        "pruned": sum(t.state == TrialState.PRUNED for t in done),
        "seconds": round(seconds, 3),
        "trials_per_second": round(len(done) / seconds, 2),
    }


def queue(study: Study, trials: int) -> None:
    """What `lr-dist search` does before it starts workers."""
    from lr_dist.search.engine.slots import fill
    from lr_dist.search.trials.study import plan

    fill(study, plan(instant_search.config(trials), instant_search.LAYERS))


def queued(bench: Bench, trials: int, turns: int) -> dict[str, Any]:
    """A study of which nothing has been run."""
    url = bench.server.database(f"queued_{time.time_ns()}")
    study, objective = instant_search.open_instant(url, "scale", trials)
    began = time.perf_counter()
    queue(study, trials)
    return {
        "trials": trials,
        "queue_seconds": round(time.perf_counter() - began, 2),
        **worker_turns(study, objective, trials, turns),
    }


def fill_finished(bench: Bench, trials: int) -> str:
    """A study of finished trials, each like one that the real machinery wrote; goes on where it was."""
    url = bench.database("finished")
    study, objective = instant_search.open_instant(url, "scale", trials)
    examples = min(trials, 30)
    if len(study.get_trials(deepcopy=False)) < examples:
        from lr_dist.search.engine.worker import drain
        from lr_dist.search.trials.study import plan

        drain(study, objective, plan(instant_search.config(examples), instant_search.LAYERS))
    there = study.get_trials(deepcopy=False)
    real = [t for t in there if t.state in (TrialState.COMPLETE, TrialState.PRUNED)][:examples]
    for first in range(len(there), trials, CHUNK):
        bench.look_at_the_clock()
        slots = range(first, min(trials, first + CHUNK))
        instant_search.add_many(study, [instant_search.finished_like(real[slot % len(real)], slot) for slot in slots])
        print(f"{slots.stop} of {trials} finished trials are there", file=sys.stderr, flush=True)
    return url


def finished(bench: Bench, trials: int, turns: int) -> dict[str, Any]:
    """A worker that joins a study of finished trials."""
    url = fill_finished(bench, trials)
    before = peak_memory_mb() or 0.0
    study, objective = instant_search.open_instant(url, "scale", trials + turns)
    began = time.perf_counter()
    there = len(study.get_trials(deepcopy=False))
    read = time.perf_counter() - began
    figures = worker_turns(study, objective, trials + turns, turns)
    grown = (peak_memory_mb() or 0.0) - before
    return {"trials": there, "read_all_seconds": round(read, 2), **figures, "memory_grown_mb": round(grown)}


def worker_turns(study: Study, objective: Any, trials: int, turns: int) -> dict[str, Any]:
    """Median seconds of the parts of a worker's turn; the parts are those of `lr_dist.search.engine.worker.drain`."""
    from lr_dist.search.engine.slots import claim, fill, release_dead
    from lr_dist.search.engine.worker import run_trial
    from lr_dist.search.trials.study import plan

    searched = instant_search.config(trials)
    slots = plan(searched, instant_search.LAYERS)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = step()
        seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    for _ in range(turns):
        timed("release_dead", lambda: release_dead(study))
        timed("fill", lambda: fill(study, slots))
        trial = timed("claim", lambda: claim(study))
        assert trial is not None
        # Drawn here, they are not drawn again by the objective.
        timed("suggest", lambda trial=trial: searched.space.suggest(trial))
        timed("rest_of_trial", lambda trial=trial: run_trial(study, trial, objective))
    medians = {f"{name}_seconds": round(statistics.median(values), 4) for name, values in seconds.items()}
    turn = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
    return {**medians, "turn_seconds": round(statistics.median(turn), 4)}


def commands(url: str) -> dict[str, Any]:
    """Wall seconds of the commands that read a study."""
    folder = Path(tempfile.mkdtemp(prefix="search-scale-"))
    where = ["--storage", url, "--study", "scale"]
    each = {
        "import_only": ["search", "--help"],
        "status": ["search", "status", *where],
        "export": ["search", "export", *where, "--csv", str(folder / "trials.csv")],
        "combine": ["combine", "scale", "--storage", url, "--output-file", str(folder / "combined.yaml")],
    }
    if "report" in subprocess.run(lr_dist("search", "--help"), capture_output=True, text=True, check=True).stdout:
        each["report"] = ["search", "report", *where, "--output-file", str(folder / "report.html")]
    seconds = {}
    try:
        for name, arguments in each.items():
            began = time.perf_counter()
            done = subprocess.run(lr_dist(*arguments), capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"lr-dist {' '.join(arguments)} failed: {done.stderr}")
            seconds[f"{name}_seconds"] = round(time.perf_counter() - began, 2)
        csv_mb = (folder / "trials.csv").stat().st_size / 2**20
        return {**seconds, "csv_mb": round(csv_mb, 2)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lr_dist(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lr_dist.cli", *arguments]


def measure(bench: Bench, arguments: argparse.Namespace) -> dict[str, Any]:
    for workers in arguments.workers:
        trials = arguments.trials
        bench.once(f"workers={workers} trials={trials}", lambda w=workers, n=trials: throughput(bench, w, n))
    if arguments.queued:
        n = arguments.queued
        bench.once(f"queued={n}", lambda: queued(bench, n, arguments.turns))
    if arguments.finished:
        n = arguments.finished
        bench.once(f"finished={n}", lambda: finished(bench, n, arguments.turns))
        bench.once(f"finished={n} commands", lambda: commands(f"{bench.server.url}/finished"))
    return bench.measured


def main(given: Sequence[str] | None = None) -> int:
    p = parser(__doc__ or "")
    p.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="processes, each in turn")
    p.add_argument("--trials", type=int, default=200, help="trials of each study that workers drain")
    p.add_argument("--finished", type=int, default=10_000, help="finished trials of the large study; 0 leaves it out")
    p.add_argument("--queued", type=int, default=10_000, help="waiting trials of another one; 0 leaves it out")
    p.add_argument("--turns", type=int, default=7, help="turns of a worker whose median is taken")
    p.add_argument("--folder", type=Path, help="keep data and figures there, to go on later (outside your home)")
    p.add_argument("--minutes", type=float, help="stop after so long; needs --folder")
    arguments = p.parse_args(given)
    if arguments.minutes and not arguments.folder:
        p.error("--minutes needs --folder: without it, nothing is kept")
    programs = installed()
    if programs is None:
        p.error("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    state = arguments.folder / "measured.json" if arguments.folder else None
    with running(programs, durable=True, keep=arguments.folder) as server:
        bench = Bench(server, state, arguments.minutes)
        try:
            figures = measure(bench, arguments)
        except Paused:
            print("The time is up; start the same command to go on.", file=sys.stderr)
            return 75  # EX_TEMPFAIL
    publish("search_scale", {"figures": figures, "storage": "PostgreSQL on loopback, fsync on"}, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
