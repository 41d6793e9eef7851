"""`lr-dist influence`: which training examples a prediction rests on, and which made the model forget."""

from __future__ import annotations

import sys
from dataclasses import asdict

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.options import add_options, read_options
from lr_dist.extras import require_extras, require_libraries
from lr_dist.runs.redact import redact_command
from lr_dist.tracing.settings import TraceSettings


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="Show which examples of one task a prediction of the next task rests on, and which examples of the "
        "next task made the model forget one of the first; for a run of compare with --keep-weights true."
    )
    p.add_argument("--run", type=str | None, help="Output folder of the comparison.")
    p.add_argument("--query", type=str, nargs="*", default=[], help="Texts of the later task; of pairs: 'A || B'.")
    p.add_argument(
        "--forgotten", type=str, nargs="*", default=[], help="Texts of the earlier task whose forgetting is traced."
    )
    p.add_argument(
        "--most-forgotten", type=int, default=0, help="Number of validation examples to add to --forgotten: the worst."
    )
    p.add_argument("--arm", type=str | None, help="Label of the arm whose weights are used; by default the first.")
    p.add_argument("--seed", type=int | None, help="Seed of the run whose weights are used; by default the first.")
    p.add_argument("--stage", type=int | None, help="Number of the later stage, from 2; by default the last.")
    add_options(p, TraceSettings)
    p.add_argument(
        "--output", type=str | None, help="Folder for influence.json and influence.html; RUN/influence by default."
    )
    return p


def run(settings: Namespace) -> int:
    """Compute, print and write."""
    require_extras("tasks")
    require_libraries("influence", "kronfluence", "jinja2")
    from datetime import UTC, datetime

    from lr_dist.cli.terminal import terminal
    from lr_dist.errors import InfluenceError
    from lr_dist.reading import expanded
    from lr_dist.report.influence import influence_view, write_influence_page
    from lr_dist.runs.atomic import write_json
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.sequence.environment import describe_environment
    from lr_dist.sequence.output import checked_folder, locked
    from lr_dist.tracing.kept_run import KeptRun
    from lr_dist.tracing.trace import Tracer

    if settings.run is None:
        raise InfluenceError("Name the comparison: --run FOLDER, the output of compare with --keep-weights true.")
    if not settings.query and not settings.forgotten and settings.most_forgotten <= 0:
        raise InfluenceError("Nothing is asked: give --query TEXT, --forgotten TEXT or --most-forgotten NUMBER.")
    how = read_options(TraceSettings, settings)
    console = terminal()
    use_usable_cores()
    kept = KeptRun.open(settings.run, arm=settings.arm, seed=settings.seed)
    later = len(kept.bench.tasks) if settings.stage is None else settings.stage
    output = checked_folder(settings.output or kept.folder / "influence")
    with locked(output):
        note = lambda line: console.print(f"[dim]{line}[/dim]", soft_wrap=True)  # noqa: E731
        tracer = Tracer(kept, later - 1, how, output / "factors", note)
        for stage, texts in ((tracer.later, settings.query), (tracer.earlier, settings.forgotten)):
            for text in texts:  # before anything is computed
                kept.encode(stage, text)
        predictions = tracer.predictions(settings.query)
        worst = tracer.most_forgotten(settings.most_forgotten)
        forgetting = tracer.forgotten([*((text, None) for text in settings.forgotten), *worst])
        tasks = kept.bench.tasks
        result = {
            "schema_version": 1,
            "kind": "influence",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": redact_command(["lr-dist", *sys.argv[1:]]),
            "run": str(expanded(settings.run)),
            "arm": kept.run["arm"],
            "seed": kept.run["seed"],
            "model": kept.result.model["name"],
            "tasks": {"earlier": tasks[tracer.earlier].name, "later": tasks[tracer.later].name},
            "settings": asdict(how),
            "precision": kept.bench.precision.chosen,
            "predictions": predictions,
            "forgetting": forgetting,
            **tracer.about(),
            "environment": describe_environment(kept.bench.choices()),
        }
        write_json(output / "influence.json", result)
        page = write_influence_page(result, output / "influence.html")
    console.print(influence_view(result))
    console.print(f"Result: {output / 'influence.json'}\nPage: {page}", soft_wrap=True, markup=False)
    console.print("\n".join(["Next:", *next_steps(settings)]), soft_wrap=True, markup=False, highlight=False)
    return 0


def next_steps(settings: Namespace) -> list[str]:
    """What to ask next; the factors are kept, so it is quick."""
    steps = []
    if not settings.most_forgotten:
        steps.append("  --most-forgotten 3: the validation examples whose loss rose most")
    if not settings.query:
        steps.append("  --query TEXT: what a prediction of the later task rests on")
    if settings.arm is None:
        steps.append("  --arm LABEL: the same questions to another arm of the comparison")
    return [*steps, "  leave the examples out of the training data, and compare again: what is said here are estimates"]
