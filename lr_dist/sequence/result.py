"""The result file of a comparison: JSON with a schema version, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lr_dist.errors import InvalidResultError
from lr_dist.reading import read_bytes
from lr_dist.runs.atomic import write_json
from lr_dist.sequence.schema import check_result

SCHEMA_VERSION = 2
MAX_BYTES = 200_000_000


@dataclass(frozen=True)
class ComparisonResult:
    """The results of a comparison, with everything that is needed to reproduce them.

    Attributes:
        created: UTC time of writing, ISO 8601.
        command: the command line that wrote it.
        config: the comparison's settings, see `lr_dist.sequence.compare_config.CompareConfig`.
        environment: versions and machine, see `lr_dist.sequence.environment`.
        model: name, weights' fingerprint, number of layers, number of parameters; with a start, `start`: its folder,
            the fingerprint of its head, and the names of its outputs. The first task was then learned before: rows 0
            and 1 of a matrix are the start's scores, and the first stage has no steps.
        tasks: a mapping for each task: name, kind, primary metric, sizes, data fingerprint, note, and `baseline`, the
            primary score of always predicting train's majority class.
        arms: a mapping for each arm: label, fingerprint of its plan, methods, and `stages`, each with its distribution
            and the rate of every group; the last stage's hold in all later ones.
        runs: a mapping for each run: arm (label), seed, status ("done" or "diverged"), matrix, scores, metrics,
            metrics_above_baseline, steps, tokens, peak memory, `seconds` (wall time), `train_seconds` (as if every
            stage had been trained for this run), `taken_over` (numbers of the stages whose weights are from another
            run), `taken_over_seconds` (the part of `train_seconds` that was not spent again), `held_bytes` and
            `held_examples` (what methods kept from stage to stage); with measures, `measures`: name of a measure ->
            what it measured, such as `drift` (see `lr_dist.retention.compare`).
        summary: a mapping for each arm: label, runs, diverged, and mean, sd and n of every metric, of every entry
            of the matrix, and of the metrics above the baseline.
        planned_runs: how many runs the comparison has when it is complete.
    """

    created: str
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    model: dict[str, Any]
    tasks: list[dict[str, Any]]
    arms: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    planned_runs: int

    def to_dict(self) -> dict[str, Any]:
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema_version": SCHEMA_VERSION, "kind": "compare", **content}

    def save(self, path: Path) -> None:
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> ComparisonResult:
        """Read a result file.

        Raises:
            InvalidResultError: not a result file, of another schema version, or altered by hand.
        """
        data = read_json(Path(path))
        if not isinstance(data, dict) or data.get("kind") != "compare":
            raise InvalidResultError(f"{path} is not a result file of `lr-dist compare`.")
        if data.get("schema_version") == 1:
            data = _from_schema_1(data, path)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise InvalidResultError(
                f"{path} has schema_version {data.get('schema_version')!r}; this version of lr-dist reads 1 and "
                f"{SCHEMA_VERSION}. Read it with the version that wrote it, or run the comparison again."
            )
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in data]
        if missing:
            raise InvalidResultError(f"{path} lacks {', '.join(missing)}; it was cut or edited.")
        check_result(data, path)
        return cls(**{name: data[name] for name in names})


def upgraded_run(run: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A run in the form of this schema, with the given label; runs of schema 1 are converted."""
    rest = {key: value for key, value in run.items() if key not in ("arm", "distribution")}
    return {"identity": rest.pop("identity", ""), "arm": label, **rest}


def _from_schema_1(data: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Convert schema 1, which compared distributions with one method for all.

    Raises:
        InvalidResultError: it is not valid in schema 1.
    """
    try:
        config = dict(data["config"])
        method = config.pop("method", "finetune")
        methods = [] if method == "finetune" else [method]
        specs = config.pop("distributions")
        config["arms"] = [" + ".join([str(spec), *methods]) for spec in specs] if methods else specs

        def label(old: str) -> str:
            return " + ".join([old, *methods])

        arms = [
            {
                "label": label(entry["label"]),
                "fingerprint": entry["fingerprint"],
                "stages": [{"distribution": entry["distribution"], "rates": entry["rates"]}],
                "methods": methods,
            }
            for entry in data["distributions"]
        ]
        runs = [upgraded_run(run, label(run["distribution"])) for run in data["runs"]]
        summary = [
            {"arm": label(each["distribution"]), **{key: value for key, value in each.items() if key != "distribution"}}
            for each in data["summary"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidResultError(
            f"{path} says that it has schema_version 1, and it does not follow that schema ({error!r}); it was cut or "
            "edited."
        ) from error
    rest = {key: value for key, value in data.items() if key != "distributions"}
    return {**rest, "schema_version": 2, "config": config, "arms": arms, "runs": runs, "summary": summary}


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InvalidResultError: no such file, one that cannot be read, or not JSON.
    """
    try:
        data = read_bytes(path, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidResultError(f"{path} is larger than {MAX_BYTES:,} bytes; a result file is not.")
        return json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidResultError(f"{path} cannot be read: {reason}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidResultError):
            raise
        raise InvalidResultError(f"{path} is not readable JSON: {error}") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")
