"""`lr-dist search`: search for distributions that forget less; `search status`, `report`, `export` show a study."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from lr_dist.extras import require_extras, require_libraries

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import Console, RenderableType
    from rich.live import Live

    from lr_dist.search.trials.config import SearchConfig
    from lr_dist.search.trials.summary import StudySummary


def parser() -> ArgumentParser:
    """The command's options; each can also be set in the YAML file given with --config."""
    p = ArgumentParser(
        description="Search for learning-rate distributions that forget less, on this machine or together with others."
    )
    p.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    p.add_argument("--model", type=str, default="minilm", help="minilm (packaged, offline), a hub name, or a path")
    p.add_argument("--tasks", type=str | dict[str, Any], nargs="+", help="tasks in the order of learning")
    p.add_argument(
        "--sequences", type=list[list[str]] | None, help="several task sequences, in YAML: [[sst2, qqp], [qqp, sst2]]"
    )
    p.add_argument("--space", type=str, default="knots", help="grouped, knots, decay or flat")
    p.add_argument("--low", type=float, default=1e-7, help="smallest rate")
    p.add_argument("--high", type=float, default=1e-3, help="largest rate")
    p.add_argument("--knots", type=int, default=4, help="number of rates over the layers, for --space knots")
    p.add_argument("--factor-low", type=float, default=0.3, help="smallest factor, for --space decay")
    p.add_argument("--factor-high", type=float, default=1.0, help="largest factor, for --space decay")
    p.add_argument(
        "--fixed", type=dict[str, float], default={}, help="rates that are fixed, not searched: {embeddings: 0}"
    )
    p.add_argument("--objective", type=str, default="relative", help="relative, sum, constrained or pareto")
    p.add_argument(
        "--tolerance", type=float, default=0.01, help="for constrained: how far p_s may be below the tuned flat rate's"
    )
    p.add_argument(
        "--reference-rates",
        type=list[float],
        default=[2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3],
        help="flat rates to try for the reference",
    )
    p.add_argument("--trials", type=int, default=50, help="number of trials of the study, over all workers and starts")
    p.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="one run per seed in each trial; the trial's value is their mean",
    )
    p.add_argument("--queued", type=str | dict[str, Any], nargs="*", default=[], help="distributions to try first")
    p.add_argument("--sampler-seed", type=int | None, help="seed that makes the draws of a single worker repeatable")
    p.add_argument("--limit", type=int | None, help="training examples per task (default: all)")
    p.add_argument("--epochs", type=int, default=3, help="epochs per task")
    p.add_argument("--batch-size", type=int, default=32, help="batch size")
    p.add_argument("--max-length", type=int, default=128, help="maximum number of tokens per example")
    p.add_argument("--lr", type=float, default=1e-5, help="the optimizer's own rate, for relative presets")
    p.add_argument("--weight-decay", type=float, default=0.0, help="AdamW's weight decay")
    p.add_argument("--warmup", type=float, default=0.1, help="length of the warm-up, as a share of each task's steps")
    p.add_argument("--schedule", type=str, default="cosine", help="after the warm-up: cosine, linear or constant")
    p.add_argument(
        "--precision", type=str, default="auto", help="auto (the faster one on each machine), 32-true or bf16-mixed"
    )
    p.add_argument(
        "--evaluate-on", type=str, default="dev", help="dev (for searching) or validation (for reported results)"
    )
    p.add_argument(
        "--method", type=str, default="finetune", help="method against forgetting: finetune (none), or l2-sp:alpha=0.01"
    )
    p.add_argument("--dev-size", type=int | None, help="number of train examples to set aside as dev")
    p.add_argument("--data-dir", type=str | None, help="folder with GLUE as parquet (or LR_DIST_DATA)")
    p.add_argument("--data-seed", type=int, default=0, help="seed for the examples that --limit draws")
    p.add_argument("--workers", type=int, default=1, help="number of worker processes on this machine")
    p.add_argument("--output", type=str, default="runs/search", help="folder of the default storage")
    _where(p)
    return p


