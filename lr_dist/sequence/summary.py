"""Mean and spread over the seeds of one arm."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def summarise_runs(label: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and count over the seeds of one arm; diverged runs are counted separately."""
    done = [run for run in runs if run["status"] == "done"]
    size = range(len(done[0]["matrix"][0])) if done else range(0)
    rows = range(len(size) + 1) if done else range(0)
    cells = [[spread_of([run["matrix"][i][j] for run in done]) for j in size] for i in rows]
    return {
        "arm": label,
        "runs": len(done),
        "diverged": len(runs) - len(done),
        "metrics": summarise([run["metrics"] for run in done]),
        "metrics_above_baseline": summarise([run["metrics_above_baseline"] for run in done]),
        "matrix": {
            "mean": [[cell["mean"] for cell in row] for row in cells],
            "sd": [[cell["sd"] for cell in row] for row in cells],
        },
        "seconds": spread_of([run["seconds"] for run in done]) if done else None,
    }


def summarise(runs: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float] | None]:
    """`spread_of` every metric; None for one that the runs do not have, see `sequence_metrics`."""
    cells: dict[str, dict[str, float] | None] = {}
    for name in runs[0] if runs else ():
        values = [value for run in runs if (value := run[name]) is not None]
        cells[name] = spread_of(values) if values else None
    return cells


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (0 for one value) and number of values."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values)}
