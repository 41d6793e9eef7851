"""`lr-dist compare`: learn the same task sequence with several arms (rates and methods)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from lr_dist.extras import require_extras
from lr_dist.runs.redact import redact_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from lr_dist.sequence.observers import Progress


def parser() -> ArgumentParser:
    """The command's options; each can also be set in the YAML file given with --config."""
    p = ArgumentParser(
        description="Fine-tune a model on tasks one after the other under several learning-rate distributions and "
        "methods, and show how much it forgets with each."
    )
    p.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    p.add_argument("--model", type=str, default="minilm", help="minilm (packaged, offline), a hub name, or a path")
    p.add_argument(
        "--tasks",
        type=str | dict[str, Any],
        nargs="+",
        help="tasks in the order of learning: GLUE names, demo-*, TASK@length, TASK@embedding, NAME=FOLDER",
    )
    p.add_argument(
        "--distributions",
        type=str | dict[str, Any],
        nargs="+",
        help="preset names, YAML files, or texts like flat:lr=2e-5 and decay:lr=4e-4,factor=0.7",
    )
    p.add_argument(
        "--arms",
        type=str | dict[str, Any],
        nargs="+",
        help="distributions with methods, or other rates from the second task on: 'flat:lr=1e-4 + l2-sp:alpha=0.01', "
        "'flat:lr=1e-4 | decay:lr=4e-4,factor=0.7'",
    )
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="one run for each arm and seed")
    p.add_argument("--limit", type=int | None, help="training examples per task (default: all)")
    p.add_argument("--epochs", type=int, default=3, help="epochs per task")
    p.add_argument("--batch-size", type=int, default=32, help="batch size")
    p.add_argument("--max-length", type=int, default=128, help="maximum number of tokens per example")
    p.add_argument("--lr", type=float, default=1e-5, help="the optimizer's own rate, for relative distributions")
    p.add_argument("--weight-decay", type=float, default=0.0, help="AdamW's weight decay")
    p.add_argument("--warmup", type=float, default=0.1, help="length of the warm-up, as a share of each task's steps")
    p.add_argument("--schedule", type=str, default="cosine", help="after the warm-up: cosine, linear or constant")
    p.add_argument(
        "--precision", type=str, default="auto", help="auto (the faster one on this machine), 32-true or bf16-mixed"
    )
    p.add_argument(
        "--evaluate-on", type=str, default="validation", help="validation (for reported results) or dev (for searching)"
    )
    p.add_argument(
        "--method",
        type=str,
        default="finetune",
        help="method for all --distributions: finetune (none), or l2-sp:alpha=0.01",
    )
    p.add_argument("--dev-size", type=int | None, help="number of train examples to set aside as dev")
    p.add_argument("--data-dir", type=str | None, help="folder with GLUE as parquet (or LR_DIST_DATA)")
    p.add_argument("--data-seed", type=int, default=0, help="seed for the examples that --limit draws")
    p.add_argument("--output", type=str, default="runs/compare", help="folder for result.json and report.html")
    return p


def run(settings: Namespace) -> int:
    """Run or continue the comparison, print its table, write its report."""
    require_extras("tasks", "report")
    from lr_dist.cli.terminal import terminal
    from lr_dist.reading import expanded
    from lr_dist.report.page import write_report
    from lr_dist.report.terminal import print_comparison
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.sequence.arm import methods_of, with_methods
    from lr_dist.sequence.compare import compare
    from lr_dist.sequence.compare_config import CompareConfig
    from lr_dist.sequence.settings import SequenceSettings

    console = terminal()
    config = CompareConfig(
        model=settings.model,
        tasks=tuple(settings.tasks or ()),
        distributions=tuple(with_methods(spec, methods_of(settings.method)) for spec in settings.distributions or ()),
        seeds=tuple(settings.seeds),
        limit=settings.limit,
        dev_size=settings.dev_size,
        data_dir=settings.data_dir,
        data_seed=settings.data_seed,
        settings=SequenceSettings(**{field.name: settings[field.name] for field in fields(SequenceSettings)}),
        arms=tuple(settings.arms or ()),
    )
    console.print("[dim]Checking model, tasks, arms and output ...[/dim]")
    with _View(console) as view:
        fewer = use_usable_cores()
        if fewer:
            view.note(fewer)
        result = compare(config, settings.output, listener=view, command=redact_command(["lr-dist", *sys.argv[1:]]))
    report = write_report(result, Path(settings.output) / "report.html")
    print_comparison(result, console)
    result_file = expanded(settings.output) / "result.json"
    console.print(f"Result: {result_file}\nReport: {report}", soft_wrap=True, markup=False)
    return 0


class _View:
    """Two bars (all runs with the time left, and the current run) and a line for each finished run."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
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
        doing = "learning" if progress.phase == "train" else "testing"
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
            outcome = f"p_o {number(metrics['p_o'])}, p_s {number(metrics['p_s'])}, {run['seconds']:.0f} s"
        else:
            outcome = f"[red]{escape(str(run['status']))}[/red]"
        self._console.print(f"{self._done}/{self._total} {self._label}: {outcome}", soft_wrap=True)
