"""`lr-dist evidence`: tune arms on some task sequences, and compare them on others."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.early import check_texts
from lr_dist.cli.options import add_config, add_options, read_options
from lr_dist.evidence.config import EvidenceConfig
from lr_dist.extras import require_extras
from lr_dist.runs.numbers import duration, number
from lr_dist.runs.redact import redact_command

if TYPE_CHECKING:
    from rich.console import Console

    from lr_dist.evidence.protocol import Step
    from lr_dist.sequence.observers import Progress


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Measure what forgets less than the tuned flat rate: tune every arm on some task sequences, fix "
        "it, and compare all on other sequences over several seeds."
    )
    add_config(p)
    add_options(p, EvidenceConfig)
    p.add_argument("--output", type=str, default="runs/evidence", help="Folder for all runs, the table and the page.")
    p.add_argument("--only-report", type=bool, default=False, help="Run nothing; write table and page of what is done.")
    p.add_argument(
        "--preset",
        type=str | None,
        default=None,
        help="Name of an arm: write it as a preset into OUTPUT, if it beats the tuned control.",
    )
    p.add_argument("--preset-name", type=str | None, default=None, help="The preset's name; by default the arm's.")
    return p


def run(settings: Namespace) -> int:
    """Run or continue the protocol, print its table, write its page."""
    require_extras("tasks", "report")
    from lr_dist.cli.terminal import clean, terminal
    from lr_dist.errors import ConfigurationError
    from lr_dist.evidence.page import write_page
    from lr_dist.evidence.protocol import Evidence
    from lr_dist.evidence.summary import outcome_of
    from lr_dist.evidence.table import markdown, terminal_table, verdict
    from lr_dist.runs.atomic import write_text
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.sequence.output import checked_folder

    console = terminal()
    output = checked_folder(settings.output)
    config = read_options(EvidenceConfig, settings)
    texts = [arm.written(each) for arm in config.arms().values() for each in arm.combinations()]
    check_texts(itertools.chain(*config.search, *config.held_out), [config.first, *texts])
    evidence = Evidence(config, output)
    command = redact_command(["lr-dist", *sys.argv[1:]])
    if settings.only_report:
        choices = evidence.choices()
        if not choices:
            raise ConfigurationError(f"The tuning in {output} is not finished, so there is nothing to report yet.")
    else:
        use_usable_cores()
        choices = evidence.run(lambda step, number, of: _Lines(console, step, number, of), command=command)
    outcome = outcome_of(evidence, choices, command)
    outcome.save(output / "evidence.json")
    write_text(output / "evidence.md", clean(markdown(outcome)) + "\n")
    page = write_page(outcome, output / "evidence.html")
    console.print(terminal_table(outcome))
    console.print(verdict(outcome), markup=False, highlight=False)
    console.print(f"Page: {page}\nTable: {output / 'evidence.md'}", soft_wrap=True, markup=False)
    if settings.preset is None:
        console.print(
            "Next:\n  --only-report true --preset ARM: write an arm that is better as a preset\n"
            "  another --output with other held_out sequences or another --model: does it hold there, too?",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    else:
        from lr_dist.evidence.preset import preset_of

        preset = preset_of(evidence.config, outcome, settings.preset, settings.preset_name or settings.preset)
        path = write_text(output / f"{preset.name}.yaml", preset.to_yaml())
        console.print(f"Preset: {path}; use it as --distributions {path}", soft_wrap=True, markup=False)
    return 0


class _Lines:
    """A line for each run, with the time that is left in its comparison: an evidence run often has no terminal."""

    def __init__(self, console: Console, step: Step, number: int, of: int) -> None:
        self._console = console
        self._title = f"{step.part} {number}/{of}, {' > '.join(str(task) for task in step.tasks)}"
        self._began = time.monotonic()
        self._done = self._before = self._total = 0
        self._label = ""

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def started(self, runs: int, runs_before: int, steps: int) -> None:
        self._done = self._before = runs_before
        self._total = runs
        if runs > runs_before:
            self.note(f"{self._title}: {runs - runs_before} runs, {steps:,} steps")

    def run_started(self, label: str, seed: int, steps: int) -> None:
        self._label = f"{label.partition(' | ')[2]}, seed {seed}"

    def progressed(self, progress: Progress) -> None: ...

    def run_ended(self, run: Mapping[str, Any]) -> None:
        self._done += 1
        spent = time.monotonic() - self._began
        left = spent / (self._done - self._before) * (self._total - self._done)
        metrics = run.get("metrics")
        outcome = f"p_o {number(metrics['p_o'])}, p_s {number(metrics['p_s'])}" if metrics else str(run["status"])
        self.note(f"  {self._done}/{self._total} {self._label}: {outcome}; {duration(left)} left here")
