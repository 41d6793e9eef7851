"""Worker processes on this machine: started, watched, started again where they were killed, and ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

from lr_dist.errors import LRDistError, TrialError
from lr_dist.runs.machine import threads_of
from lr_dist.sequence.interrupts import interruptible, interrupts_held_back

POLL_S, POLL_SHARE = 1.0, 20
MAX_RESTARTS = 20
# What a worker process runs; it is pickled for that.
Job = Callable[[], None]
# Each worker's process, and the pipe for its error.
Team = dict[int, tuple[Any, Connection]]


class View(Protocol):
    """Is told how a search goes on, about once a second."""

    def update(self, study: Any, workers: int) -> None: ...

    def note(self, text: str) -> None: ...


def run_workers(job: Callable[[], Job], workers: int, study: Any, view: View) -> None:
    """Run worker processes until all have ended. A worker that was killed is started again.

    Args:
        job: makes what a worker runs, once for each start.
        workers: how many.
        study: what `view` is shown.
        view: is told how it goes on.

    Raises:
        LRDistError: what a worker ended with.
        KeyboardInterrupt: Ctrl-C, or a request to terminate; the workers were asked to end, and have ended.
    """
    context = multiprocessing.get_context("spawn")
    team: Team = {}
    try:
        with interrupts_held_back():
            for index in range(workers):
                team[index] = _start(context, job(), index, workers)
            _attend(context, team, job, workers, study, view)
    finally:
        _stop([process for process, _ in team.values()])


def _attend(context: Any, team: Team, job: Callable[[], Job], workers: int, study: Any, view: View) -> None:
    restarts = 0
    while team:
        for index, (process, pipe) in list(team.items()):
            if process.is_alive():
                continue
            del team[index]
            error = _received(pipe)
            if isinstance(error, LRDistError):
                raise error
            if process.exitcode == 0:
                continue
            if process.exitcode is None or process.exitcode > 0:
                raise TrialError(f"Worker {index} ended with {_cause(process.exitcode)}; see its output above.")
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise TrialError(f"Workers were killed {restarts} times; start the same command to go on.")
            view.note(f"Worker {index} ended with {_cause(process.exitcode)}; its trial is queued again.")
            team[index] = _start(context, job(), index, workers)
        began = time.monotonic()
        view.update(study, len(team))
        # Reading a large study again and again would keep its storage from the workers.
        with interruptible():
            time.sleep(max(POLL_S, POLL_SHARE * (time.monotonic() - began)))


def work(job: Job, index: int, pipe: Connection) -> None:
    """A worker process: ends when its job is done, or with the process that began it.

    Args:
        job: what it runs.
        index: of this worker, from 0.
        pipe: for the error that it ends with.
    """
    # Ctrl-C in a terminal is for the process that began this one; that one asks this one to terminate.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _follow_parent()
    try:
        job()
    except LRDistError as error:
        pipe.send(type(error)(str(error)))
        _leave(1)
    except KeyboardInterrupt:
        _leave(130)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End the process at once: torch and its friends take seconds to be torn down, and nothing is left to write."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(context: Any, job: Job, index: int, workers: int) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, index, theirs), name=f"lr-dist worker {index}")
    # Until it runs code of ours, a child has what it inherits: Ctrl-C is not for it.
    with handling(signal.SIGINT, signal.SIG_IGN), _environment(index, workers):
        process.start()
    theirs.close()
    return process, ours


@contextlib.contextmanager
def handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Handle a signal in another way; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def _environment(index: int, workers: int) -> Iterator[None]:
    """Threads and GPU of a child: libraries read them when they are loaded, before `work` can say so."""
    wanted = {"OMP_NUM_THREADS": str(threads_of(workers)), "TOKENIZERS_PARALLELISM": "false"}
    gpus = _gpus()
    if gpus:
        wanted["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _gpus() -> list[str]:
    import torch

    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]


def _follow_parent() -> None:
    """End this worker when the process that began it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        # The trial is left running, as after a kill; whoever comes next sees that its worker is gone.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _received(pipe: Connection) -> LRDistError | None:
    """The error that a worker sent before it ended."""
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:
        return None


def _stop(processes: list[Any], patience_s: float = 21, times: int = 3) -> None:
    """Ask the workers to end, so that they hand their trials back, and kill those that do not.

    They are asked more than once: Python loses an interrupt that comes while a destructor runs.
    """
    try:
        for _ in range(times):
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + patience_s / times
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"
