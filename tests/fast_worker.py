"""A worker whose trials take a moment, started from a process that has everything imported.

`Workers` starts them in a tenth of a second each, so that many can be killed. Every trial leaves two lines in a log:
`begin PID SLOT` and `end PID SLOT`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a worker needs is imported once, before the first of them is forked.
import alembic.script
import optuna
import optuna.storages._rdb.models
import psutil
import psycopg
import sqlalchemy.dialects.postgresql
import sqlalchemy.dialects.sqlite
from optuna.trial import Trial

import lr_dist.search.engine.journal
import lr_dist.search.engine.process
import lr_dist.search.engine.slots
import lr_dist.search.engine.storage
import lr_dist.search.engine.worker
from lr_dist.errors import StorageError
from lr_dist.search.engine.slots import SLOT
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.sequence.interrupts import interruptible

__all__ = ["Workers", "alembic", "plan_of", "psutil", "psycopg", "sqlalchemy", "work"]
STORAGE_ERROR, INTERRUPTED = 3, 130


def plan_of(trials: int) -> list[dict[str, dict[str, object]]]:
    """The first three slots have fixed rates, the others are sampled."""
    fixed = [{"params": {"lr": 10.0 ** -(i + 3)}, "attrs": {"label": f"flat {i}"}} for i in range(3)]
    return [*fixed, *({"params": {}, "attrs": {}} for _ in range(trials - 3))]


def work(
    url: str,
    name: str,
    trials: int,
    log: str,
    seconds: float = 0.05,
    file_mb: float | None = None,
    heartbeat: tuple[int, int] | None = None,
    gate: tuple[int, Path] | None = None,
) -> None:
    """A worker process: exit status 0 when nothing is left, 3 for an error of the storage, 130 for SIGTERM.

    Args:
        url, name: of the study.
        trials: its slots.
        log: file for the two lines a trial.
        seconds: a trial takes this on average.
        file_mb: no file may grow beyond this size, as on a full disk.
        heartbeat: seconds between two of them, and after how many without one a worker is taken for dead; this process
            then is one of another machine for the others, which see no more of it. None: they see the process.
        gate: a slot and a file: trials from this slot on do not end before the file exists.
    """
    assert "torch" not in sys.modules, "a worker takes seconds to start"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Waiting times in proportion to trials of a moment.
    lr_dist.search.engine.slots.NAMELESS_S = 1.0
    lr_dist.search.engine.journal.LOCK_GRACE_S = 3
    if heartbeat is not None:
        _move_elsewhere(*heartbeat)
    if file_mb is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_mb * 2**20), resource.RLIM_INFINITY))
    rng = random.Random(os.getpid())

    def note(text: str) -> None:
        with open(log, "a", encoding="ascii") as file:
            file.write(text + "\n")

    def objective(trial: Trial) -> tuple[float, ...]:
        place = f"{os.getpid()} {trial.user_attrs[SLOT]}"
        note(f"begin {place}")
        lr = trial.suggest_float("lr", 1e-7, 1.0, log=True)
        with interruptible():
            time.sleep(rng.uniform(0, 2 * seconds))
            while gate and trial.user_attrs[SLOT] >= gate[0] and not gate[1].exists():
                time.sleep(0.02)
        trial.set_user_attr("ran", place)
        note(f"end {place}")
        return (lr,)

    try:
        study = optuna.create_study(
            storage=open_storage(url), study_name=name, direction="maximize", load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )  # fmt: skip
        drain(study, objective, plan_of(trials), poll_s=0.1)
    except StorageError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        note(f"error {os.getpid()} {error}")
        os._exit(STORAGE_ERROR)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    os._exit(0)


def _move_elsewhere(beat_s: int, grace_s: int) -> None:
    here = f"machine of {os.getpid()}"
    for module in (lr_dist.search.engine.process, lr_dist.search.engine.slots):
        module.machine = lambda: here  # type: ignore[attr-defined]
    for module in (lr_dist.search.engine.storage, lr_dist.search.engine.worker):
        module.HEARTBEAT_S = beat_s  # type: ignore[attr-defined]
    for module in (lr_dist.search.engine.storage, lr_dist.search.engine.slots):
        module.GRACE_S = grace_s  # type: ignore[attr-defined]


class Workers:
    """Starts workers of one study, and looks into their log."""

    def __init__(self, url: str, study: str, trials: int, log: Path, **options: Any) -> None:
        self._arguments = (url, study, trials, str(log))
        self._options = options
        self._log = log
        # The server that forks must find this file, too.
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["fast_worker"])
        os.environ["PYTHONPATH"], before = path, os.environ.get("PYTHONPATH")
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)

    def start(self) -> Any:
        process = self._context.Process(target=work, args=self._arguments, kwargs=self._options, daemon=True)
        process.start()
        return process

    @contextmanager
    def team(self, count: int) -> Iterator[list[Any]]:
        """Some workers; those that still live at the end are killed."""
        members = [self.start() for _ in range(count)]
        try:
            yield members
        finally:
            for process in members:
                process.kill()
                process.join()

    def lines(self, kind: str) -> list[tuple[int, str]]:
        """PID and rest of every line of a kind, in their order."""
        if not self._log.exists():
            return []
        lines = [line.split(" ", 2) for line in self._log.read_text(encoding="ascii").splitlines()]
        return [(int(pid), rest) for found, pid, rest in lines if found == kind]

    def has_begun(self, pid: int) -> bool:
        """Whether this process has taken a trial: killing Python while it starts proves nothing."""
        return any(pid == found for found, _ in self.lines("begin"))
