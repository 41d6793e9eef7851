"""`lr-dist search`: search for distributions that forget less; `search status`, `report`, `export` show a study."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lr_dist.cli.early import check_texts
from lr_dist.cli.loggers import Tracker, add_logger_option
from lr_dist.cli.options import add_config, add_options, read_options
from lr_dist.cli.studies import add_storage_options, load_existing_study, storage_or_default
from lr_dist.errors import ConfigurationError, MissingExtraError
from lr_dist.extras import require_extras, require_libraries
from lr_dist.runs.numbers import duration, number
from lr_dist.search.trials.config import SearchConfig
from lr_dist.sequence.compare_config import CompareConfig

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import Console, RenderableType
    from rich.live import Live

    from lr_dist.search.trials.summary import StudySummary


def parser() -> ArgumentParser:
    """The command's options; each can also be set in the YAML file given with --config."""
    p = ArgumentParser(
        description="Search for learning-rate distributions that forget less, on this machine or together with others."
    )
    add_config(p)
    add_options(p, CompareConfig, only=["tasks"])
    add_options(p, SearchConfig)
    p.add_argument("--workers", type=int, default=1, help="Number of worker processes on this machine.")
    add_logger_option(p, "trial")
    _add_study_options(p)
    return p


def nest(parser: ArgumentParser) -> None:
    """Add status, report and export; jsonargparse needs the outer level first."""
    status = ArgumentParser(description="Show the state of a study.")
    export = ArgumentParser(description="Write a study's trials as CSV.")
    report = ArgumentParser(description="Write a study's HTML report: one self-contained page.")
    report.add_argument(
        "name", type=str | None, nargs="?", default=None, metavar="STUDY", help="Name of the study, instead of --study."
    )
    for p in (status, report, export):
        _add_study_options(p)
    report.add_argument("--output-file", type=str, default="report.html", help="HTML file to write.")
    report.add_argument(
        "--layers", type=int | None, help="Number of layers for which to draw the rates. By default the model's."
    )
    export.add_argument("--csv", type=str, default="trials.csv", help="CSV file to write.")
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND", required=False)
    for name, sub in (("status", status), ("report", report), ("export", export)):
        subcommands.add_subcommand(name, sub, help=sub.description)


def _add_study_options(p: ArgumentParser) -> None:
    add_storage_options(p)
    p.add_argument("--study", type=str, default="search", help="Name of the study.")


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
    config = _config(settings)
    check_texts(itertools.chain(*config.sequences), (*config.queued, config.first))
    require_extras("search", "tasks")
    from lr_dist.cli.terminal import terminal
    from lr_dist.runs.precision import AUTO
    from lr_dist.search.engine.storage import default_storage
    from lr_dist.search.trials.session import Search
    from lr_dist.sequence.output import checked_folder

    console = terminal()
    folder = checked_folder(settings.output)
    storage = settings.storage or default_storage(folder)
    search = Search(config, storage, settings.study, settings.workers, folder)
    tracker = None if settings.logger is None else Tracker(settings.logger, folder / "logs")
    console.print("[dim]Checking storage, model, tasks and space ...[/dim]")
    precision = search.prepare()
    if precision.asked == AUTO:
        console.print(precision.line, markup=False, highlight=False, soft_wrap=True)
    for note in search.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    with SearchView(console, tracker, _open(settings)) as view:
        search.run(view)
        view.track(_open(settings))
    _status(settings)
    _conclude(settings, storage, folder)
    return 0


def _conclude(settings: Namespace, storage: str, folder: Path) -> None:
    """Write the page, and show what to do next."""
    from lr_dist.cli.terminal import clean
    from lr_dist.search.engine.storage import storage_errors
    from lr_dist.search.page.commands import next_commands
    from lr_dist.search.page.note import write_note
    from lr_dist.search.page.report import write_report

    study = _open(settings)
    with storage_errors(storage):
        write_note(study)
        try:
            # Several studies can have one folder.
            name = re.sub(r"[^\w.-]+", "-", settings.study)
            page = write_report(study, folder / f"{name}.html", storage=storage)
            commands = next_commands(study, storage)
        except MissingExtraError as error:
            # The search itself needs less than its page.
            print(clean(f"No report: {error}"))
            return
    print(clean(f"Report: {page}"))
    print("Next:")
    for command in commands:
        print(clean(f"  {command}"))


def _config(settings: Namespace) -> SearchConfig:
    if settings.tasks and settings.sequences:
        raise ConfigurationError("Give --tasks for one sequence or --sequences for several, not both.")
    settings.sequences = settings.sequences or ([settings.tasks] if settings.tasks else [])
    return read_options(SearchConfig, settings)


def _open(settings: Namespace) -> Any:
    return load_existing_study(settings.storage, settings.output, settings.study)


def _status(settings: Namespace) -> int:
    from lr_dist.cli.terminal import terminal
    from lr_dist.search.trials.summary import StudySummary

    terminal().print(overview(StudySummary.of(_open(settings))))
    return 0


