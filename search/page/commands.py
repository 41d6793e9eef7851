"""The commands to use, compare and combine the result of a study."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from lr_dist.distribution import LRDistribution
from lr_dist.rate_plan import STAGES, RatePlan
from lr_dist.search.engine.storage import shown_storage
from lr_dist.search.page.confirmed import Confirmed, confirmed
from lr_dist.search.page.findings import Findings, named
from lr_dist.search.trials.config import OWN
from lr_dist.search.trials.confirmation import flat_rates
from lr_dist.search.trials.summary import plan_of

if TYPE_CHECKING:
    from optuna import Study


def candidate(findings: Findings, confirmed: Sequence[Confirmed]) -> FrozenTrial | None:
    """The trial to compare: the best confirmed one that is not flat, or else the best of the search."""
    return next((row.trial for row in confirmed if not row.flat and row.feasible), findings.best)


def controls(findings: Findings, confirmed: Sequence[Confirmed], flat_rates: Sequence[float]) -> list[str]:
    """The plans to compare with: the confirmed control, or else every flat rate that may be the best.

    Args:
        findings: of the study.
        confirmed: the confirmed distributions.
        flat_rates: see `lr_dist.search.trials.confirmation.flat_rates`.
    """
    control = next((row.trial for row in confirmed if row.control), None)
    if control is not None:
        return [str(named(plan_of(control)))]
    return [str(findings.with_first(RatePlan((LRDistribution.flat(rate),)))) for rate in flat_rates]


def commands_of(findings: Findings, storage: str, control: Sequence[str], best: FrozenTrial | None) -> dict[str, str]:
    """Commands to use the result (`use`), compare it (`compare`), and make a preset of it (`combine`); empty if none.

    Args:
        findings: of the study.
        storage: URL of the storage.
        control: the plans to compare with.
        best: the trial to compare.
    """
    commands = {"use": "", "compare": "", "combine": ""}
    if best is not None:
        searched = named(findings.searched_plan(best)).stages
        commands["use"] = "\n".join(f'LayerwiseLR("{stage}")' for stage in searched)
        if len(searched) > 1:
            commands["use"] += "  # from the second task on"
        if findings.identity["goal"]["mode"] == OWN:
            return {**commands, "combine": _combine(findings, storage)}
        arms = list(dict.fromkeys([*control, str(named(plan_of(best)))]))
        several = any(STAGES in arm for arm in arms)
        method = findings.identity["settings"]["method"]
        if several and method != "finetune":
            arms = [f"{arm} + {method}" for arm in arms]
        commands["compare"] = shlex.join(
            [
                *("lr-dist", "compare", *_model(findings.identity)),
                *("--tasks", *_tasks(findings.identity["sequences"][0])),
                *("--arms" if several else "--distributions", *arms),
                *("--seeds", "0", "1", "2", "3", "4"),
                *_training(findings.identity),
                # It adds to distributions only.
                *([] if several else ["--method", method]),
            ]
        )
    return {**commands, "combine": _combine(findings, storage)}


def _tasks(sequence: Sequence[Any]) -> list[str]:
    return [task if isinstance(task, str) else json.dumps(task) for task in sequence]


def _model(identity: dict[str, Any]) -> list[str]:
    return ["--start", identity["start"]] if "start" in identity else ["--model", identity["model"]]


def _training(identity: dict[str, Any]) -> list[str]:
    settings = identity["settings"]
    options = [] if identity["limit"] is None else ["--limit", str(identity["limit"])]
    for key in ("epochs", "batch_size", "max_length", "warmup", "schedule", "weight_decay", "precision"):
        options += [f"--{key.replace('_', '-')}", str(settings[key])]
    return options


def _combine(findings: Findings, storage: str) -> str:
    if not findings.ranked:
        return ""
    return shlex.join(
        ["lr-dist", "combine", findings.name, "--storage", shown_storage(storage), "--output-file", "combined.yaml"]
    )


def next_commands(study: Study, storage: str) -> list[str]:
    """Three commands for what to do next with a complete study: compare, combine or export, and look at it.

    Args:
        study: of `lr-dist search`.
        storage: its URL; passwords are left out.
    """
    findings = Findings.of(study)
    rows = confirmed(study, findings)
    control = controls(findings, rows, flat_rates(study, findings.ranked))
    commands = commands_of(findings, storage, control, candidate(findings, rows))
    where = ["--storage", shown_storage(storage)]
    export = shlex.join(["lr-dist", "search", "export", "--study", findings.name, *where, "--csv", "trials.csv"])
    dashboard = shlex.join(["lr-dist", "dashboard", *where])
    return [command for command in (commands["compare"], commands["combine"] or export, dashboard) if command]
