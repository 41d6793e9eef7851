"""How many times as fast a search's trial is as the plain loop, with and without a shared first stage.

Three kinds of trial alternate in this one process, in the order plain, ours, first and then backwards:

- `plain`: `plain_trial.py`: fp32, padded batches, the full vocabulary, every stage trained;
- `ours`: a trial as `lr-dist search` runs it by default, in the precision that the probe chooses;
- `first`: a trial of `search --first`, which goes on from a first stage that the study's first trial has learned and
  kept. Such a study has one seed, and its trials differ in the second task's rate.

The ratios are of medians, of seconds and of processor time, which other work on the machine disturbs less. Loading is
left out: of the plain loop's time too, which loads everything anew. `--no-bf16` runs all of it as on a processor with
AVX2 alone, where the probe chooses fp32. `products_at_full_rate` is a bound: the processor time of a trial's matrix
products (without padding, the last layer for the first token alone) at the rate of large ones. Without real GLUE
(LR_DIST_DATA or ../shared/data) two generated tasks stand in, and the JSON says so. What is done is kept in `--state`;
the same command goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As on a processor without AVX-512 and bf16 products: torch's own kernels, and oneDNN's.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
KINDS = ("plain", "ours", "first")
SECONDS, CPU = "seconds", "cpu_seconds"


def main() -> None:
    from common import parser, publish

    p = parser(__doc__ or "")
    p.add_argument("--limit", type=int, default=600, help="training examples a task")
    p.add_argument("--dev-size", type=int, default=400, help="examples a task that are tested on after each epoch")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--rounds", type=int, default=5, help="trials of each kind")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--no-bf16", action="store_true", help="as on a processor with AVX2 alone")
    p.add_argument("--state", type=Path, default=Path("runs/bench/trial_speed.jsonl"))
    options = p.parse_args()
    if options.no_bf16 and any(os.environ.get(name) != value for name, value in AVX2.items()):
        # Read when torch is imported.
        raise SystemExit(subprocess.call([sys.executable, *sys.argv], env={**os.environ, **AVX2}))
    publish("trial_speed", measure(options), options.output)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from plain_trial import plain_trial
    from search_throughput import LR, tasks

    from lr_dist.distribution import LRDistribution
    from lr_dist.rate_plan import RatePlan
    from lr_dist.search.trials.config import SearchConfig
    from lr_dist.search.trials.first_stages import first_stages
    from lr_dist.search.trials.trial import run_once
    from lr_dist.sequence.arm import Arm
    from lr_dist.sequence.bench import Bench
    from lr_dist.sequence.settings import SequenceSettings

    torch.set_num_threads(options.threads)
    names, folder = tasks()
    sizes = {"limit": options.limit, "dev_size": options.dev_size}
    settings = SequenceSettings(epochs=options.epochs, evaluate_on="dev")
    bench = Bench.prepare("minilm", names, settings, data_dir=folder, **sizes)
    bench.view()

    def plain(number: int) -> dict[str, Any]:
        return plain_trial(names, LR, number, data_dir=folder, epochs=options.epochs, batch_size=32, **sizes)

    def ours(number: int) -> dict[str, Any]:
        return run_once(bench, Arm.of(LRDistribution.flat(LR)), number)

    same = [*sizes.values(), options.epochs, options.threads, options.no_bf16, bench.precision.chosen]
    done = _read(options.state, same)
    with tempfile.TemporaryDirectory() as stages:
        config = SearchConfig(sequences=(tuple(names),), first=f"flat:lr={LR}")
        store = first_stages(Path(stages), config, [bench], config.seeds)

        def first(number: int) -> dict[str, Any]:
            plan = config.with_first(RatePlan((LRDistribution.flat(LR * 1.01**number),)))
            outcome = run_once(bench, Arm(str(plan), plan), config.seeds[0], store=store)
            assert bool(outcome.get("taken_over_seconds")) == (number > 0), "the first stage is learned once"
            return outcome

        kinds: dict[str, Callable[[int], dict[str, Any]]] = dict(zip(KINDS, (plain, ours, first), strict=True))
        # Learns and keeps the first stage: it is reported, and in no ratio. Number 0 is run by every process.
        done["first", 0] = _timed(first, 0)
        for number in range(1, options.rounds + 1):
            for kind in KINDS if number % 2 else KINDS[::-1]:
                if (kind, number) not in done:
                    done[kind, number] = _timed(kinds[kind], number)
                    _write(options.state, same, kind, number, done[kind, number])
    rate = _rate(torch.bfloat16 if bench.precision.chosen == "bf16-mixed" else torch.float32)
    trials = {kind: [done[kind, number] for number in range(1, options.rounds + 1)] for kind in KINDS}
    return {
        "tasks": names,
        "precision": bench.precision.to_dict(),
        "instructions": "as with AVX2 alone" if options.no_bf16 else "all of the processor's",
        "generated_stand_in": folder is None,
        **sizes,
        "epochs": options.epochs,
        "threads": options.threads,
        "times_as_fast": {kind: _ratios(trials["plain"], trials[kind]) for kind in KINDS[1:]},
        "matrix_gflops_of_a_core": round(rate / 1e9),
        "products_at_full_rate": {
            kind: round(sum(_operations(bench, stage, options.epochs) for stage in stages) / rate, 2)
            for kind, stages in (("ours", (0, 1)), ("first", (1,)))
        },
        "keeping_the_first_stage": done["first", 0],
        "trials": trials,
    }


def _operations(bench: Any, stage: int, epochs: int) -> float:
    """Floating-point operations of a stage: the training, and the test of all tasks so far after every epoch."""
    backbone = bench.view().backbone
    hidden, layers = backbone.config.hidden_size, backbone.config.num_hidden_layers
    weights = sum(p.numel() for name, p in backbone.named_parameters() if ".layer." in name)
    # Of the last layer only queries, keys and values are computed for every token.
    per_token = 2 * (weights * (layers - 1) / layers + 3 * hidden**2)

    tests = sum(_forward(bench.tokens[task].dev, per_token, layers * hidden) for task in range(stage + 1))
    # Backward takes two products for each of forward's.
    return epochs * (3 * _forward(bench.tokens[stage].train, per_token, layers * hidden) + tests)


def _forward(split: Any, per_token: float, width: int) -> float:
    # Attention: two products of 2 n^2 operations for each of a layer's dimensions.
    return sum(per_token * n + 4 * width * n**2 for n in map(int, split.lengths))


def _rate(dtype: Any) -> float:
    """Floating-point operations a second of processor time, as the median of seven products of 2048 x 2048."""
    import torch

    matrix = torch.randn(2048, 2048).to(dtype)
    torch.mm(matrix, matrix)  # warm-up
    seconds = []
    for _ in range(7):
        began = time.process_time()
        torch.mm(matrix, matrix)
        seconds.append(time.process_time() - began)
    return 2 * 2048**3 / statistics.median(seconds)


def _timed(run: Callable[[int], dict[str, Any]], number: int) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    outcome = run(number)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return {
        SECONDS: round(seconds - outcome.get(f"loading_{SECONDS}", 0.0), 2),
        CPU: round(cpu_seconds - outcome.get(f"loading_{CPU}", 0.0), 2),
        "final": outcome["final"],
    }


def _ratios(plain: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, float]:
    return {key: round(_median(plain, key) / _median(ours, key), 2) for key in (SECONDS, CPU)}


def _median(trials: list[dict[str, Any]], key: str) -> float:
    return statistics.median(trial[key] for trial in trials)


def _read(state: Path, same: list[Any]) -> dict[tuple[str, int], dict[str, Any]]:
    lines = state.read_text(encoding="utf-8").splitlines() if state.exists() else []
    read = [json.loads(line) for line in lines if line.endswith("}")]
    return {(each["kind"], each["number"]): each["trial"] for each in read if each["same"] == same}


def _write(state: Path, same: list[Any], kind: str, number: int, trial: dict[str, Any]) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"same": same, "kind": kind, "number": number, "trial": trial}) + "\n")
    print(f"{kind} {number}: {trial[SECONDS]} s, {trial[CPU]} s of the processor", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