def _report(settings: Namespace) -> int:
    from lr_dist.cli.terminal import clean
    from lr_dist.search.engine.storage import storage_errors
    from lr_dist.search.page.report import write_report

    settings.study = settings.name or settings.study
    storage = storage_or_default(settings.storage, settings.output)
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
    """A live table of the study; in a file or a pipe, a line whenever something has ended.

    Args:
        console: where.
        tracker: gets the trials that end from now on.
        study: as it is now.
    """

    def __init__(self, console: Console, tracker: Tracker | None = None, study: Any = None) -> None:
        from rich.live import Live

        self._console = console
        self._tracker = tracker
        self._tracked = set() if tracker is None else {trial.number for trial in _finished(study)}
        self._live: Live = Live(console=console, refresh_per_second=2, transient=True)
        self._said: tuple[int, ...] | None = None

    def __enter__(self) -> SearchView:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def update(self, study: Any, workers: int) -> None:
        """Show the study as it is now."""
        from lr_dist.search.trials.summary import StudySummary

        summary = StudySummary.of(study)
        if self._console.is_terminal:
            self._live.update(overview(summary, workers))
        else:
            self._say(summary)
        self.track(study)

    def _say(self, summary: StudySummary) -> None:
        counts = (summary.done, summary.references_done, summary.confirmations_done)
        if counts != self._said:
            self._said = counts
            self.note(progress_line(summary))

    def track(self, study: Any) -> None:
        """Log the trials that have ended since the last call."""
        if self._tracker is None:
            return
        from lr_dist.search.trials.summary import row_of

        names = study.metric_names or []
        for trial in _finished(study):
            if trial.number in self._tracked:
                continue
            self._tracked.add(trial.number)
            values = dict(zip(names, trial.values or (), strict=False))
            row = {key: value for key, value in row_of(trial).items() if key not in trial.params}
            scores = {key: value for key, value in row.items() if key.endswith((" p_o", " p_s", "seconds"))}
            settings = {**trial.params, "study": study.study_name, "state": row["state"], "label": row["label"]}
            metrics = {**values, **{key: value for key, value in scores.items() if value != ""}}
            self._tracker.log(f"{study.study_name}, trial {trial.number}", settings, [metrics])

    def note(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, markup=False, soft_wrap=True)


def _finished(study: Any) -> list[FrozenTrial]:
    """The trials that settle a slot."""
    from lr_dist.search.engine.slots import settled

    return [trial for trial in study.get_trials(deepcopy=False) if settled(trial)]


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
    if summary.references:
        table.add_row("references", f"{summary.references_done} of {summary.references} flat rates done")
    if summary.confirmations:
        table.add_row("confirmation", f"{summary.confirmations_done} of {summary.confirmations} trials done")
    if workers is not None:
        table.add_row("workers", str(workers))
    if not summary.finished:
        table.add_row("time left", _time_left(summary.seconds_left))
    if len(summary.precisions) > 1:
        table.add_row("warning", Text(mixed(summary.precisions)))
    if summary.best is not None:
        for title, text in _best(summary.best).items():
            table.add_row(Text(title), Text(text))
    return table


def progress_line(summary: StudySummary) -> str:
    """The same in one line, for a log."""
    parts = [f"{summary.done} of {summary.slots} trials"]
    if summary.references:
        parts.append(f"{summary.references_done} of {summary.references} references")
    if summary.confirmations:
        parts.append(f"{summary.confirmations_done} of {summary.confirmations} confirmations")
    line = f"{', '.join(parts)} done"
    if summary.best is not None:
        line += f"; best {_value(summary.best)}"
    return line if summary.finished else f"{line}; time left {_time_left(summary.seconds_left)}"


def _value(trial: FrozenTrial) -> str:
    return f"{trial.values[0]:.4f} (trial {trial.number})"


def _best(trial: FrozenTrial) -> Mapping[str, str]:
    from lr_dist.search.page.findings import named
    from lr_dist.search.trials.summary import not_learned, plan_of

    rows = {"best value": _value(trial)}
    # The studies of the references keep less.
    if "distribution" in trial.user_attrs:
        rows["distribution"] = str(named(plan_of(trial)))
    for sequence in trial.user_attrs.get("sequences", ()):
        scores = f"p_s {number(sequence['p_s'])} (majority class {number(sequence['baseline'][-1])})"
        retained = "" if sequence["p_o"] is None else f"p_o {number(sequence['p_o'])}, "
        rows[" > ".join(sequence["tasks"])] = retained + scores
    missing = not_learned(trial)
    if missing:
        rows["warning"] = (
            f"no better than the majority class: {', '.join(missing)}. A rate that learns nothing forgets nothing; "
            "widen the bounds, or use --objective relative or constrained."
        )
    return rows


def _time_left(seconds: float | None) -> str:
    return "not known before the first epoch has ended" if seconds is None else duration(seconds)
