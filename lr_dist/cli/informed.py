"""`lr-dist informed`: pre-train on prototypes of knowledge, then learn a task from few examples."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.early import check_texts
from lr_dist.cli.options import add_config, add_options, read_options
from lr_dist.extras import require_extras, require_libraries
from lr_dist.knowledge.informed.config import InformedConfig
from lr_dist.runs.numbers import duration, number
from lr_dist.runs.redact import redact_command

if TYPE_CHECKING:
    from rich.console import Console

    from lr_dist.knowledge.informed.result import InformedResult


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Make prototypes from knowledge, pre-train on them, and learn a task from few examples: against no "
        "prototypes, shuffled labels, prototypes in the training set, and unrelated text."
    )
    add_config(p)
    add_options(p, InformedConfig)
    p.add_argument("--output", type=str, default="runs/informed", help="Folder for runs, result.json and report.html.")
    return p


def run(settings: Namespace) -> int:
    """Run or continue the experiment, print its table, write its page."""
    config = read_options(InformedConfig, settings)
    check_texts([config.task, config.unrelated], [*config.rates, *config.stage_rates])
    require_libraries("knowledge", "networkx")
    require_extras("tasks", "report")
    from lr_dist.cli.terminal import terminal
    from lr_dist.knowledge.informed.experiment import Experiment
    from lr_dist.reading import expanded
    from lr_dist.report.informed import terminal_table, verdict, write_informed
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.sequence.output import checked_folder

    console = terminal()
    output = checked_folder(settings.output)
    lines = _Lines(console)
    if fewer := use_usable_cores():
        lines.note(fewer)
    experiment = Experiment(config)
    knowledge = experiment.material.knowledge
    lines.note(
        f"{knowledge['facts']} facts of {knowledge['source']}: {knowledge['examples']} prototypes "
        f"({knowledge['kind']}); {knowledge['leakage']['removed']} left out because they are in dev or the test texts"
    )
    result = experiment.run(output, listener=lines, command=redact_command(["lr-dist", *sys.argv[1:]]))
    page = write_informed(result, Path(output) / "report.html")
    console.print(terminal_table(result))
    console.print(verdict(result), markup=False, highlight=False)
    console.print(f"Result: {expanded(output) / 'result.json'}\nReport: {page}", soft_wrap=True, markup=False)
    console.print("\n".join(["Next:", *next_steps(config, result)]), soft_wrap=True, markup=False, highlight=False)
    return 0


def next_steps(config: InformedConfig, result: InformedResult) -> list[str]:
    """What to do with a finished experiment."""
    steps = []
    if any(choice.at_end for choice in result.choices):
        steps.append("  --rates and --stage-rates beyond the lowest or highest one: a chosen rate is at an end")
    if "unrelated" not in config.arms:
        steps.append("  --arms none informed shuffled mixed unrelated: is it the knowledge, or only more steps?")
    return [
        *steps,
        "  the same command with more --seeds or other --limits: only new runs are made",
        "  lr-dist prototypes --knowledge ... --output FOLDER: the prototypes as a task, --tasks NAME=FOLDER",
    ]


class _Lines:
    """A line for each run, with the time that is left in its phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._done = self._before = self._total = 0

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, phase: str, runs: int, runs_before: int) -> None:
        self._began = time.monotonic()
        self._done = self._before = runs_before
        self._total = runs
        self.note(f"{phase}: {runs} runs" + (f", {runs_before} are there already" if runs_before else ""))

    def run_ended(self, run: Mapping[str, Any]) -> None:
        self._done += 1
        left = (time.monotonic() - self._began) / (self._done - self._before) * (self._total - self._done)
        outcome = number(run["score"]) if run["status"] == "done" else run["status"]
        self.note(
            f"  {self._done}/{self._total} {run['label']}, {run['limit']} examples, {run['rates']}, "
            f"seed {run['seed']}: {outcome}; {duration(left)} left here"
        )
