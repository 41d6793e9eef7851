"""The rows of a comparison's table, for the terminal and the HTML page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lr_dist.report.standing import Standings
from lr_dist.runs.numbers import ABSENT, number
from lr_dist.sequence.metrics import above_baseline, sequence_metrics, was_learned
from lr_dist.sequence.result import ComparisonResult

NAMES = {
    "p_o": "p_o",
    "p_s": "p_s",
    "average_accuracy": "average",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "forward_transfer": "forward transfer",
    # Of a linear probe: a new head on the frozen encoder.
    "probe_p_o": "p_o, new head",
    "probe_forgetting": "the encoder forgets",
    # Of the pre-training: nats a token of a text, with a refitted masked-LM head.
    "retention_lost": "nats lost",
}
_MEASURED = ("probe_p_o", "probe_forgetting", "retention_lost")


@dataclass(frozen=True)
class ArmRow:
    """The row of one arm.

    Attributes:
        label: the arm's label; the last row is the majority class.
        runs: "3", or "2 (1 diverged)".
        cells: metric -> mean and spread of the score, and the same rescaled to 0 = majority class and 1 = perfect.
        not_learned: tasks whose score right after learning is not clearly above the majority class.
        at_equal: p_o minus that of the flat rates at equal p_s; empty without such a comparison.
        kind: see `lr_dist.report.standing.Standing`.
        seconds: mean training time of a run, as if no stage had been taken over from another arm.
        kept: what methods keep from stage to stage.
        numbers: column -> the number to sort by.
    """

    label: str
    runs: str
    cells: dict[str, tuple[str, str]]
    not_learned: tuple[str, ...]
    at_equal: str = ""
    kind: str = ""
    seconds: str = ""
    kept: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


def table_rows(result: ComparisonResult, standing: Standings | None = None) -> list[ArmRow]:
    """One row per arm, in the given order, then one for always predicting the majority class.

    Args:
        result: the comparison.
        standing: of the arms against the flat rates, for `at_equal`.
    """
    rows = [_row(result, summary, standing) for summary in result.summary]
    baseline = [task["baseline"] for task in result.tasks]
    matrix, from_start = [baseline] * (len(baseline) + 1), "start" in result.model
    constant = sequence_metrics(matrix, from_start=from_start)
    relative = sequence_metrics(above_baseline(matrix, baseline), from_start=from_start)
    cells = {name: (number(constant.get(name)), number(relative.get(name))) for name in NAMES}
    return [*rows, ArmRow("majority class", "", cells, ())]


def columns(result: ComparisonResult, *, wide: bool = True) -> list[str]:
    """The metrics to show; only the main ones in a narrow table, and of a single task only its score.

    With two tasks, backward transfer is left out, because it equals minus the forgetting. Forward transfer says little
    if each task has its own head, and a start has none.
    """
    measured = [name for name in _MEASURED if any(name in summary["metrics"] for summary in result.summary)]
    if len(result.tasks) == 1:
        return ["p_s", *measured]
    main = ["p_o", "p_s", "average_accuracy", "forgetting"]
    rest = [] if len(result.tasks) == 2 else ["backward_transfer"]
    rest += [] if "start" in result.model else ["forward_transfer"]
    return main + rest + measured if wide else main + measured


def task_lines(result: ComparisonResult) -> list[str]:
    """A line for each task: metric, number of examples, and score of the majority class."""
    learned = ["start" in result.model, *[False] * (len(result.tasks) - 1)]
    return [_task_line(task, before) for task, before in zip(result.tasks, learned, strict=True)]


def _task_line(task: Mapping[str, Any], learned_before: bool) -> str:
    examples = task["examples"]
    scored = task["scored_on"]
    learn = "learned by the start" if learned_before else f"{examples['train']:,} to learn from"
    text = (
        f"{task['name']}: {task['metric']} on {examples[scored]:,} {scored} examples, "
        f"{learn}; majority class {number(task['baseline'])}"
    )
    return f"{text}; {task['note']}" if task["note"] else text


def spread(cell: Mapping[str, float] | None) -> str:
    """Mean and sample standard deviation; a single run has no spread, and an undefined metric has neither."""
    if cell is None:
        return ABSENT
    return f"{number(cell['mean'])} ± {number(cell['sd'])}" if cell["n"] > 1 else number(cell["mean"])


def not_learned(result: ComparisonResult, summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that an arm with runs scores no better than the majority class right after learning them."""
    mean = summary["matrix"]["mean"]
    return tuple(
        task["name"]
        for j, task in enumerate(result.tasks)
        if not was_learned(mean[j + 1][j], task["baseline"], task["examples"][task["scored_on"]])
    )


def _row(result: ComparisonResult, summary: Mapping[str, Any], standing: Standings | None) -> ArmRow:
    runs = f"{summary['runs']}" + (f" ({summary['diverged']} diverged)" if summary["diverged"] else "")
    if not summary["runs"]:
        return ArmRow(summary["arm"], runs, dict.fromkeys(NAMES, ("-", "-")), ())
    metrics, relative = summary["metrics"], summary["metrics_above_baseline"]
    missed = not_learned(result, summary)
    cells = {name: (spread(metrics.get(name)), spread(relative.get(name))) for name in NAMES}
    own = standing.of.get(summary["arm"]) if standing is not None else None
    finished = [run for run in result.runs if run["arm"] == summary["arm"] and run["status"] == "done"]
    seconds = statistics.fmean(run["train_seconds"] for run in finished)
    size = max(run.get("held_bytes", 0) for run in finished)
    means = {name: metrics[name]["mean"] for name in NAMES if metrics.get(name) is not None}
    numbers = means | {"seconds": seconds, "kept": size}
    if own is not None and own.value is not None:
        numbers["at_equal"] = own.value.difference.mean
    return ArmRow(
        summary["arm"],
        runs,
        cells,
        missed,
        at_equal=own.text if own is not None else "",
        kind=own.kind if own is not None else "",
        seconds=f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s",
        kept=_size(size, max(run.get("held_examples", 0) for run in finished)),
        numbers=numbers,
    )


def _size(size: int, examples: int) -> str:
    text = f"{size / 2**20:,.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:.1f} MiB" if size else "-"
    return f"{text}, {examples:,} examples" if examples else text