def nest(parser: ArgumentParser) -> None:
    """Add status, report and export; jsonargparse needs the outer level first."""
    status = ArgumentParser(description="Show the state of a study.")
    export = ArgumentParser(description="Write a study's trials as CSV.")
    report = ArgumentParser(description="Write a study's HTML report: one self-contained page.")
    report.add_argument("name", type=str | None, nargs="?", default=None, metavar="STUDY", help="as --study")
    for p in (status, report, export):
        p.add_argument("--output", type=str, default="runs/search", help="folder of the default storage")
        _where(p)
    report.add_argument("--output-file", type=str, default="report.html", help="the HTML file to write")
    report.add_argument(
        "--layers", type=int | None, help="number of layers for which to draw the rates (default: the model's)"
    )
    export.add_argument("--csv", type=str, default="trials.csv", help="the CSV file to write")
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND", required=False)
    for name, sub in (("status", status), ("report", report), ("export", export)):
        subcommands.add_subcommand(name, sub, help=sub.description)


def _where(p: ArgumentParser) -> None:
    p.add_argument(
        "--storage",
        type=str | None,
        help="sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DB, journal:FILE, grpc://HOST:PORT (default: a SQLite "
        "file in the output folder)",
    )
    p.add_argument("--study", type=str, default="search", help="the study's name")


def run(settings: Namespace) -> int:
    """Search, or show a study."""
    if settings.get("subcommand") == "report":
        require_libraries("search", "optuna", "jinja2", "matplotlib", "scipy")
    elif settings.get("subcommand") is not None:
        require_libraries("search", "optuna")
    if settings.get("subcommand") == "status":
        return _status(settings.status)
    if settings.get("subcommand") == "report":
        return _report(settings.report)
    if settings.get("subcommand") == "export":
        return _export(settings.export)
    require_extras("search", "tasks")
    from lr_dist.cli.terminal import terminal
    from lr_dist.runs.precision import AUTO
    from lr_dist.search.engine.storage import default_storage
    from lr_dist.search.trials.session import Search
    from lr_dist.sequence.output import checked_folder

    console = terminal()
    config = _config(settings)
    storage = settings.storage or default_storage(checked_folder(settings.output))
    search = Search(config, storage, settings.study, settings.workers)
    console.print("[dim]Checking storage, model, tasks and space ...[/dim]")
    precision = search.prepare()
    if precision.asked == AUTO:
        console.print(precision.line, markup=False, highlight=False, soft_wrap=True)
    with SearchView(console) as view:
        search.run(view)
    return _status(settings)


def _config(settings: Namespace) -> SearchConfig:
    from lr_dist.errors import ConfigurationError
    from lr_dist.search.space import Space
    from lr_dist.search.trials.config import Goal, SearchConfig
    from lr_dist.sequence.arm import methods_of
    from lr_dist.sequence.settings import SequenceSettings

    if settings.tasks and settings.sequences:
        raise ConfigurationError("Give --tasks for one sequence or --sequences for several, not both.")
    sequences = settings.sequences or ([settings.tasks] if settings.tasks else [])
    return SearchConfig(
        model=settings.model,
        sequences=tuple(tuple(sequence) for sequence in sequences),
        space=Space(
            settings.space,
            settings.low,
            settings.high,
            settings.knots,
            settings.factor_low,
            settings.factor_high,
            settings.fixed,
        ),
        goal=Goal(settings.objective, settings.tolerance, tuple(settings.reference_rates)),
        trials=settings.trials,
        seeds=tuple(settings.seeds),
        limit=settings.limit,
        dev_size=settings.dev_size,
        data_dir=settings.data_dir,
        data_seed=settings.data_seed,
        settings=SequenceSettings(**{field.name: settings[field.name] for field in fields(SequenceSettings)}),
        queued=tuple(settings.queued),
        sampler_seed=settings.sampler_seed,
        methods=methods_of(settings.method),
    )


