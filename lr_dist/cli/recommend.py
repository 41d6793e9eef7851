"""`lr-dist recommend`: which preset or rate to begin with, and why."""

from __future__ import annotations

import shlex

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.early import check_texts
from lr_dist.cli.options import add_options
from lr_dist.cli.wording import MODEL, TASKS
from lr_dist.extras import require_extras
from lr_dist.sequence.compare_config import CompareConfig


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Name a preset or a rate to begin with, the evidence behind it, and how far your case is from it."
    )
    p.add_argument("--model", type=str, default="minilm", help=f"Pre-trained model: {MODEL}.")
    p.add_argument("--tasks", type=str, nargs="+", required=True, help=f"Tasks in the order of learning: {TASKS}.")
    p.add_argument("--examples", type=int, required=True, help="Training examples of each task.")
    p.add_argument("--batch-size", type=int, default=32, help="Training examples per optimizer step.")
    p.add_argument(
        "--start",
        type=str | None,
        help="Folder of a fine-tuned model whose task is to be kept; it takes the place of --model.",
    )
    p.add_argument(
        "--scan",
        action="store_true",
        help="Learn the tasks with five flat rates (some minutes), score on dev, and scale the plan to the best one.",
    )
    p.add_argument("--epochs", type=int, default=2, help="Passes over each task's training examples, in the scan.")
    p.add_argument("--seed", type=int, default=0, help="Seed of the scan.")
    add_options(p, CompareConfig, only=["data_dir"])
    return p


def run(settings: Namespace) -> int:
    """Print the recommendation, and what to compare it with."""
    from lr_dist.advice import recommend
    from lr_dist.cli.terminal import terminal
    from lr_dist.distribution import LRDistribution

    check_texts(settings.tasks, [])
    console = terminal(highlight=False)
    advice = recommend(
        settings.model, settings.tasks, settings.examples, start=settings.start, batch_size=settings.batch_size
    )
    if settings.scan:
        require_extras("tasks")
        from lr_dist.advice.scan import FACTORS, Scanned, scan
        from lr_dist.runs.machine import use_usable_cores
        from lr_dist.sequence.settings import SequenceSettings

        def told(result: Scanned) -> None:
            console.print(f"flat:lr={result}", markup=False)

        use_usable_cores()
        console.print(f"Scanning {len(FACTORS)} flat rates (0 is the majority class, 1 no error):", markup=False)
        advice, _ = scan(
            advice,
            settings.start or settings.model,
            settings=SequenceSettings(epochs=settings.epochs, batch_size=settings.batch_size),
            data_dir=settings.data_dir,
            seed=settings.seed,
            listener=told,
        )
        console.print()
    console.print(advice.text(), markup=False, soft_wrap=True)
    if len(settings.tasks) > 1 or settings.scan:
        flat = str(LRDistribution.flat(float(f"{advice.level:.3g}")))
        arms = dict.fromkeys([advice.arm, flat, *(f"{flat} + {method}" for method in advice.methods)])
        words = ["lr-dist", "compare", "--model", settings.start or settings.model, "--tasks", *settings.tasks]
        words += ["--limit", str(settings.examples), "--batch-size", str(settings.batch_size), "--arms", *arms]
        console.print(
            f"\nCompare it with the flat rate of the same level:\n  {shlex.join(words)}", markup=False, soft_wrap=True
        )
    else:
        console.print("\nThe same command with --scan tunes the flat rate and scales the plan to it.", markup=False)
    return 0
