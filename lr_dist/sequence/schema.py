"""The schema of result and run files: a file that was altered by hand is refused as a whole, with the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lr_dist.checks import is_number, is_whole
from lr_dist.errors import InvalidResultError, shown
from lr_dist.sequence.metrics import METRICS, OF_ONE_TASK

# Far more than a real comparison has; a figure with more could not be drawn in reasonable time.
MAX_TASKS, MAX_LAYERS, MAX_NAME = 200, 10_000, 2_000
# Scores lie in -1 ... 1, and above a baseline near 1 in large negative numbers.
_LARGEST = 1e12


def check_result(data: Mapping[str, Any], source: str | Path) -> None:
    """Check the content of a result file whose kind and version are already checked.

    Raises:
        InvalidResultError: an invalid entry; the message names its place in the file and its value.
    """
    check = _Check(source)
    for key in ("created", "command"):
        check.text(data[key], key, longest=10**6)
    config = check.mapping(data["config"], "config")
    check.listed(check.key(config, "seeds", "config"), "config.seeds")
    environment = check.mapping(data["environment"], "environment")
    check.mapping(check.key(environment, "versions", "environment"), "environment.versions")
    # Earlier versions did not record it.
    if environment.get("precision") is not None:
        precision = check.mapping(environment["precision"], "environment.precision")
        for key in ("chosen", "reason"):
            check.text(check.key(precision, key, "environment.precision"), f"environment.precision.{key}")
    model = check.mapping(data["model"], "model")
    for key in ("name", "fingerprint"):
        check.text(check.key(model, key, "model"), f"model.{key}")
    if "start" in model:
        start = check.mapping(model["start"], "model.start")
        for key in ("folder", "head"):
            check.text(check.key(start, key, "model.start"), f"model.start.{key}")
    names, baselines = [], []
    tasks = check.listed(data["tasks"], "tasks", most=MAX_TASKS)
    for i, task in enumerate(tasks):
        names.append(check.task(task, f"tasks[{i}]"))
        baselines.append(task["baseline"])
    if not names:
        check.refuse("tasks", "empty, and a sequence has one or more")
    labels = []
    for i, entry in enumerate(check.listed(data["arms"], "arms")):
        labels.append(check.arm(entry, f"arms[{i}]"))
    for i, run in enumerate(check.listed(data["runs"], "runs")):
        check_run(run, len(names), source, f"runs[{i}]")
        if run["arm"] not in labels:
            check.refuse(f"runs[{i}].arm", f"{shown(run['arm'])}, which is not in `arms`")
    for i, summary in enumerate(check.listed(data["summary"], "summary")):
        check.summary(summary, f"summary[{i}]", len(names))
        if summary["arm"] not in labels:
            check.refuse(f"summary[{i}].arm", f"{shown(summary['arm'])}, which is not in `arms`")
    check.count(data["planned_runs"], "planned_runs")


def check_run(run: Any, tasks: int, source: str | Path, where: str = "run") -> None:
    """Check one finished run of `tasks` tasks.

    Raises:
        InvalidResultError: an invalid entry; the message names its place in the file and its value.
    """
    check = _Check(source)
    run = check.mapping(run, where)
    check.text(check.key(run, "arm", where), f"{where}.arm")
    check.count(check.key(run, "seed", where), f"{where}.seed")
    status = check.key(run, "status", where)
    if status == "diverged":
        check.text(check.key(run, "reason", where), f"{where}.reason", longest=10**5)
        return
    if status != "done":
        check.refuse(f"{where}.status", f"{shown(status)}, and not done or diverged")
    check.matrix(check.key(run, "matrix", where), f"{where}.matrix", tasks)
    for name in ("metrics", "metrics_above_baseline"):
        metrics = check.mapping(check.key(run, name, where), f"{where}.{name}")
        for metric in METRICS:
            value = check.key(metrics, metric, f"{where}.{name}")
            if value is not None or not _may_be_absent(metric, tasks):
                check.number(value, f"{where}.{name}.{metric}")
    for name in ("seconds", "train_seconds"):
        check.number(check.key(run, name, where), f"{where}.{name}", least=0)


def _may_be_absent(metric: str, tasks: int) -> bool:
    """Whether the metric can be undefined: of a single task, and the forward transfer of a start."""
    return metric == "forward_transfer" or (tasks == 1 and metric not in OF_ONE_TASK)


class _Check:
    """Checks of one file; each returns the value, or raises an error with its place in the file."""

    def __init__(self, source: str | Path) -> None:
        self._source = str(source)

    def refuse(self, where: str, what: str) -> None:
        raise InvalidResultError(
            f"{self._source} was altered or cut: {where} is {what}. Restore the file, or run the comparison again."
        )

    def key(self, data: Mapping[str, Any], key: str, where: str) -> Any:
        if key not in data:
            self.refuse(f"{where}.{key}", "missing")
        return data[key]

    def mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self.refuse(where, f"{shown(value)}, and not a mapping")
        return value  # type: ignore[no-any-return]

    def listed(self, value: Any, where: str, most: int = 10**6) -> Sequence[Any]:
        if not isinstance(value, list) or len(value) > most:
            self.refuse(where, f"{shown(value)}, and not a list" if not isinstance(value, list) else "too long")
        return value  # type: ignore[no-any-return]

    def text(self, value: Any, where: str, longest: int = MAX_NAME) -> str:
        if not isinstance(value, str) or len(value) > longest:
            self.refuse(where, f"{shown(value)}, and not a text of up to {longest:,} letters")
        return value  # type: ignore[no-any-return]

    def number(self, value: Any, where: str, least: float = -_LARGEST) -> float:
        # Neither NaN nor a whole number of thousands of digits, which cannot become a float, is in this range.
        if not is_number(value) or not least <= value <= _LARGEST:
            self.refuse(where, f"{shown(value)}, and not a number of a possible size")
        return value  # type: ignore[no-any-return]

    def count(self, value: Any, where: str) -> int:
        if not is_whole(value, 0, 2**63):
            self.refuse(where, f"{shown(value)}, and not a whole number from 0")
        return value  # type: ignore[no-any-return]

    def matrix(self, value: Any, where: str, tasks: int) -> None:
        rows = self.listed(value, where)
        if len(rows) != tasks + 1 or any(not isinstance(row, list) or len(row) != tasks for row in rows):
            self.refuse(where, f"not {tasks + 1} rows of {tasks} scores")
        for i, row in enumerate(rows):
            for j, score in enumerate(row):
                self.number(score, f"{where}[{i}][{j}]")

    def task(self, value: Any, where: str) -> str:
        task = self.mapping(value, where)
        for key in ("name", "metric", "fingerprint", "scored_on"):
            self.text(self.key(task, key, where), f"{where}.{key}")
        self.text(self.key(task, "note", where), f"{where}.note", longest=10**5)
        self.number(self.key(task, "baseline", where), f"{where}.baseline")
        examples = self.mapping(self.key(task, "examples", where), f"{where}.examples")
        for split in ("train", task["scored_on"]):
            if self.count(self.key(examples, split, f"{where}.examples"), f"{where}.examples.{split}") < 1:
                self.refuse(f"{where}.examples.{split}", "0")
        return str(task["name"])

    def arm(self, value: Any, where: str) -> str:
        entry = self.mapping(value, where)
        for key in ("label", "fingerprint"):
            self.text(self.key(entry, key, where), f"{where}.{key}")
        for i, method in enumerate(self.listed(self.key(entry, "methods", where), f"{where}.methods")):
            self.text(method, f"{where}.methods[{i}]")
        stages = self.listed(self.key(entry, "stages", where), f"{where}.stages", most=MAX_TASKS)
        if not stages:
            self.refuse(f"{where}.stages", "empty")
        for i, stage in enumerate(stages):
            self.stage(stage, f"{where}.stages[{i}]")
        return str(entry["label"])

    def stage(self, value: Any, where: str) -> None:
        rates = self.mapping(self.key(self.mapping(value, where), "rates", where), f"{where}.rates")
        if not 1 <= len(rates) <= MAX_LAYERS:
            self.refuse(f"{where}.rates", f"{len(rates)} groups")
        for group, rate in rates.items():
            self.number(rate, f"{where}.rates.{group}", least=0)

    def summary(self, value: Any, where: str, tasks: int) -> None:
        summary = self.mapping(value, where)
        self.text(self.key(summary, "arm", where), f"{where}.arm")
        for key in ("runs", "diverged"):
            self.count(self.key(summary, key, where), f"{where}.{key}")
        if not summary["runs"]:
            return
        for name in ("metrics", "metrics_above_baseline"):
            metrics = self.mapping(self.key(summary, name, where), f"{where}.{name}")
            for metric in METRICS:
                place = f"{where}.{name}.{metric}"
                value = self.key(metrics, metric, f"{where}.{name}")
                if value is None and _may_be_absent(metric, tasks):
                    continue
                cell = self.mapping(value, place)
                self.number(self.key(cell, "mean", place), f"{place}.mean")
                self.number(self.key(cell, "sd", place), f"{place}.sd", least=0)
                self.count(self.key(cell, "n", place), f"{place}.n")
        matrix = self.mapping(self.key(summary, "matrix", where), f"{where}.matrix")
        for key in ("mean", "sd"):
            self.matrix(self.key(matrix, key, f"{where}.matrix"), f"{where}.matrix.{key}", tasks)
