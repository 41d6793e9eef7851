"""`lr-dist search`: check everything, then run the study's trials in worker processes."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lr_dist.errors import ConfigurationError
from lr_dist.runs.machine import threads_of
from lr_dist.runs.precision import Measurement, PrecisionChoice, measured_before, remember
from lr_dist.search.engine.team import StatusDisplay, handling, run_workers
from lr_dist.search.trials.config import SearchConfig
from lr_dist.sequence.interrupts import interrupts_held_back


@dataclass(frozen=True)
class Search:
    """A checked search.

    Attributes:
        config: of the study.
        storage: URL of the storage.
        study: name of the study.
        workers: number of processes on this machine.
        folder: the output folder, where first stages are kept that all trials share; None to learn them in each trial.
        notes: lines about the study, found by `prepare`.
    """

    config: SearchConfig
    storage: str
    study: str
    workers: int = 1
    folder: Path | None = None
    notes: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.workers, bool) or not isinstance(self.workers, int) or not 1 <= self.workers <= 256:
            raise ConfigurationError(f"workers must be a whole number from 1 to 256, not {self.workers!r}.")
        if not self.study.strip() or self.study.startswith(("reference/", "confirmation/")):
            raise ConfigurationError(
                f"{self.study!r} is not a valid study name: it must not be empty, or start with reference/ or "
                "confirmation/ (reserved)."
            )

    def prepare(self) -> PrecisionChoice:
        """Check everything that can fail early, and create the study, or check it against the existing one.

        Returns:
            The precision in which this machine's workers train, and the reason.

        Raises:
            LRDistError: the configuration cannot work; the storage was not changed.

        Warns:
            MixedHardwareWarning: other machines chose another precision for this study.
        """
        from lr_dist.search.engine.slots import fill
        from lr_dist.search.engine.storage import open_storage, storage_errors, study_errors
        from lr_dist.search.trials.precision import in_precision_of_study, warn_of_mixed
        from lr_dist.search.trials.references import reference_work, trial_steps
        from lr_dist.search.trials.study import LEAST_REACH, check_queued, hopeless_presets, open_study, plan
        from lr_dist.search.trials.workload import note_workload

        storage = open_storage(self.storage)
        with storage_errors(storage):
            config = in_precision_of_study(storage, self.study, self.config)
        benches = load_benches(config)
        num_layers = benches[0].model_info["num_layers"]
        check_queued(config, num_layers)
        steps = fewest_steps(benches)
        slots = plan(config, num_layers, steps)
        skipped = hopeless_presets(config, num_layers, steps)
        if skipped:
            self.notes.append(
                f"Not queued: {', '.join(skipped)}. Their highest rate times the {steps} steps of a task is below "
                f"{LEAST_REACH:g}, so they cannot learn a task of this size; --queued tries them all the same."
            )
        precision: PrecisionChoice = benches[0].precision
        with storage_errors(storage):
            study = open_study(storage, self.study, config, identity(config, benches))
            with study_errors(study):
                note_workload(study, trial_steps(config, benches), reference_work(config, benches))
                fill(study, slots)
                warn_of_mixed(study, precision.chosen)
        return precision

    def run(self, view: StatusDisplay) -> None:
        """Run worker processes until every slot is settled. A killed worker is restarted.

        Raises:
            LRDistError: the error of a worker; all finished trials are in the storage.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the running trials are queued again.
        """
        from lr_dist.search.engine.slots import is_complete
        from lr_dist.search.engine.storage import open_storage, storage_errors, study_errors
        from lr_dist.search.trials.first_stages import FOLDER
        from lr_dist.search.trials.precision import warn_of_mixed
        from lr_dist.search.trials.study import load_study

        storage = open_storage(self.storage)
        # Cluster schedulers send SIGTERM before they kill a job; it is handled like Ctrl-C.
        with storage_errors(storage), handling(signal.SIGTERM, signal.default_int_handler):
            with interrupts_held_back():
                study = load_study(storage, self.study)
            with study_errors(study):
                with interrupts_held_back():
                    complete = is_complete(study, self.config.trials)
                if not complete:
                    run_workers(lambda: _Work(self, measured_before()), self.workers, study, view)
                    with interrupts_held_back():
                        warn_of_mixed(study)
                if self.config.confirm:
                    self._confirm(study, view)
        if self.folder is not None and self.config.first is not None:
            # No trial needs them any more.
            shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    def _confirm(self, study: Any, view: StatusDisplay) -> None:
        """Run the best trials again with fresh seeds, unless that is done."""
        from lr_dist.search.engine.slots import is_complete
        from lr_dist.search.trials.confirmation import confirmation_of, confirmation_plan
        from lr_dist.search.trials.study import IDENTITY

        with interrupts_held_back():
            layers = study.user_attrs[IDENTITY]["num_layers"]
            slots = confirmation_plan(study, self.config, layers)
            confirming = confirmation_of(study)
            done = confirming is not None and is_complete(confirming, len(slots))
        if not done:
            view.note(f"Confirming {len(slots)} trials with {self.config.confirm_seeds} fresh seeds each.")
            run_workers(lambda: _Work(self, measured_before(), confirm=True), self.workers, study, view)


def fewest_steps(benches: list[Any]) -> int:
    """Training steps of the shortest task."""
    from lr_dist.sequence.runner import count_steps

    return min(count_steps([tokens], bench.settings) for bench in benches for tokens in bench.tokens)


def load_benches(config: SearchConfig) -> list[Any]:
    """One bench for each sequence.

    Raises:
        LRDistError: a model or task cannot be used.
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
            start=config.start,
            eval_limit=config.eval_limit,
        )
        for sequence in config.sequences
    ]
    from lr_dist.methods import build_method
    from lr_dist.sequence.runner import check_methods_of_start

    check_methods_of_start(benches[0], [build_method(method) for method in config.methods])
    return benches


