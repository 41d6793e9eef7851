"""The outcome of an evidence run as plain data: what the table, the page and presets are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lr_dist.evidence.analysis import Finding, findings, runs_of, scores_of
from lr_dist.evidence.config import EvidenceConfig
from lr_dist.evidence.protocol import Evidence
from lr_dist.evidence.tuning import Choice
from lr_dist.runs.atomic import write_json
from lr_dist.sequence.result import ComparisonResult

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """Choices, findings and curves of an evidence run, finished or not.

    Attributes:
        config: the protocol as plain data.
        command: the command line.
        environment: versions and machine of the last comparison.
        choices: name of the arm -> what was chosen.
        findings: one for each arm with a finished run, the control first.
        diverged: the arms of which every run so far diverged.
        curves: name of the arm -> points (setting, mean p_s, mean p_o, number of runs), for arms with a curve.
        finished: number of finished runs on held-out sequences.
        planned: number of runs that there will be.
    """

    config: dict[str, Any]
    command: str
    environment: Mapping[str, Any]
    choices: Mapping[str, Choice]
    findings: Sequence[Finding]
    diverged: Sequence[str]
    curves: Mapping[str, list[tuple[Any, float, float, int]]]
    finished: int
    planned: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "evidence",
            "config": self.config,
            "command": self.command,
            "environment": dict(self.environment),
            "choices": {name: choice.to_dict() for name, choice in self.choices.items()},
            "findings": [asdict(finding) for finding in self.findings],
            "diverged": list(self.diverged),
            "curves": {name: [list(point) for point in points] for name, points in self.curves.items()},
            "finished": self.finished,
            "planned": self.planned,
        }

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())


def outcome_of(evidence: Evidence, choices: Mapping[str, Choice], command: str) -> Outcome:
    """The outcome of what is finished.

    Raises:
        InvalidResultError: no run of the control is finished.
    """
    config = evidence.config
    results = evidence.held_out_results(choices)
    # The last step of each folder has all its seeds.
    steps = {step.folder(evidence.output): step for step in evidence.held_out_steps(choices)}
    return Outcome(
        config=config_dict(config),
        command=command,
        environment=results[-1].environment if results else {},
        choices=choices,
        findings=findings(config, choices, results),
        diverged=[name for name, choice in choices.items() if _all_diverged(config.arm_text(choice.text), results)],
        curves={
            name: _curve(config, name, choices[name], results)
            for name, arm in config.arms().items()
            if arm.curve is not None
        },
        finished=sum(len(result.runs) for result in results),
        planned=sum(len(step.texts) * len(step.seeds) for step in steps.values()),
    )


def _all_diverged(label: str, results: Sequence[ComparisonResult]) -> bool:
    return {run["status"] for runs in runs_of(label, results).values() for run in runs} == {"diverged"}


def config_dict(config: EvidenceConfig) -> dict[str, Any]:
    """The protocol as plain data."""
    return {
        "model": config.model,
        "limit": config.limit,
        "first": config.first,
        "search": [list(sequence) for sequence in config.search],
        "held_out": [list(sequence) for sequence in config.held_out],
        "contenders": {
            name: {
                "text": arm.text,
                "settings": {k: list(v) for k, v in arm.settings.items()},
                "curve": arm.curve,
                **({} if arm.seeds is None else {"seeds": arm.seeds}),
            }
            for name, arm in config.arms().items()
        },
        "control": config.control,
        "tuning_seeds": list(config.tuning_seeds),
        "seeds": list(config.seeds),
        **({} if config.choices is None else {"choices": config.choices}),
        **({} if config.eval_limit is None else {"eval_limit": config.eval_limit}),
        **({"linear_probe": True} if config.linear_probe else {}),
        **({"retention": config.retention} if config.retention else {}),
        **config.settings.to_dict(),
    }


def _curve(
    config: EvidenceConfig, name: str, choice: Choice, results: Sequence[ComparisonResult]
) -> list[tuple[Any, float, float, int]]:
    """Means over the runs that all points of the curve have, so that they differ in the setting alone.

    A setting without a finished run, because all of them diverged or none has begun, has no point.
    """
    arm = config.arms()[name]
    every = [(each, scores_of(config, arm.written(each), results)) for each in arm.curve_of(choice.settings)]
    begun = [(each, table) for each, table in every if any(table.values())]
    if not begun:
        return []
    settings, tables = zip(*begun, strict=True)
    shared = set.intersection(*({(s, seed) for s, runs in table.items() for seed in runs} for table in tables))
    if not shared:
        return []
    return [
        (
            each[arm.curve] if arm.curve else None,
            sum(table[s][seed]["p_s"] for s, seed in shared) / len(shared),
            sum(table[s][seed]["p_o"] for s, seed in shared) / len(shared),
            len(shared),
        )
        for each, table in zip(settings, tables, strict=True)
    ]
