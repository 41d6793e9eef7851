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
        "--most-forgotten",
        type=int,
        default=0,
        help="Add this many validation examples to --forgotten: those whose loss rose most.",
    )
    p.add_argument(
        "--remove",
        type=int,
        default=0,
        help="Number of examples to leave out: the later task is learned again without those that did most to the "
        "forgetting, and without as many random ones, and the scores on the earlier task are compared.",
    )
    p.add_argument("--draws", type=int, default=5, help="How many times --remove does so, with other random examples.")
    p.add_argument(
        "--pretraining",
        type=str | None,
        help="File of pre-training text, one text a line: shows which of these texts --query rests on.",
    )
    p.add_argument(
        "--head",
        type=str | None,
        help="With --pretraining: masked-LM head of the pre-trained model (head.safetensors of lr-dist retention); by "
        "default the model's own, or one that is fitted on the texts that are no candidates.",
    )
    p.add_argument("--arm", type=str | None, help="Label of the arm whose weights are used; by default the first.")
    p.add_argument("--seed", type=int | None, help="Seed of the run whose weights are used; by default the first.")
    p.add_argument(
        "--stage",
        type=int | None,
        help="Number of the later stage, from 2 (with --pretraining from 1); by default the last.",
    )
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

    from lr_dist.checks import check_whole
    from lr_dist.cli.terminal import terminal
    from lr_dist.errors import InfluenceError
    from lr_dist.reading import expanded
    from lr_dist.report.influence import influence_view, write_influence_page
    from lr_dist.retention.text_config import RetentionConfig
    from lr_dist.runs.atomic import write_json
    from lr_dist.runs.machine import use_usable_cores
    from lr_dist.sequence.environment import describe_environment
    from lr_dist.sequence.output import checked_folder, locked
    from lr_dist.tracing.kept_run import KeptRun
    from lr_dist.tracing.pretraining import Pretraining
    from lr_dist.tracing.removal import check_removal, remove_and_learn
    from lr_dist.tracing.trace import Tracer, checked_stage

    if settings.run is None:
        raise InfluenceError("Name the comparison: --run FOLDER, the output of compare with --keep-weights true.")
    if not settings.query and not settings.forgotten and settings.most_forgotten <= 0 and not settings.remove:
        raise InfluenceError(
            "Nothing is asked: give --query TEXT, --forgotten TEXT, --most-forgotten NUMBER or --remove NUMBER."
        )
    if settings.pretraining is None and settings.head is not None:
        raise InfluenceError(
            "--head is the head of a masked LM, which --pretraining FILE needs. Give both, or neither."
        )
    if settings.pretraining is not None and (settings.forgotten or settings.most_forgotten > 0 or settings.remove):
        raise InfluenceError(
            "With --pretraining it is shown which of its texts a prediction rests on: give --query TEXT. What is "
            "forgotten of the text itself, `lr-dist retention` measures."
        )
    how = read_options(TraceSettings, settings)
    console = terminal()
    use_usable_cores()
    kept = KeptRun.open(settings.run, arm=settings.arm, seed=settings.seed)
    later = len(kept.bench.tasks) if settings.stage is None else settings.stage
    output = checked_folder(settings.output or kept.folder / "influence")
    with locked(output):
        note = lambda line: console.print(f"[dim]{line}[/dim]", soft_wrap=True)  # noqa: E731
        for text in settings.query:  # before anything is computed
            kept.encode(checked_stage(kept, later - 1, pretraining=settings.pretraining is not None), text)
        pretraining = None
        if settings.pretraining is not None:
            texts = RetentionConfig(
                text=settings.pretraining, head=settings.head, texts=how.candidates, seed=how.draw_seed
            )
            pretraining = Pretraining.of(
                kept, texts, masks=how.masks, batch_size=how.batch_size, folder=output, note=note
            )
        tracer = Tracer(kept, later - 1, how, output / "factors", note, pretraining=pretraining)
        for text in settings.forgotten:
            kept.encode(tracer.earlier, text)
        if settings.remove:
            check_whole("draws", settings.draws, 1, error=InfluenceError)
            check_removal(kept, settings.remove, min(how.candidates, len(kept.bench.tokens[tracer.later].train)))
        predictions = tracer.predictions(settings.query)
        worst = tracer.most_forgotten(settings.most_forgotten)
        forgetting = tracer.forgotten([*((text, None) for text in settings.forgotten), *worst])
        removal = None
        if settings.remove:
            ranked = tracer.forgetting_makers()
            removal = remove_and_learn(
                kept, tracer.later, ranked, settings.remove, settings.draws, report=note
            ).to_dict()
        result = {
            "schema_version": 1,
            "kind": "influence",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": redact_command(["lr-dist", *sys.argv[1:]]),
            "run": str(expanded(settings.run)),
            "arm": kept.run["arm"],
            "seed": kept.run["seed"],
            "model": kept.result.model["name"],
            "tasks": {"earlier": tracer.name(tracer.earlier), "later": tracer.name(tracer.later)},
            "settings": asdict(how),
            "precision": kept.bench.precision.chosen,
            "predictions": predictions,
            "forgetting": forgetting,
            "removal": removal,
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