def identity(config: SearchConfig, benches: list[Any]) -> dict[str, Any]:
    """`SearchConfig.identity` plus the number of layers, so that a study can be read without loading the model."""
    data = [[task.fingerprint for task in bench.tasks] for bench in benches]
    info = benches[0].model_info
    known = {**config.identity(info["fingerprint"], data), "num_layers": info["num_layers"]}
    if benches[0].start is not None:
        known |= {"start": config.start, "head of the start": benches[0].start.fingerprint}
    if config.retention is not None:
        bound = {} if config.goal.mode == "retention" else {"most_lost": config.most_lost}
        known["retention"] = {**bound, **_retention(config, None)[0].identity}
    return known


def _retention(config: SearchConfig, folder: Path | None) -> tuple[Any, ...]:
    """The measure that the configuration asks for, as a tuple of one, or of none; a fitted head is kept in `folder`."""
    from lr_dist.retention.measure import retention_of

    place = None if folder is None else folder / "retention"
    return retention_of(config.retention, config.start or config.model, place)


@dataclass(frozen=True)
class _Work:
    """What a worker process runs: first the references, then the trials, until none is left.

    Attributes:
        search: the search.
        measured: measurements of this machine by the parent process, so that they are not repeated.
        confirm: whether to confirm the best trials of the complete study.
    """

    search: Search
    measured: tuple[Measurement, ...]
    confirm: bool = False

    def __call__(self) -> None:
        import torch

        torch.set_num_threads(threads_of(self.search.workers))
        remember(self.measured)
        from lr_dist.methods import Needs
        from lr_dist.search.engine.storage import open_storage, storage_errors
        from lr_dist.search.engine.worker import drain
        from lr_dist.search.trials.confirmation import confirmation_config, confirmation_name, confirmation_plan
        from lr_dist.search.trials.first_stages import first_stages
        from lr_dist.search.trials.precision import in_precision_of_study
        from lr_dist.search.trials.references import run_references, trial_steps
        from lr_dist.search.trials.study import open_study, plan
        from lr_dist.search.trials.trial import SequenceObjective
        from lr_dist.search.trials.workload import note_workload

        storage = open_storage(self.search.storage)
        with storage_errors(storage):
            config = in_precision_of_study(storage, self.search.study, self.search.config)
        benches = load_benches(config)
        with storage_errors(storage), interrupts_held_back():
            layers = benches[0].model_info["num_layers"]
            study = open_study(storage, self.search.study, config, identity(config, benches))
            running, slots = config, plan(config, layers, fewest_steps(benches))
            if self.confirm:
                running, slots = confirmation_config(config), confirmation_plan(study, config, layers)
                study = open_study(storage, confirmation_name(study.study_name), running, identity(running, benches))
                note_workload(study, trial_steps(running, benches), {})
            measures = _retention(config, self.search.folder)
            needs = measures[0]().needs if measures else Needs()
            store = first_stages(self.search.folder, config, benches, running.seeds, needs)
            references = run_references(storage, config, benches, store=store)
            if references is not None:
                drain(study, SequenceObjective(running, benches, references, store, measures), slots)