def _open(settings: Namespace) -> Any:
    from lr_dist.reading import expanded
    from lr_dist.search.engine.storage import default_storage, open_existing, storage_errors
    from lr_dist.search.trials.study import load_study

    storage = open_existing(settings.storage or default_storage(expanded(settings.output)))
    with storage_errors(storage):
        return load_study(storage, settings.study)


def _status(settings: Namespace) -> int:
    from lr_dist.cli.terminal import terminal
    from lr_dist.search.trials.summary import StudySummary

    terminal().print(overview(StudySummary.of(_open(settings))))
    return 0


def _report(settings: Namespace) -> int:
    from lr_dist.cli.terminal import clean
    from lr_dist.reading import expanded
    from lr_dist.search.engine.storage import default_storage, storage_errors
    from lr_dist.search.page.report import write_report

    settings.study = settings.name or settings.study
    storage = settings.storage or default_storage(expanded(settings.output))
    study = _open(settings)
    with storage_errors(storage):
        page = write_report(study, settings.output_file, storage=storage, num_layers=settings.layers)
    print(clean(f"Report: {page}"))
    return 0


def _export(settings: Namespace) -> int:
    from lr_dist.cli.terminal import clean
    from lr_dist.runs.atomic import is_file_or_new
    from lr_dist.search.page.export import write_csv

    rows = write_csv(_open(settings), settings.csv)
    # Beside the rows, where these go to standard output.
    stream = sys.stdout if is_file_or_new(Path(settings.csv)) else sys.stderr
    print(clean(f"{rows} trials: {settings.csv}"), file=stream)
    return 0


class SearchView:
    """A live table of the study."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live: Live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> SearchView:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def update(self, study: Any, workers: int) -> None:
        """Show the study as it is now."""
        from lr_dist.search.trials.summary import StudySummary

        self._live.update(overview(StudySummary.of(study), workers))

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, markup=False)


def overview(summary: StudySummary, workers: int | None = None) -> RenderableType:
    """A study's state, and its best trial so far."""
    from rich.table import Table
    from rich.text import Text

    from lr_dist.search.trials.precision import mixed

    table = Table(title=Text(f"Study {summary.name}"), title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row(
        "trials",
        f"{summary.done} of {summary.slots} done ({summary.complete} complete, {summary.pruned} pruned, "
        f"{summary.failed} failed), {summary.running} running, {summary.waiting} waiting",
    )
    if workers is not None:
        table.add_row("workers", str(workers))
    if summary.done < summary.slots:
        table.add_row("time left", _duration(summary.seconds_left))
    if len(summary.precisions) > 1:
        table.add_row("warning", Text(mixed(summary.precisions)))
    if summary.best is not None:
        for title, text in _best(summary.best).items():
            table.add_row(Text(title), Text(text))
    return table


def _best(trial: FrozenTrial) -> Mapping[str, str]:
    from lr_dist.search.trials.summary import distribution_of, not_learned

    rows = {"best value": f"{trial.values[0]:.4f} (trial {trial.number})"}
    # The studies of the references keep less.
    if "distribution" in trial.user_attrs:
        rows["distribution"] = str(distribution_of(trial))
    for sequence in trial.user_attrs.get("sequences", ()):
        scores = f"p_o {sequence['p_o']:.3f}, p_s {sequence['p_s']:.3f} (majority class {sequence['baseline'][-1]:.3f})"
        rows[" > ".join(sequence["tasks"])] = scores
    missing = not_learned(trial)
    if missing:
        rows["warning"] = (
            f"no better than the majority class: {', '.join(missing)}. A rate that learns nothing forgets nothing; "
            "widen the bounds, or use --objective relative or constrained."
        )
    return rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known before the first trial has ended"
    minutes = round(seconds / 60)
    return f"about {minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"about {max(1, minutes)} min"
