"""Seconds, peak memory and tokens a second of one two-task run, in fp32 and, where it is faster, in bf16 autocast.

sst2 > qqp with MiniLM, 1,200 examples a task, 3 epochs, batch 32, each precision in a process of its own, so that the
peak memory is its own. Without real GLUE (LR_DIST_DATA or ../shared/data) two generated tasks stand in, and the JSON
says so. The share of the machine's matrix rate counts 6 floating-point operations a token and weight of the encoder's
layers (forward 2, backward 4) plus attention's products; embeddings, optimizer and padding count as nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import matrix_rate, parser, publish

from lr_dist.runs.precision import measure
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.compare import Comparison
from lr_dist.sequence.compare_config import CompareConfig
from lr_dist.sequence.environment import peak_memory_mb
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings

PRECISIONS = {"fp32": ("32-true", torch.float32), "bf16_autocast": ("bf16-mixed", torch.bfloat16)}
ROOT = Path(__file__).resolve().parents[2]


def data_dir() -> str | None:
    folder = os.environ.get("LR_DIST_DATA") or str(ROOT.parent / "shared" / "data")
    return folder if Path(folder).is_dir() else None


def one_run(name: str, limit: int, epochs: int) -> dict[str, object]:
    """The run itself, in this process."""
    precision, dtype = PRECISIONS[name]
    folder = data_dir()
    config = CompareConfig(
        model="minilm",
        tasks=("sst2", "qqp") if folder else ("demo-sentiment", "demo-entailment"),
        distributions=("flat:lr=1e-4",),
        seeds=(0,),
        limit=limit,
        data_dir=folder,
        settings=SequenceSettings(epochs=epochs, precision=precision),
    )
    comparison = Comparison.prepare(config)
    bench = comparison.bench
    run = run_sequence(bench, comparison.arms["flat:lr=1e-4"], 0, TestAfterStages())
    rate = matrix_rate(dtype)
    return {
        "tasks": [task.name for task in bench.tasks],
        "generated_stand_in": folder is None,
        "seconds": round(run.seconds, 1),
        "train_seconds": round(run.train_seconds, 1),
        "steps": run.train_steps,
        "tokens": run.tokens,
        "tokens_per_second": round(run.tokens / run.train_seconds),
        "peak_memory_mb": peak_memory_mb(),
        "matrix_gflops_per_second": round(rate / 1e9),
        "share_of_matrix_rate": round(operations(bench, epochs) / run.train_seconds / rate, 3),
        "accuracy_matrix": run.matrix,
    }


def operations(bench: Bench, epochs: int) -> float:
    """Floating-point operations of training, forward and backward, on tokens that are no padding."""
    backbone: Any = bench.view().backbone
    weights = sum(p.numel() for name, p in backbone.named_parameters() if ".layer." in name)
    lengths = torch.cat([torch.as_tensor(split.train.lengths).double() for split in bench.tokens])
    hidden, layers = backbone.config.hidden_size, backbone.config.num_hidden_layers
    # Attention: two products of 2 n^2 h operations a layer forward, twice that backward.
    return epochs * float((6 * weights * lengths + 12 * layers * hidden * lengths**2).sum())


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--limit", type=int, default=1200)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--only", choices=PRECISIONS, help="run this precision in this process (used by the command itself)")
    arguments = p.parse_args()
    if arguments.only:
        print(json.dumps(one_run(arguments.only, arguments.limit, arguments.epochs)))
        return
    runs: dict[str, Any] = {}
    for name, (precision, _) in PRECISIONS.items():
        # Where a bf16 product is no faster its run would take hours and show what the probe says.
        if precision == "bf16-mixed" and not measure().fast:
            runs[name] = {"left_out": measure().reason}
            continue
        command = [sys.executable, __file__, "--only", name, "--limit", str(arguments.limit)]
        command += ["--epochs", str(arguments.epochs)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        runs[name] = json.loads(output.splitlines()[-1])
    publish("two_tasks", {"limit": arguments.limit, "epochs": arguments.epochs, "runs": runs}, arguments.output)


if __name__ == "__main__":
    main()
