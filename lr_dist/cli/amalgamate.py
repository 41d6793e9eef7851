"""`lr-dist amalgamate`: several teachers into one student that knows all their labels, from unlabelled text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.early import check_texts
from lr_dist.cli.options import add_config, add_options, read_options
from lr_dist.extras import require_extras
from lr_dist.knowledge.amalgamation.config import AmalgamationConfig
from lr_dist.runs.redact import redact_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from lr_dist.knowledge.amalgamation.pipeline import Amalgamated


def parser() -> ArgumentParser:
    """The command's options; each can also be set in the YAML file given with --config."""
    p = ArgumentParser(
        description="Train one student that knows the labels of several fine-tuned classifiers, from unlabelled text."
    )
    add_config(p)
    add_options(p, AmalgamationConfig)
    p.add_argument("--output", type=str, default="amalgamated", help="Folder of the student and of amalgamation.json.")
    return p


def run(settings: Namespace) -> int:
    """Score, train, save and say what to do next; the same command continues after an interruption."""
    config = read_options(AmalgamationConfig, settings)
    check_texts([], [config.settings.rates])
    require_extras("tasks")
    from lr_dist.cli.terminal import terminal
    from lr_dist.knowledge.amalgamation.pipeline import RESULT, amalgamate
    from lr_dist.reading import expanded
    from lr_dist.runs.machine import use_usable_cores

    console = terminal()
    console.print("[dim]Checking teachers, texts, student and output ...[/dim]")
    view = _view(console)
    with view:
        fewer = use_usable_cores()
        if fewer:
            console.print(fewer, markup=False, highlight=False, soft_wrap=True)
        command = redact_command(["lr-dist", *sys.argv[1:]])
        result = amalgamate(config, settings.output, listener=view, command=command)
    _print(result, console)
    folder = expanded(settings.output)
    console.print(
        f"Student: {folder}\nResult: {folder / RESULT}\n{_page(folder / RESULT)}\n\nNext:\n"
        f'  AutoModelForSequenceClassification.from_pretrained("{folder}")  # transformers, labels in id2label\n'
        f"  lr-dist layers --model {folder}  # its layers, to fine-tune it with a rate for each\n"
        "  the same command with --target uhc or vkd and another --output: the baselines, from the same texts",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _page(result: Path) -> str:
    """Write the page, and say where it is, or why there is none: the training needs less than its page."""
    from lr_dist.errors import MissingExtraError
    from lr_dist.report.amalgamation import write_amalgamation_page

    try:
        content = json.loads(result.read_text(encoding="utf-8"))
        return f"Page: {write_amalgamation_page(content, result.with_suffix('.html'))}"
    except MissingExtraError as error:
        return f"No page: {error}"


def _print(result: Amalgamated, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("teacher", "labels", "certainty", "most certain", "seconds")
    for each in result.teachers:
        table.add_row(
            escape(Path(each["name"]).name),
            str(len(each["labels"])),
            f"{each['mean_certainty']:.3f}",
            f"{each['most_certain']:.0%}",
            f"{each['seconds']:.0f}" if each["scored_now"] else "kept",
        )
    console.print(table)
    trained = result.trained
    losses = ", ".join(f"{loss:.4f}" for loss in trained.losses)
    agreement = "" if result.agreement is None else f" Same label as the target on {result.agreement:.1%} of them."
    console.print(
        f"{len(result.labels)} labels, {result.texts:,} texts, {result.held_out:,} of them held out. Loss on these "
        f"after each epoch: {losses}; epoch {trained.best} is kept.{agreement}{_learned(result)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _learned(result: Amalgamated) -> str:
    parts = {"which teacher's labels they have": result.learned.between, "which of these": result.learned.within}
    said = [f"{share:.0%} of {what}" for what, share in parts.items() if share is not None]
    return f" Learned of what the targets say about them: {', '.join(said)}." if said else ""


def _view(console: Console) -> Any:
    """A bar for each teacher and one for the training, as a listener and a context.

    In a file or a pipe, the training has a line at the start of each epoch.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from lr_dist.knowledge.amalgamation.pipeline import AmalgamationListener

    class View(AmalgamationListener):
        def __init__(self) -> None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("left:"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar: TaskID | None = None
            self._epochs = -1

        def __enter__(self) -> View:
            self._bars.start()
            return self

        def __exit__(self, *exception: object) -> None:
            self._bars.stop()

        def scoring_started(self, teacher: Any, texts: int) -> None:
            self._bar = self._bars.add_task(f"scores of {escape(Path(teacher.name).name)}", total=texts)

        def scored(self, texts: int) -> None:
            assert self._bar is not None
            self._bars.advance(self._bar, texts)

        def scoring_ended(self, teacher: Any, scores: Any) -> None:
            assert self._bar is not None
            self._bars.remove_task(self._bar)
            self._bar = None
            known = len(set(scores.ids)) - scores.computed
            kept = f", {known:,} were kept" if known else ""
            console.print(
                f"{Path(teacher.name).name}: {scores.computed:,} texts scored in {scores.seconds:.0f} s{kept}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

        def training_step(self, step: int, steps: int, losses: tuple[float, ...]) -> None:
            if self._bar is None:
                self._bar = self._bars.add_task("student", total=steps)
            held = f", held-out loss {losses[-1]:.4f}" if losses else ""
            self._bars.update(self._bar, completed=step, description=f"student{held}")
            if not console.is_terminal and len(losses) > self._epochs:
                self._epochs = len(losses)
                console.print(f"student: {step:,} of {steps:,} steps{held}", highlight=False, soft_wrap=True)

    return View()
