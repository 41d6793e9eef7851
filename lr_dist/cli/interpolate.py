"""`lr-dist interpolate`: weights between two fine-tuned models, and what they score on the old and the new task."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.early import check_texts
from lr_dist.cli.options import add_options
from lr_dist.cli.wording import MODEL, TASKS
from lr_dist.extras import require_extras
from lr_dist.reading import expanded
from lr_dist.runs.redact import redact_command
from lr_dist.sequence.compare_config import CompareConfig

if TYPE_CHECKING:
    from lr_dist.sequence.interpolate_models import Interpolated


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Interpolate between a classifier and the same one after it learned a new task: print the scores "
        "on both tasks along alpha, and write the chosen weights."
    )
    p.add_argument("before", type=str, help="Fine-tuned classifier of the old task: a folder, or a checkpoint file.")
    p.add_argument("after", type=str, help="The same model after it learned the new task, with the new head.")
    p.add_argument("--tasks", type=str, nargs="+", help=f"Old task and new task: {TASKS}.")
    p.add_argument("--model", type=str | None, help=f"Model of checkpoint files: {MODEL}.")
    p.add_argument(
        "--alpha",
        type=str,
        default="auto",
        help="How far to go from before (0) to after (1): a number, one for each depth (linear:first=0.4,last=0.9), or "
        "auto, which chooses on dev.",
    )
    p.add_argument("--weight", type=float, default=0.5, help="Weight of the old task in what auto maximises, 0 to 1.")
    p.add_argument(
        "--evaluations",
        type=int,
        default=36,
        help="For auto: maximum number of alphas by depth to score; with 0, one alpha for all depths is chosen.",
    )
    p.add_argument(
        "--examples",
        type=int,
        default=1000,
        help="Maximum number of rows of validation and of dev to score, for each task.",
    )
    p.add_argument("--max-length", type=int, default=128, help="Maximum number of tokens of a text.")
    add_options(p, CompareConfig, only=["data_dir"])
    p.add_argument(
        "--output", type=str, default="interpolated", help="Folder for the weights, the figure and the result."
    )
    return p


def run(settings: Namespace) -> int:
    """Interpolate, print and write."""
    check_texts(settings.tasks or [], [])
    require_extras("tasks")
    from lr_dist.cli.terminal import terminal
    from lr_dist.errors import ConfigurationError
    from lr_dist.extras import require_libraries
    from lr_dist.methods.interpolation import alpha_profile

    require_libraries("report", "matplotlib")
    if not settings.tasks:
        raise ConfigurationError("Name the old task and the new one: --tasks sst2 qqp.")
    if settings.alpha != "auto":
        alpha_profile(settings.alpha)  # before anything is loaded
    from lr_dist.report.interpolation import alphas_text, interpolation_figure, interpolation_table
    from lr_dist.runs.atomic import write_json, write_text
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.sequence.environment import describe_environment
    from lr_dist.sequence.interpolate_models import ClassifierPair
    from lr_dist.sequence.output import checked_folder, locked

    console = terminal()
    folder = checked_folder(settings.output)
    for name in ("before", "after"):
        if Path(settings[name]).expanduser().resolve() == folder.resolve():
            raise ConfigurationError(f"--output is the folder of the model {name}; give another one.")
    with locked(folder):
        use_usable_cores()
        pair = ClassifierPair(
            settings.before,
            settings.after,
            settings.tasks,
            examples=settings.examples,
            max_length=settings.max_length,
            model=settings.model,
            data_dir=settings.data_dir,
        )
        result = pair.interpolate(settings.alpha, weight=settings.weight, evaluations=settings.evaluations)
        pair.save(folder)
        write_text(folder / "curve.svg", interpolation_figure(result))
        command = redact_command(["lr-dist", *sys.argv[1:]])
        about = {"command": command, "before": settings.before, "after": settings.after}
        write_json(folder / "interpolation.json", {**result.to_dict(), **about, "environment": describe_environment()})
    console.print(interpolation_table(result))
    console.print(alphas_text(result), markup=False, highlight=False, soft_wrap=True)
    console.print(f"Weights: {folder}\nFigure: {folder / 'curve.svg'}", markup=False, soft_wrap=True)
    console.print("\n".join(["Next:", *next_steps(settings, result)]), soft_wrap=True, markup=False, highlight=False)
    return 0


def next_steps(settings: Namespace, result: Interpolated) -> list[str]:
    """What to do with the weights, and how to tell whether the gain is more than chance."""
    values = set(result.alphas.values())
    alpha = f"{values.pop():.3g}" if len(values) == 1 else "auto"
    steps = []
    if Path(settings.before).expanduser().is_dir():
        arms = ["flat:lr=1e-4", f"flat:lr=1e-4 + interpolate:alpha={alpha}"]
        words = ["lr-dist", "compare", "--start", settings.before, "--tasks", *settings.tasks, "--arms", *arms]
        steps.append(f"  {shlex.join(words)}: over several seeds")
    return [*steps, f"  AutoModelForSequenceClassification.from_pretrained({str(expanded(settings.output))!r}): use it"]
