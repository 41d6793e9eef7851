"""Start and supervise the worker processes of this machine, restart killed ones, and stop them."""

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
# What a worker process runs; it must be picklable.
Job = Callable[[], None]
# Worker index -> its process, and the pipe that carries its error.
Team = dict[int, tuple[Any, Connection]]


class StatusDisplay(Protocol):
    """Shows the status of a search; updated about once a second."""

    def update(self, study: Any, workers: int) -> None: ...

    def note(self, text: str) -> None: ...


def run_workers(job: Callable[[], Job], workers: int, study: Any, view: StatusDisplay) -> None:
    """Run worker processes until all have exited. A killed worker is restarted.

    Args:
        job: returns what a worker runs; called once for each start.
        workers: number of processes.
        study: passed on to `view`.
        view: shows the status.

    Raises:
        LRDistError: the error of a worker.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the workers have been terminated and have exited.
    """
    context = multiprocessing.get_context("spawn")
    team: Team = {}
    try:
        with interrupts_held_back():
            for index in range(workers):
                team[index] = _start(context, job(), index, workers)
            _supervise(context, team, job, workers, study, view)
    finally:
        _stop([process for process, _ in team.values()])


def _supervise(context: Any, team: Team, job: Callable[[], Job], workers: int, study: Any, view: StatusDisplay) -> None:
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
                raise TrialError(f"Workers were killed {restarts} times; run the same command again to continue.")
            view.note(f"Worker {index} ended with {_cause(process.exitcode)}; its trial is queued again.")
            team[index] = _start(context, job(), index, workers)
        began = time.monotonic()
        view.update(study, len(team))
        # Polling a large study too often would block its storage for the workers.
        with interruptible():
            time.sleep(max(POLL_S, POLL_SHARE * (time.monotonic() - began)))


def work(job: Job, index: int, pipe: Connection) -> None:
    """Main function of a worker process: exits when its job is done, or when the parent process is gone.

    Args:
        job: what it runs.
        index: of this worker, from 0.
        pipe: receives the error, if the job raises one.
    """
    # Ctrl-C in a terminal is handled by the parent, which then sends SIGTERM to its workers.
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
    """Exit at once: an orderly shutdown of torch takes seconds, and all results have been written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(context: Any, job: Job, index: int, workers: int) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, index, theirs), name=f"lr-dist worker {index}")
    # A child inherits signal handlers until it runs our code; it must ignore Ctrl-C from the start.
    with handling(signal.SIGINT, signal.SIG_IGN), _environment(index, workers):
        process.start()
    theirs.close()
    return process, ours


@contextlib.contextmanager
def handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """Replace a signal handler inside a `with` block; does nothing outside of the main thread."""
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
    """Environment variables for a child's threads and GPU: libraries read them at import, before `work` runs."""
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
    """Exit this worker when its parent process has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def exit_with_parent() -> None:
        parent.join()
        # The trial is left in state running, as after a kill; other processes detect that its worker is dead.
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _received(pipe: Connection) -> LRDistError | None:
    """The error that a worker sent before it exited; None if it sent none."""
    try:
        return pipe.recv() if pipe.poll() else None
    except EOFError:
        return None


def _stop(processes: list[Any], patience_s: float = 21, times: int = 3) -> None:
    """Terminate the workers, so that they give their trials back, and kill those that do not exit.

    SIGTERM is sent more than once, because Python loses an interrupt that arrives while a destructor runs.
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
