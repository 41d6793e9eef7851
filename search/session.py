"""`lr-dist search`: check everything, then let worker processes fill the study's slots."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

from lr_dist.errors import ConfigurationError, LRDistError, TrialError
from lr_dist.runs.machine import threads_of
from lr_dist.runs.precision import Measurement, PrecisionChoice, measured_before, remember
from lr_dist.search.config import SearchConfig
from lr_dist.sequence.interrupts import interruptible, interrupts_held_back

POLL_S, POLL_SHARE = 1.0, 20
MAX_RESTARTS = 20
# Each worker's process, and the pipe for its error.
Team = dict[int, tuple[Any, Connection]]


class View(Protocol):
    """Hears how a search goes on, about once a second."""

    def update(self, study: Any, workers: int) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Search:
    """A checked search.

    Attributes:
        config: what is searched.
        storage: its URL.
        study: its name.
        workers: processes on this machine.
    """

    config: SearchConfig
    storage: str
    study: str
    workers: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or not 1 <= self.workers <= 256:
            raise ConfigurationError(f"workers must be a whole number from 1 to 256, not {self.workers!r}.")
        if not self.study.strip() or self.study.startswith("reference/"):
            raise ConfigurationError(f"{self.study!r} is no name for a study; names in reference/ are lr-dist's own.")

    def prepare(self) -> PrecisionChoice:
        """Load and check all that can fail, and create the study or compare it with what is there.

        Returns:
            The precision that this machine's workers train in, and why.

        Raises:
            LRDistError: the named error of whatever cannot work; nothing in the storage has changed.

        Warns:
            MixedHardwareWarning: other machines of the study chose another precision.
        """
        from lr_dist.search.precision import in_precision_of_study, warn_of_mixed
        from lr_dist.search.slots import fill
        from lr_dist.search.storage import open_storage, storage_errors, study_errors
        from lr_dist.search.study import check_queued, open_study, plan

        storage = open_storage(self.storage)
        with storage_errors(storage):
            config = in_precision_of_study(storage, self.study, self.config)
        benches = load_benches(config)
        num_layers = benches[0].model_info["num_layers"]
        check_queued(config, num_layers)
        slots = plan(config, num_layers)
        precision: PrecisionChoice = benches[0].precision
        with storage_errors(storage):
            study = open_study(storage, self.study, config, identity(config, benches))
            with study_errors(study):
                fill(study, slots)
                warn_of_mixed(study, precision.chosen)
        return precision

    def run(self, view: View) -> None:
        """Run worker processes until every slot is settled. A worker that was killed is started again.

        Raises:
            LRDistError: what a worker ended with; all that finished is in the storage.
            KeyboardInterrupt: Ctrl-C, or a request to terminate; the trials at work are queued again.
        """
        from lr_dist.search.precision import warn_of_mixed
        from lr_dist.search.slots import is_complete
        from lr_dist.search.storage import open_storage, storage_errors, study_errors
        from lr_dist.search.study import load_study

        storage = open_storage(self.storage)
        # SIGTERM is what a scheduler sends before it kills: the same as Ctrl-C.
        with storage_errors(storage), _handling(signal.SIGTERM, signal.default_int_handler):
            with interrupts_held_back():
                study = load_study(storage, self.study)
            with study_errors(study):
                with interrupts_held_back():
                    complete = is_complete(study, self.config.trials)
                if not complete:
                    self._run(study, view)
                    with interrupts_held_back():
                        warn_of_mixed(study)

    def _run(self, study: Any, view: View) -> None:
        context = multiprocessing.get_context("spawn")
        team: Team = {}
        try:
            with interrupts_held_back():
                for index in range(self.workers):
                    team[index] = _start(context, self, index)
                self._attend(context, team, study, view)
        finally:
            _stop([process for process, _ in team.values()])

    def _attend(self, context: Any, team: Team, study: Any, view: View) -> None:
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
                team[index] = _start(context, self, index)
            began = time.monotonic()
            view.update(study, len(team))
            # Reading a large study again and again would keep its storage from the workers.
            with interruptible():
                time.sleep(max(POLL_S, POLL_SHARE * (time.monotonic() - began)))


def load_benches(config: SearchConfig) -> list[Any]:
    """One bench a sequence.

    Raises:
        LRDistError: a model or a task that cannot be used, or a sequence of one task only.
    """
    from lr_dist.sequence.bench import Bench

    benches = [
        Bench.prepare(
            config.model,
            sequence,
            config.settings,
            limit=config.limit,
            dev_size=config.dev_size,
            data_dir=config.data_dir,
            data_seed=config.data_seed,
        )
        for sequence in config.sequences
    ]
    for sequence, bench in zip(config.sequences, benches, strict=True):
        if len(bench.tasks) < 2:
            raise ConfigurationError(f"A sequence needs two tasks or more, or a shift; {list(sequence)} is one task.")
    return benches


def identity(config: SearchConfig, benches: list[Any]) -> dict[str, Any]:
    """See `SearchConfig.identity`; with the number of layers, for whoever looks at the study without the model."""
    data = [[task.fingerprint for task in bench.tasks] for bench in benches]
    info = benches[0].model_info
    return {**config.identity(info["fingerprint"], data), "num_layers": info["num_layers"]}


def work(search: Search, index: int, pipe: Connection, measured: tuple[Measurement, ...] = ()) -> None:
    """A worker process: references first, then trials. Ends when nothing is left, or with the process that began it.

    Args:
        search: what is searched.
        index: of this worker, from 0.
        pipe: for the error that it ends with.
        measured: what the process that began it found out about this machine.
    """
    # Ctrl-C in a terminal is for the process that began this one; that one asks this one to terminate.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _follow_parent()
    try:
        import torch

        torch.set_num_threads(threads_of(search.workers))
        remember(measured)
        from lr_dist.search.precision import in_precision_of_study
        from lr_dist.search.references import run_references
        from lr_dist.search.storage import open_storage, storage_errors
        from lr_dist.search.study import open_study, plan
        from lr_dist.search.trial import SequenceObjective
        from lr_dist.search.worker import drain

        storage = open_storage(search.storage)
        with storage_errors(storage):
            config = in_precision_of_study(storage, search.study, search.config)
        benches = load_benches(config)
        with storage_errors(storage), interrupts_held_back():
            study = open_study(storage, search.study, config, identity(config, benches))
            references = run_references(storage, config, benches)
            if references is not None:
                objective = SequenceObjective(config, benches, references)
                drain(study, objective, plan(config, benches[0].model_info["num_layers"]))
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


def _start(context: Any, search: Search, index: int) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=work, args=(search, index, theirs, measured_before()), name=f"lr-dist worker {index}"
    )
    # Until it runs code of ours, a child has what it inherits: Ctrl-C is not for it.
    with _handling(signal.SIGINT, signal.SIG_IGN), _environment(index, search.workers):
        process.start()
    theirs.close()
    return process, ours


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: Any) -> Iterator[None]:
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
