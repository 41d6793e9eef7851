"""The result of the experiment as plain data, with means, paired differences and steps to a score."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lr_dist.errors import InvalidResultError
from lr_dist.knowledge.informed.config import MIXED, NONE
from lr_dist.runs.atomic import write_json
from lr_dist.sequence.differences import Interval
from lr_dist.sequence.result import read_json

SCHEMA_VERSION = 1
LEVEL = 0.95
NOISES = ("characters", "words")


@dataclass(frozen=True)
class Choice:
    """The rates that an arm has at a limit.

    Attributes:
        arm, limit: which.
        rates, stage_rates: the chosen texts.
        score: mean on dev over the tuning seeds that did not diverge.
        tried: number of combinations.
        at_end: whether the chosen rates are the first or the last of several, so that better ones may lie beyond.
    """

    arm: str
    limit: int
    rates: str
    stage_rates: str
    score: float
    tried: int
    at_end: bool


@dataclass(frozen=True)
class InformedResult:
    """What an experiment found, with everything that is needed to get it again.

    Attributes:
        created: UTC time of writing, ISO 8601.
        command: the command line.
        config: its settings.
        environment: versions and machine.
        model: name, fingerprint of the weights, number of layers and parameters.
        task: name, metric, classes, sizes, score of the majority class, fingerprint.
        knowledge: source, facts, prototypes, leakage, and whether prototypes and task share their head.
        choices: rates of each arm at each limit.
        runs: each finished run.
        summary: for each arm (or part) and limit: `n`, `mean`, `sd`, `noise`, `zero_shot`, `curve`, `reached` (steps
            until the mean curve is at the end of that of `none`; None: never), and `against`: other arm -> mean and
            half the 95% interval (Student's t) of the paired difference.
        planned_runs: how many runs there are when it is complete.
    """

    created: str
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    model: dict[str, Any]
    task: dict[str, Any]
    knowledge: dict[str, Any]
    choices: list[Choice]
    runs: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    planned_runs: int

    def to_dict(self) -> dict[str, Any]:
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["choices"] = [asdict(choice) for choice in self.choices]
        return {"schema_version": SCHEMA_VERSION, "kind": "informed", **content}

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> InformedResult:
        """Read a result file.

        Raises:
            InvalidResultError: not a result of this command, of another schema version, or cut.
        """
        data = read_json(Path(path))
        if not isinstance(data, dict) or data.get("kind") != "informed":
            raise InvalidResultError(f"{path} is not a result file of `lr-dist informed`.")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise InvalidResultError(
                f"{path} has schema_version {data.get('schema_version')!r}; this version of lr-dist reads "
                f"{SCHEMA_VERSION}."
            )
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in data]
        if missing:
            raise InvalidResultError(f"{path} lacks {', '.join(missing)}; it was cut or edited.")
        try:
            choices = [Choice(**choice) for choice in data["choices"]]
        except TypeError as error:
            raise InvalidResultError(f"{path} holds choices of another form ({error}).") from error
        return cls(**{**{name: data[name] for name in names}, "choices": choices})


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each arm (or part) and limit, over the seeds that are done."""
    cells: dict[tuple[str, int], dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        cell = cells.setdefault((run["label"], run["limit"]), {})
        if run["status"] == "done":
            cell[run["seed"]] = run
    return [_cell(label, limit, cells) for label, limit in cells]


def _cell(label: str, limit: int, cells: Mapping[tuple[str, int], Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    done = cells[label, limit]
    scores = [run["score"] for run in done.values()]
    zero = [run["zero_shot"] for run in done.values() if run["zero_shot"] is not None]
    curve = _mean_curve(list(done.values()))
    base = _mean_curve(list(cells.get((NONE, limit), {}).values()))
    return {
        "label": label,
        "limit": limit,
        "n": len(scores),
        "mean": statistics.fmean(scores) if scores else None,
        "sd": statistics.stdev(scores) if len(scores) > 1 else None,
        "zero_shot": statistics.fmean(zero) if zero else None,
        "noise": {
            name: statistics.fmean(run["noise"][name] for run in done.values())
            for name in NOISES
            if scores and all(name in run["noise"] for run in done.values())
        },
        "curve": curve,
        "reached": next((step for step, score in curve if score >= base[-1][1]), None) if base else None,
        "against": {
            other: difference
            for other in (NONE, MIXED)
            if other != label and (difference := _difference(done, cells.get((other, limit), {}))) is not None
        },
    }


def _mean_curve(runs: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """The mean over the runs at each step; empty without curves, or with curves of different steps."""
    curves = [run["curve"] for run in runs if run.get("curve")]
    if not curves or any([step for step, _ in each] != [step for step, _ in curves[0]] for each in curves):
        return []
    return [(points[0][0], statistics.fmean(score for _, score in points)) for points in zip(*curves, strict=True)]


def _difference(ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> dict[str, Any] | None:
    """Paired by seed: both have the same examples and the same random numbers."""
    pairs = [ours[seed]["score"] - theirs[seed]["score"] for seed in ours if seed in theirs]
    if not pairs:
        return None
    interval = Interval.of(pairs, LEVEL)
    return {"mean": interval.mean, "half": interval.half, "n": interval.n}
