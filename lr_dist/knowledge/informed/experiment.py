"""The experiment: each arm's rates are chosen on dev, then arms are compared over draws. Finished runs are files."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lr_dist.errors import ConfigurationError, DivergedError, InvalidResultError
from lr_dist.knowledge.informed.config import INFORMED, STAGED, InformedConfig
from lr_dist.knowledge.informed.fits import FirstStage, first_stage, learn_task
from lr_dist.knowledge.informed.material import Material
from lr_dist.knowledge.informed.result import Choice, InformedResult, summarise
from lr_dist.knowledge.informed.transfer import ALL, groups_of
from lr_dist.runs.atomic import write_json
from lr_dist.runs.precision import AUTO
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.environment import describe_environment
from lr_dist.sequence.output import checked_folder, locked
from lr_dist.sequence.result import read_json

# Increase it when a change of the code makes old runs incomparable with new ones.
RUN_VERSION = 1
TUNING, RESULTS = "tuning", "results"


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        phase: "tuning" (scored on dev) or "results".
        arm: its name.
        carried: what is carried over from the first stage: all, or a part.
        limit, seed: of the draw.
        rates: of the task.
        stage_rates: of the first stage; "" without one.
    """

    phase: str
    arm: str
    carried: str
    limit: int
    seed: int
    rates: str
    stage_rates: str

    @property
    def label(self) -> str:
        """The arm, with its part if it carries over only that."""
        return self.arm if self.carried == ALL else f"{self.arm}: {self.carried}"


class Listener(Protocol):
    """Receives the progress."""

    def note(self, text: str) -> None:
        """A line for the reader."""

    def started(self, phase: str, runs: int, runs_before: int) -> None:
        """A phase begins; `runs_before` of its runs are finished already."""

    def run_ended(self, run: Mapping[str, Any]) -> None:
        """A run is finished."""


