"""Compare arms: the same task sequence under each of them, over several seeds.

Every finished run is a separate file, written atomically. So an interrupted comparison continues where it stopped: runs
that are in the output folder are not repeated. Stages that arms share are trained once (`shared_stages.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from lr_dist._distribution.sanity import warn_of_rates
from lr_dist.errors import ConfigurationError, DivergedError, InvalidResultError, MixedHardwareWarning
from lr_dist.methods import Needs
from lr_dist.runs.atomic import write_json
from lr_dist.runs.precision import AUTO, FULL, MIXED
from lr_dist.sequence.arm import Arm, parse_arms
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.compare_config import CompareConfig
from lr_dist.sequence.environment import describe_environment, peak_memory_mb
from lr_dist.sequence.heavy_tail import check_settings, needs_weights, with_rates_of
from lr_dist.sequence.keep_stages import KeepStages, weights_folder
from lr_dist.sequence.linear_probe import LinearProbe
from lr_dist.sequence.measures import MakeMeasure
from lr_dist.sequence.metrics import above_baseline, sequence_metrics
from lr_dist.sequence.observers import Observer, Progress, ReportProgress, TestAfterStages
from lr_dist.sequence.output import checked_folder, locked
from lr_dist.sequence.result import ComparisonResult, read_json, upgraded_run
from lr_dist.sequence.runner import check_methods_of_start, count_steps, learns_jointly, run_sequence
from lr_dist.sequence.schema import check_run
from lr_dist.sequence.settings import RUN_VERSION
from lr_dist.sequence.shared_stages import SharedStages
from lr_dist.sequence.stage_store import StageStore, stage_bytes
from lr_dist.sequence.summary import summarise_runs
from lr_dist.tasks import Task

# Of a configuration: what may change between two calls in one folder. A start's folder may have moved.
_MAY_CHANGE = ("arms", "seeds", "start", "linear_probe", "retention")
# Of an environment: where these differ, two runs of one seed round otherwise.
MACHINE = ("processor", "accelerator", "fused_adamw", "packed")


class Listener(Protocol):
    """Receives the progress of a comparison."""

    def note(self, text: str) -> None:
        """A line about the comparison, such as a choice for this machine."""

    def started(self, runs: int, runs_before: int, steps: int) -> None:
        """Everything is checked; `steps` training steps are left in `runs - runs_before` runs."""

    def run_started(self, label: str, seed: int, steps: int) -> None: ...

    def progressed(self, progress: Progress) -> None: ...

    def run_ended(self, run: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Comparison:
    """A checked configuration with everything loaded; errors that can be found in advance are found here."""

    config: CompareConfig
    bench: Bench
    arms: dict[str, Arm]
    measures: tuple[MakeMeasure, ...] = ()

    @classmethod
    def prepare(cls, config: CompareConfig, measures: Sequence[MakeMeasure] = ()) -> Comparison:
        """Load and check model, tasks and arms; cheap checks come first.

        Args:
            config: the configuration.
            measures: what is measured in every run, beside what the configuration asks for.

        Raises:
            LRDistError: an invalid model, task, arm or setting, each with its named error.
        """
        specs = config.all_arms
        by_weights = any(needs_weights(spec) for spec in specs)
        for spec in specs:
            check_settings(spec)
        arms = {} if by_weights else parse_arms(specs)
        bench = Bench.prepare(
            config.model,
            config.tasks,
            config.settings,
            limit=config.limit,
            dev_size=config.dev_size,
            data_dir=config.data_dir,
            data_seed=config.data_seed,
            start=config.start,
            eval_limit=config.eval_limit,
        )
        if by_weights:
            arms = parse_arms([with_rates_of(spec, bench.backbone) for spec in specs])
        for arm in arms.values():
            methods = arm.build_methods()
            check_methods_of_start(bench, methods)
            for method in methods:
                method.check_tasks(bench.tokens)
            for distribution in arm.plan.distributions:
                warn_of_rates(distribution, bench.model_info["num_layers"], bench.settings.lr, "AdamW")
        asked = (*((LinearProbe,) if config.linear_probe else ()), *measures)
        return cls(replace(config, settings=bench.settings), bench, arms, asked)

    def run(self, output: Path, *, command: str, listener: Listener) -> ComparisonResult:
        """Run what is not in `output` yet, and update `output/result.json` after every run.

        Raises:
            OutputInUseError: another process uses `output`.
            ConfigurationError: `output` holds another comparison.

        Warns:
            MixedHardwareWarning: the comparison was started in a precision that this machine would not choose, or on
                another machine.
        """
        with locked(output):
            comparison = self._in_precision_of(output)
            comparison._refuse_another(output)
            if comparison is not self:
                ours, first = self.bench.precision, comparison.bench.precision.chosen
                warnings.warn(
                    f"The comparison in {output} was started in {first}; this machine would choose {ours.chosen} "
                    f"({ours.reason}). It continues in {first}, because runs in two precisions cannot be compared. "
                    "Give another --output to compare in the other one.",
                    MixedHardwareWarning,
                    stacklevel=3,
                )
            return comparison._run(output, command, listener)

    def _in_precision_of(self, output: Path) -> Comparison:
        """This comparison, with `auto` replaced by the precision in which the one in `output` was started.

        Runs in different precisions cannot be compared, so the first choice holds on every machine.
        """
        path = output / "result.json"
        ours = self.bench.precision
        if ours.asked != AUTO or not path.exists():
            return self
        first = ComparisonResult.load(path).config.get("precision")
        if first == ours.chosen or first not in (FULL, MIXED):
            return self
        kept = replace(ours, chosen=first, reason=f"as the comparison was started; {ours.reason}")
        bench = self.bench.in_precision(kept)
        return replace(self, config=replace(self.config, settings=bench.settings), bench=bench)

    def _run(self, output: Path, command: str, listener: Listener) -> ComparisonResult:
        runs_folder = checked_folder(output / "runs")
        done = dict(self._finished(runs_folder))
        plan = [(label, seed) for seed in self.config.seeds for label in self.arms]
        left = [key for key in plan if key not in done]
        if left:
            self._warn_of_other_machines(done.values())
            if self.bench.precision.asked == AUTO:
                listener.note(self.bench.precision.line)
        watched = [*(make().needs for make in self.measures), *([KeepStages.needs] if self.config.keep_weights else [])]
        needs = functools.reduce(operator.or_, watched, Needs())
        shared = left if self.config.keep_stages else ()
        stages = SharedStages(output / "stages", self.bench, self.arms, shared, needs)
        if line := stages.describe():
            listener.note(line)
        given = self.bench.first_trained
        if self.config.keep_weights:
            listener.note(self._describe_kept(output, done))
        steps = {
            label: count_steps(self.bench.tokens, self.config.settings, jointly=learns_jointly(arm), given=given)
            for label, arm in self.arms.items()
        }
        listener.started(len(plan), len(plan) - len(left), sum(steps[label] for label, _ in left))
        result = self._result(done, command, len(plan))
        result.save(output / "result.json")
        for label, seed in stages.order if self.config.keep_stages else left:
            if self.config.keep_stages:
                stages.begin((label, seed))
            listener.run_started(label, seed, steps[label])
            keep = [KeepStages(self.kept_weights(output, label, seed))] if self.config.keep_weights else []
            run = self._run_one(label, seed, listener, stages.store if self.config.keep_stages else None, keep)
            write_json(runs_folder / self._file_name(label, seed), run)
            done[label, seed] = run
            result = self._result(done, command, len(plan))
            result.save(output / "result.json")
            listener.run_ended(run)
        stages.end()
        return result

    def kept_weights(self, output: Path, label: str, seed: int) -> Path:
        """The folder with the weights after each stage of a run, if they are kept."""
        return weights_folder(output, self._identity(label, seed))

    def _describe_kept(self, output: Path, done: Collection[tuple[str, int]]) -> str:
        size = stage_bytes(self.bench.backbone.state_dict()) * len(self.bench.tasks) / 2**20
        line = f"weights: about {size:,.0f} MiB for each run are kept in {output / 'weights'}"
        missing = [
            f"{label}, seed {seed}" for label, seed in done if not self.kept_weights(output, label, seed).is_dir()
        ]
        if not missing:
            return line
        return (
            f"{line}. Of runs that were finished without --keep-weights there are none ({'; '.join(missing)}); delete "
            f"their files in {output / 'runs'} to make them again"
        )

    def _run_one(
        self, label: str, seed: int, listener: Listener, store: StageStore | None, keep: Sequence[Observer] = ()
    ) -> dict[str, Any]:
        run: dict[str, Any] = {
            "identity": self._identity(label, seed),
            "arm": label,
            "seed": seed,
            "started": _now(),
            "environment": describe_environment(self.bench.choices()),
        }
        try:
            test = TestAfterStages(listener.progressed)
            measures = [make() for make in self.measures]
            observers = [ReportProgress(listener.progressed), *measures, *keep]
            outcome = run_sequence(self.bench, self.arms[label], seed, test, observers, store=store)
        except DivergedError as error:
            return {**run, "status": "diverged", "reason": str(error)}
        matrix, from_start = outcome.full_matrix(), self.bench.start is not None
        relative = above_baseline(matrix, self.bench.baseline)
        return {
            **run,
            "status": "done",
            "matrix": outcome.matrix,
            "scores": outcome.scores,
            "methods": outcome.methods,
            **({"measures": {each.name: each.result() for each in measures}} if measures else {}),
            "metrics": sequence_metrics(matrix, from_start=from_start)
            | {name: value for each in measures for name, value in each.metrics().items()},
            "metrics_above_baseline": sequence_metrics(relative, from_start=from_start),
            "seconds": round(outcome.seconds, 3),
            "train_seconds": round(outcome.train_seconds, 3),
            "taken_over": list(outcome.taken_over),
            "taken_over_seconds": round(outcome.taken_over_seconds, 3),
            "held_bytes": outcome.held_bytes,
            "held_examples": outcome.held_examples,
            "train_steps": outcome.train_steps,
            "tokens": outcome.tokens,
            "process_peak_memory_mb": peak_memory_mb(),
        }

    def _identity(self, label: str, seed: int) -> str:
        """The identity of a run: two runs with the same one are the same run. The arm's label is not part of it."""
        content = {
            "version": RUN_VERSION,
            "model": self.bench.model_info["fingerprint"],
            "tasks": [(task.name, task.identity) for task in self.bench.tasks],
            "settings": self.config.settings.identity(self.arms[label].methods),
            "distribution": self.arms[label].plan.fingerprint,
            "seed": seed,
            **({} if self.bench.start is None else {"start": self.bench.start.fingerprint}),
            **({"measures": self._measure_identities} if self.measures else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def _measure_identities(self) -> dict[str, Any]:
        """Asked of one copy of each measure, since every run has the same: making one can load a file or a model."""
        return {each.name: each.identity() for each in (make() for make in self.measures)}

    def _file_name(self, label: str, seed: int) -> str:
        return f"{self._identity(label, seed)[:32]}.json"

    def _finished(self, folder: Path) -> list[tuple[tuple[str, int], dict[str, Any]]]:
        found = []
        for label in self.arms:
            for seed in self.config.seeds:
                path = folder / self._file_name(label, seed)
                if not path.exists():
                    continue
                run = read_json(path)
                if not isinstance(run, dict) or run.get("identity") != self._identity(label, seed):
                    raise InvalidResultError(f"{path} is not the run that its name says; delete it to repeat the run.")
                run = upgraded_run(run, label)
                check_run(run, len(self.bench.tasks), path)
                found.append(((label, seed), run))
        return found

    def _refuse_another(self, output: Path) -> None:
        path = output / "result.json"
        if not path.exists():
            return
        old = ComparisonResult.load(path)
        before = _fixed(old.config, old.model, [task["fingerprint"] for task in old.tasks])
        # As read back from a file, with lists instead of tuples.
        config = json.loads(json.dumps(self.config.to_dict()))
        now = _fixed(config, self.bench.model_info, [task.fingerprint for task in self.bench.tasks])
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            detail = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
            raise ConfigurationError(
                f"{output} holds another comparison ({detail}). Give another --output, or the same settings; only "
                "arms and seeds may change."
            )

    def _warn_of_other_machines(self, runs: Collection[Mapping[str, Any]]) -> None:
        """Warn if finished runs are from another machine: it rounds differently, so a run gives other numbers there."""
        now = describe_environment(self.bench.choices())
        for key in MACHINE:
            before = {repr(run["environment"][key]) for run in runs if key in run.get("environment", ())}
            before -= {repr(now[key])}
            if before:
                warnings.warn(
                    f"This comparison is continued on another machine: {key} {', '.join(sorted(before))} "
                    f"in runs that are finished, {now[key]!r} now. The machines round differently, and their "
                    "seconds cannot be compared.",
                    MixedHardwareWarning,
                    stacklevel=5,
                )

    def _result(self, done: Mapping[tuple[str, int], dict[str, Any]], command: str, planned: int) -> ComparisonResult:
        runs = [done[label, seed] for label in self.arms for seed in self.config.seeds if (label, seed) in done]
        return ComparisonResult(
            created=_now(),
            command=command,
            config=self.config.to_dict(),
            environment=describe_environment(self.bench.choices()),
            model=self.bench.model_info,
            tasks=[
                self._describe_task(task, baseline)
                for task, baseline in zip(self.bench.tasks, self.bench.baseline, strict=True)
            ],
            arms=[
                arm.to_dict(self.config.settings.lr, self.bench.model_info["num_layers"]) for arm in self.arms.values()
            ],
            runs=runs,
            summary=[summarise_runs(label, [run for run in runs if run["arm"] == label]) for label in self.arms],
            planned_runs=planned,
        )

    def _describe_task(self, task: Task, baseline: float) -> dict[str, Any]:
        return {
            "name": task.name,
            "kind": task.kind,
            "metric": task.primary,
            "classes": list(task.classes),
            "examples": {name: len(getattr(task, name)) for name in ("train", "dev", "validation")},
            "scored_on": self.config.settings.evaluate_on,
            "baseline": baseline,
            "note": task.note,
            "fingerprint": task.fingerprint,
        }


def compare(
    config: CompareConfig,
    output: str | Path,
    *,
    listener: Listener,
    command: str = "",
    measures: Sequence[MakeMeasure] = (),
) -> ComparisonResult:
    """Check everything, then run the comparison in `output`; see `Comparison`."""
    folder = checked_folder(output)
    return Comparison.prepare(config, measures).run(folder, command=command, listener=listener)


def _fixed(config: Mapping[str, Any], model: Mapping[str, Any], data: Sequence[str]) -> dict[str, Any]:
    """The settings that must not change between two calls in one folder; arms and seeds may be added."""
    kept = {key: value for key, value in config.items() if key not in _MAY_CHANGE}
    head = model["start"]["head"] if "start" in model else None
    return {**kept, "weights": model["fingerprint"], "head of the start": head, "data": list(data)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
