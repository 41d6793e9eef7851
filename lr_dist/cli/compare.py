"""`lr-dist compare`: learn the same task sequence with several arms (rates and methods)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.early import check_texts
from lr_dist.cli.loggers import Tracker, add_logger_option, stages_as_steps
from lr_dist.cli.options import add_config, add_options, read_options
from lr_dist.extras import require_extras
from lr_dist.retention.config import RetentionCompareConfig
from lr_dist.runs.redact import redact_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from lr_dist.sequence.measures import MakeMeasure
    from lr_dist.sequence.observers import Progress


# Fewer seeds give rough intervals.
_SEEDS = 5


def parser() -> ArgumentParser:
    """The command's options; each can also be set in the YAML file given with --config."""
    p = ArgumentParser(
        description="Fine-tune a model on tasks one after the other under several learning-rate distributions and "
        "methods, and show how much it forgets with each."
    )
    add_config(p)
    add_options(p, RetentionCompareConfig)
    p.add_argument("--output", type=str, default="runs/compare", help="Folder for result.json and report.html.")
    add_logger_option(p, "run")
    return p


def run(settings: Namespace) -> int:
    """Run or continue the comparison, print its table, write its report."""
    config = read_options(RetentionCompareConfig, settings)
    check_texts(config.tasks, (*config.distributions, *config.arms))
    require_extras("tasks", "report")
    from lr_dist.cli.terminal import terminal
    from lr_dist.reading import expanded
    from lr_dist.report.page import write_report
    from lr_dist.report.terminal import print_comparison
    from lr_dist.retention.compare import measures_of
    from lr_dist.retention.measure import retention_of
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.sequence.compare import compare
    from lr_dist.sequence.output import checked_folder

    console = terminal()
    folder = checked_folder(settings.output)
    tracker = None if settings.logger is None else Tracker(settings.logger, folder / "logs")
    console.print("[dim]Checking model, tasks, arms and output ...[/dim]")
    with _View(console, tracker, folder) as view:
        fewer = use_usable_cores()
        if fewer:
            view.note(fewer)
        command = redact_command(["lr-dist", *sys.argv[1:]])
        measures: tuple[MakeMeasure, ...] = (
            *measures_of(config),
            *retention_of(
                config.retention, config.start or config.model, folder / "retention", report=_announced(view)
            ),
        )
        result = compare(config, folder, listener=view, command=command, measures=measures)
    report = write_report(result, Path(settings.output) / "report.html")
    print_comparison(result, console)
    result_file = expanded(settings.output) / "result.json"
    console.print(f"Result: {result_file}\nReport: {report}", soft_wrap=True, markup=False)
    console.print("\n".join(["Next:", *next_steps(config, folder)]), soft_wrap=True, markup=False, highlight=False)
    return 0


def next_steps(config: RetentionCompareConfig, folder: Path) -> list[str]:
    """What to do with a finished comparison."""
    steps = []
    if len(config.seeds) < _SEEDS:
        steps.append(f"  the same command with --seeds {' '.join(map(str, range(_SEEDS)))}: only new runs are made")
    if len(config.tasks) > 1:
        if config.keep_weights:
            steps.append(f"  lr-dist influence --run {folder} --most-forgotten 3: which examples made it forget")
        if not config.layer_probe:
            steps.append("  --layer-probe true, with another --output: which layers forgot")
    return [*steps, "  lr-dist evidence: arms tuned on some tasks, compared on others (docs/evidence.md)"]


def _announced(view: _View) -> Callable[[str, int, int], None]:
    """Reports what retention does, once each: it takes a minute in which no step is trained."""
    said: set[str] = set()

    def report(doing: str, done: int, total: int) -> None:
        if doing not in said:
            said.add(doing)
            view.note(f"retention: {doing} ...")

    return report


class _View:
    """Two bars (all runs with the time left, and the current run) and a line for each finished run."""

    def __init__(self, console: Console, tracker: Tracker | None, output: Path) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._tracker = tracker
        self._output = output
        self._bars: Bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, left:"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._all: TaskID | None = None
        self._one: TaskID | None = None
        self._label = ""
        self._done = self._total = 0

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, runs: int, runs_before: int, steps: int) -> None:
        self._done, self._total = runs_before, runs
        if runs_before:
            self._console.print(f"{runs_before} of {runs} runs are there already.")
        if steps:
            self._bars.start()
            self._all = self._bars.add_task(f"{runs - runs_before} runs", total=steps)

    def run_started(self, label: str, seed: int, steps: int) -> None:
        from rich.markup import escape

        self._label = f"{escape(label)}, seed {seed}"
        self._one = self._bars.add_task(self._label, total=steps)

    def progressed(self, progress: Progress) -> None:
        from rich.markup import escape

        assert self._all is not None
        assert self._one is not None
        doing = {"train": "learning", "take over": "taking over"}.get(progress.phase, "testing")
        text = f"{self._label}: {doing} {escape(progress.task)}"
        self._bars.update(self._one, description=text, advance=progress.steps)
        self._bars.advance(self._all, progress.steps)

    def run_ended(self, run: Mapping[str, Any]) -> None:
        from rich.markup import escape

        from lr_dist.runs.numbers import number

        assert self._one is not None
        self._done += 1
        self._bars.remove_task(self._one)
        if run["status"] == "done":
            metrics = run["metrics"]
            retained = "" if metrics["p_o"] is None else f"p_o {number(metrics['p_o'])}, "
            outcome = f"{retained}p_s {number(metrics['p_s'])}, {run['seconds']:.0f} s"
        else:
            outcome = f"[red]{escape(str(run['status']))}[/red]"
        self._console.print(f"{self._done}/{self._total} {self._label}: {outcome}", soft_wrap=True)
        if self._tracker is not None and run["status"] == "done":
            self._track(self._tracker, run)

    def _track(self, tracker: Tracker, run: Mapping[str, Any]) -> None:
        from lr_dist.sequence.result import ComparisonResult

        result = ComparisonResult.load(self._output / "result.json")
        settings = {"arm": run["arm"], "seed": run["seed"], **result.config, "arms": None, "seeds": None}
        kept = {key: value for key, value in settings.items() if isinstance(value, (str, int, float))}
        kept["tasks"] = " > ".join(task["name"] for task in result.tasks)
        steps = stages_as_steps([task["name"] for task in result.tasks], run)
        tracker.log(f"{run['arm']}, seed {run['seed']}", kept, steps)
