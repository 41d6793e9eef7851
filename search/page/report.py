"""A study's self-contained HTML page; it loads nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from lr_dist.distribution import check_num_layers
from lr_dist.extras import require_libraries
from lr_dist.runs.atomic import write_text
from lr_dist.runs.pages.render import render
from lr_dist.search.engine.storage import study_errors
from lr_dist.search.page import figures
from lr_dist.search.page.commands import candidate, commands_of, controls
from lr_dist.search.page.confirmed import confirmed
from lr_dist.search.page.findings import Findings
from lr_dist.search.page.importance import importances
from lr_dist.search.page.tables import (
    bounds_of,
    confirmed_row,
    environments,
    failures,
    rates_table,
    trial_row,
    unlearned,
    violations,
)
from lr_dist.search.page.verdict import verdict
from lr_dist.search.trials.config import OWN
from lr_dist.search.trials.confirmation import flat_rates
from lr_dist.search.trials.record import TrialRecord
from lr_dist.search.trials.summary import not_learned

if TYPE_CHECKING:
    from optuna import Study

MOST_ROWS, MOST_FAILED, MOST_FRONT, MOST_PANELS = 20, 30, 50, 6
DEFAULT_LAYERS = 12


def write_report(study: Study, path: str | Path, *, storage: str, num_layers: int | None = None) -> Path:
    """Write the page of a study and return its path.

    Args:
        study: of `lr-dist search`, in any state.
        path: of the page; its folder is created if needed.
        storage: the URL, shown without its password in the commands on the page.
        num_layers: number of layers for which rates over depth are drawn; None for that of the study's model (12 if the
            study does not record it).

    Raises:
        InvalidTrialsError: not a study of `lr-dist search`.
        LayerCountError: an invalid number of layers.
        MissingExtraError: jinja2 or matplotlib is not installed (extra `report`).
        UnwritableFileError: the page cannot be written.
    """
    text = render_report(study, storage=storage, num_layers=num_layers)
    return write_text(path, text, instead="Give another --output-file.")


def render_report(study: Study, *, storage: str, num_layers: int | None = None) -> str:
    """The page's HTML; every text from the study is escaped. See `write_report`."""
    require_libraries("search", "optuna", "jinja2", "matplotlib", "scipy")
    findings = Findings.of(study)
    if num_layers is None:
        num_layers = findings.identity.get("num_layers", DEFAULT_LAYERS)
    check_num_layers(num_layers)
    content = _content(study, findings, storage, num_layers)
    return render("lr_dist.search.page", "report.html", **content)


def _content(study: Study, findings: Findings, storage: str, layers: int) -> dict[str, Any]:
    """The variables of the template."""
    several = bool(findings.complete) and len(findings.complete[0].values) > 1
    # Two objectives have a front and no best trial.
    front = len(findings.objectives) > 1
    retained = findings.identity["goal"]["mode"] == "retention"
    # A program's own score is not of tasks.
    scored = bool(findings.complete) and findings.identity["goal"]["mode"] != OWN
    panels = range(min(len(findings.titles), MOST_PANELS)) if scored else range(0)
    listed = findings.front[:MOST_FRONT] if front else findings.ranked[:MOST_ROWS]
    importance = importances(findings.complete, findings.space.searched)
    failed = failures(findings)
    ran_on = environments(findings.trials)
    with study_errors(study):
        rows = confirmed(study, findings)
        control = controls(findings, rows, flat_rates(study, findings.ranked))
    return {
        "f": findings,
        "identity": findings.identity,
        "several": front,
        "objectives": findings.objectives,
        "counts": _counts(findings),
        "unlearned": unlearned(findings.complete),
        "bounds": bounds_of(findings.identity),
        "violations": violations(findings.complete),
        "best": trial_row(findings.best, findings.space) if findings.best else None,
        "best_missing": not_learned(findings.best) if findings.best else [],
        "front_missing": sum(bool(not_learned(trial)) for trial in findings.front),
        "best_flat": trial_row(findings.best_flat, findings.space) if findings.best_flat else None,
        "commands": commands_of(findings, storage, control, candidate(findings, rows)),
        "controls": control,
        "verdict": verdict(findings, rows),
        "confirmed": [confirmed_row(row) for row in rows],
        "rows": [trial_row(trial, findings.space) for trial in listed],
        "listed_of": len(findings.front if front else findings.ranked),
        "rates": rates_table(findings),
        "layers": layers,
        "failed": failed[:MOST_FAILED],
        "failed_all": len(failed),
        "environments": ran_on,
        "differing": [key for key, values in ran_on.items() if len(values) > 1],
        "importance": importance,
        "thinned": len(findings.trials) > figures.MOST_POINTS,
        "most_points": figures.MOST_POINTS,
        "lines_thinned": len(findings.complete) > figures.MOST_LINES,
        "most_lines": figures.MOST_LINES,
        "panels": len(panels),
        "history_svg": figures.history_figure(findings) if findings.complete else "",
        "majority_svgs": [figures.majority_figure(findings, i) for i in panels],
        "retention_svg": figures.retention_figure(findings) if findings.complete and retained else "",
        # Of a single task there is no p_o to draw.
        "front_svgs": [
            (findings.titles[i], figures.front_figure(findings, i))
            for i in panels
            if TrialRecord.of(findings.complete[0]).scores[i].p_o is not None
        ],
        "parameters_svgs": [
            figures.parameters_figure(findings, i) for i in range((2 if several else 1) if findings.complete else 0)
        ],
        "importance_svg": figures.importance_figure(importance.values) if importance.values else "",
        "depth_svg": figures.depth_figure(findings, layers) if findings.mean else "",
    }


def _counts(findings: Findings) -> dict[str, int]:
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
        "waiting": TrialState.WAITING,
    }
    return {name: len(findings.with_state(state)) for name, state in states.items()}