class Experiment:
    """An experiment that is ready to run.

    Args:
        config: its settings.

    Raises:
        LRDistError: invalid knowledge, model, task, rates or parts, each with its named error.
    """

    def __init__(self, config: InformedConfig) -> None:
        for text in (*config.rates, *config.stage_rates):
            Arm.parse(text)
        self.config = config
        self.material = Material.prepare(config)
        for part in config.chosen_parts:
            groups_of(part, self.material.bench.model_info["num_layers"])
        self._stage: tuple[tuple[str, str, int], FirstStage] | None = None

    def tuning(self) -> list[Job]:
        """Every arm with all of its rates, at every limit."""
        config = self.config
        return [
            Job(TUNING, arm, ALL, limit, seed, rates, stage_rates)
            for seed in config.tuning_draws
            for arm in config.arms
            for stage_rates in self._stage_rates(arm)
            for limit, rates in itertools.product(config.limits, config.rates)
        ]

    def results(self, choices: Sequence[Choice]) -> list[Job]:
        """Every arm with its chosen rates; parts have those of the informed arm."""
        config = self.config
        chosen = {(choice.arm, choice.limit): choice for choice in choices}
        jobs = []
        for seed, arm in itertools.product(config.draws, config.arms):
            for carried in (ALL, *(config.chosen_parts if arm == INFORMED else ())):
                for limit in config.limits:
                    choice = chosen[arm, limit]
                    jobs.append(Job(RESULTS, arm, carried, limit, seed, choice.rates, choice.stage_rates))
        # Runs after one and the same first stage follow each other.
        return sorted(jobs, key=lambda job: (job.seed, config.arms.index(job.arm), job.stage_rates))

    def run(self, output: str | Path, *, listener: Listener, command: str = "") -> InformedResult:
        """Run what is not in `output` yet; `output/result.json` is updated after every run of the results.

        Raises:
            OutputInUseError: another process uses `output`.
            ConfigurationError: every rate of an arm diverged.
        """
        folder = checked_folder(output)
        with locked(folder):
            precision = self.material.bench.precision
            if precision.asked == AUTO:
                listener.note(precision.line)
            tuned = self._run_all(TUNING, self.tuning(), folder, listener, None)
            choices = self._choose(tuned)
            jobs = self.results(choices)

            def save(runs: Sequence[dict[str, Any]]) -> InformedResult:
                result = self._result(choices, runs, len(jobs), command)
                result.save(folder / "result.json")
                return result

            return save(self._run_all(RESULTS, jobs, folder, listener, save))

    def _run_all(self, phase: str, jobs: Sequence[Job], folder: Path, listener: Listener, save: Any) -> list[Any]:
        runs = {job: run for job in jobs if (run := self._finished(job, folder)) is not None}
        listener.started(phase, len(jobs), len(runs))
        for job in jobs:
            if job not in runs:
                runs[job] = self._run_one(job)
                write_json(self._path(job, folder), runs[job])
                if save is not None:
                    save([runs[each] for each in jobs if each in runs])
                listener.run_ended(runs[job])
        return [runs[job] for job in jobs]

    def _run_one(self, job: Job) -> dict[str, Any]:
        record = {**asdict(job), "label": job.label, "identity": self.identity(job)}
        try:
            stage = self._first_stage(job) if job.arm in STAGED else None
            outcome = learn_task(
                self.material,
                job.arm,
                job.limit,
                job.rates,
                job.seed,
                None if stage is None else stage.weights,
                job.carried,
                tuning=job.phase == TUNING,
            )
        except DivergedError as error:
            return {**record, "status": "diverged", "reason": str(error)}
        return {
            **record,
            "status": "done",
            "stage_steps": self.material.stage_steps(job.arm),
            "zero_shot": None if stage is None else stage.zero_shot,
            **outcome,
        }

    def _first_stage(self, job: Job) -> FirstStage:
        key = job.arm, job.stage_rates, job.seed
        if self._stage is None or self._stage[0] != key:
            self._stage = key, first_stage(self.material, *key)
        return self._stage[1]

    def _stage_rates(self, arm: str) -> tuple[str, ...]:
        return self.config.stage_rates if arm in STAGED else ("",)

    def _choose(self, runs: Sequence[Mapping[str, Any]]) -> list[Choice]:
        choices = []
        for arm, limit in itertools.product(self.config.arms, self.config.limits):
            combinations = list(itertools.product(self._stage_rates(arm), self.config.rates))
            tried = []
            for stage_rates, rates in combinations:
                scores = [
                    run["score"]
                    for run in runs
                    if (run["arm"], run["limit"], run["rates"], run["stage_rates"]) == (arm, limit, rates, stage_rates)
                    and run["status"] == "done"
                ]
                if scores:
                    tried.append((len(scores), statistics.fmean(scores), rates, stage_rates))
            if not tried:
                raise ConfigurationError(
                    f"Every rate of the arm {arm} diverged with {limit} examples. Give lower rates."
                )
            # Of the rates that diverged least often, the best; a score can be 0 or less (Matthews).
            _, score, rates, stage_rates = max(tried, key=lambda each: each[:2])
            at_end = len(self.config.rates) > 1 and rates in (self.config.rates[0], self.config.rates[-1])
            choices.append(Choice(arm, limit, rates, stage_rates, score, len(combinations), at_end))
        return choices

    def _result(
        self, choices: Sequence[Choice], runs: Sequence[dict[str, Any]], planned: int, command: str
    ) -> InformedResult:
        material, task = self.material, self.material.task
        return InformedResult(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            config=self.config.to_dict(),
            environment=describe_environment(material.bench.choices()),
            model=material.bench.model_info,
            task={
                "name": task.name,
                "metric": task.primary,
                "classes": list(task.classes),
                "dev": len(task.dev),
                "scored_on": material.bench.settings.evaluate_on,
                "scored": len(getattr(task, material.bench.settings.evaluate_on)),
                "baseline": material.bench.baseline[1],
                "fingerprint": material.task_fingerprint,
            },
            knowledge={**material.knowledge, "shares_head": material.shares_head},
            choices=list(choices),
            runs=list(runs),
            summary=summarise(runs),
            planned_runs=planned,
        )

    def identity(self, job: Job) -> str:
        """Of a run: two runs with the same one are the same."""
        plans = [Arm.parse(text).plan.fingerprint if text else "" for text in (job.rates, job.stage_rates)]
        shared = self.material.identity(job.arm, tuning=job.phase == TUNING)
        content = [RUN_VERSION, shared, job.phase, job.arm, job.carried, job.limit, job.seed, plans]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _path(self, job: Job, folder: Path) -> Path:
        return folder / "runs" / f"{self.identity(job)[:32]}.json"

    def _finished(self, job: Job, folder: Path) -> dict[str, Any] | None:
        path = self._path(job, folder)
        if not path.exists():
            return None
        run = read_json(path)
        if not isinstance(run, dict) or run.get("identity") != self.identity(job) or "status" not in run:
            raise InvalidResultError(f"{path} is not the run that its name says; delete it to repeat the run.")
        # The texts of the rates may be written differently now.
        return {**run, **asdict(job), "label": job.label}
