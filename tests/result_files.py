"""A whole result file without an hour of training: the numbers are drawn, all that follows from them is computed."""

from __future__ import annotations

import json
import random
from typing import Any

from lr_dist.sequence.arm import Arm
from lr_dist.sequence.compare_config import CompareConfig
from lr_dist.sequence.environment import describe_environment
from lr_dist.sequence.metrics import above_baseline, sequence_metrics
from lr_dist.sequence.result import ComparisonResult
from lr_dist.sequence.summary import summarise_runs

LABELS = ("flat:lr=1e-4", "decay:lr=4e-4,factor=0.7")
TASKS = ("demo-sentiment", "demo-entailment")


def result_data(seeds: int = 2, seed: int = 0) -> dict[str, Any]:
    """The content of a result.json of two tasks and two arms, as `lr-dist compare` writes it."""
    draw = random.Random(seed)
    baseline = [0.5, 0.4]
    runs = []
    for label in LABELS:
        for number in range(seeds):
            matrix = [[draw.uniform(0.4, 0.9) for _ in TASKS] for _ in range(len(TASKS) + 1)]
            runs.append(
                {
                    "identity": f"{label}{number}",
                    "arm": label,
                    "seed": number,
                    "started": "2026-11-27T20:00:00+00:00",
                    "environment": describe_environment(),
                    "status": "done",
                    "matrix": matrix,
                    "scores": [],
                    "metrics": sequence_metrics(matrix),
                    "metrics_above_baseline": sequence_metrics(above_baseline(matrix, baseline)),
                    "seconds": 1.5,
                    "train_seconds": 1.0,
                    "train_steps": 8,
                    "tokens": 1000,
                    "process_peak_memory_mb": 500.0,
                }
            )
    sizes = {"train": 64, "dev": 16, "validation": 32}
    result = ComparisonResult(
        created="2026-11-27T20:00:00+00:00",
        command="lr-dist compare",
        config=CompareConfig("minilm", TASKS, LABELS, tuple(range(seeds))).to_dict(),
        environment=describe_environment(),
        model={"name": "minilm", "class": "BertModel", "fingerprint": "0" * 64, "num_layers": 6, "parameters": 10},
        tasks=[
            {
                **{"name": name, "kind": "classification", "metric": "accuracy", "classes": ["no", "yes"]},
                **{"examples": sizes, "scored_on": "validation", "baseline": base, "note": "", "fingerprint": "1" * 64},
            }
            for name, base in zip(TASKS, baseline, strict=True)
        ],
        arms=[Arm.parse(label).to_dict(1e-5, 6) for label in LABELS],
        runs=runs,
        summary=[summarise_runs(label, [run for run in runs if run["arm"] == label]) for label in LABELS],
        planned_runs=len(runs),
    )
    data: dict[str, Any] = json.loads(json.dumps(result.to_dict()))
    return data
