"""How fast a search's trials are: against a plain trial, with two workers, and as a share of the machine's speed.

Three measurements, each side by side and in turns, every part in a process of its own:

- **trial**: lr-dist's trial against `plain_trial.py`, all threads, the same seeds: ratio of the median seconds, final
  scores of both (they must agree within the noise of the seeds), peak memory. Loading is part of a plain trial; a
  worker loads once, which is printed as `start_seconds`.
- **workers**: trials an hour of two workers of one thread against one of one thread, and against one of two.
- **rate**: tokens a second while training, and their floating-point operations as a share of the matrix rate measured
  in the precision that was chosen for this machine (6 a token and weight of the encoder's layers, and attention's
  products; the rest counts as nothing).

Without real GLUE (LR_DIST_DATA or ../shared/data) two generated tasks stand in, and the JSON says so. What is done is
kept in `--state`; the same command goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import matrix_rate, parser, publish
from plain_trial import plain_trial
from two_tasks import data_dir, operations

from lr_dist.distribution import LRDistribution
from lr_dist.runs.machine import threads_of
from lr_dist.search.trials.trial import run_once
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.environment import peak_memory_mb
from lr_dist.sequence.settings import SequenceSettings

LR = 2e-4


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--limit", type=int, default=1500, help="training examples a task")
    p.add_argument("--dev-size", type=int, default=1000, help="examples a task that are tested on after each epoch")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--seeds", type=int, default=5, help="trials of each kind")
    p.add_argument("--rounds", type=int, default=3, help="turns of each number of workers")
    p.add_argument("--state", type=Path, default=Path("runs/bench/search_throughput.jsonl"))
    p.add_argument("--child", help="(used by the command itself) what this process does, as JSON")
    options = p.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child), options)))
        return
    done = Done(options)
    for seed in range(options.seeds):
        for kind in ("plain", "ours") if seed % 2 == 0 else ("ours", "plain"):
            done.run(f"{kind} {seed}", [{"kind": kind, "seed": seed, "threads": threads_of(1)}])
    for turn in range(options.rounds):
        for count, threads in ((1, 1), (2, 1), (1, 2))[:: 1 if turn % 2 == 0 else -1]:
            parts = [{"kind": "worker", "seed": turn, "threads": threads}] * count
            done.run(f"{count} x {threads} thread(s) {turn}", parts)
    publish("search_throughput", figures(done, options), options.output)


def child(part: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One part, in this process."""
    torch.set_num_threads(part["threads"])
    names, folder = tasks()
    if part["kind"] == "plain":
        sizes = {"limit": options.limit, "dev_size": options.dev_size, "epochs": options.epochs, "batch_size": 32}
        outcome = plain_trial(names, LR, part["seed"], data_dir=folder, **sizes)
        return {**outcome, "peak_memory_mb": peak_memory_mb()}
    began = time.perf_counter()
    settings = SequenceSettings(epochs=options.epochs, evaluate_on="dev")
    bench = Bench.prepare("minilm", names, settings, limit=options.limit, dev_size=options.dev_size, data_dir=folder)
    started = time.perf_counter() - began
    if part["kind"] == "worker":
        # All workers begin together, when each is loaded.
        print("ready", flush=True)
        sys.stdin.readline()
    began = time.perf_counter()
    outcome = run_once(bench, Arm.of(LRDistribution.flat(LR)), part["seed"])
    outcome["seconds"] = time.perf_counter() - began
    dtype = torch.bfloat16 if bench.precision.chosen == "bf16-mixed" else torch.float32
    rate = matrix_rate(dtype) if part["kind"] == "ours" else None
    return {
        **{key: outcome[key] for key in ("seconds", "train_seconds", "tokens", "final")},
        "start_seconds": started,
        "matrix_rate": rate,
        "precision": bench.precision.to_dict(),
        "operations": operations(bench, options.epochs),
        "peak_memory_mb": peak_memory_mb(),
    }


class Done:
    """What was run, by name; kept in a file, line by line."""

    def __init__(self, options: argparse.Namespace) -> None:
        sizes = {"--limit": options.limit, "--dev-size": options.dev_size, "--epochs": options.epochs}
        self._command = [sys.executable, __file__, *(str(word) for pair in sizes.items() for word in pair)]
        self._state: Path = options.state
        self._state.parent.mkdir(parents=True, exist_ok=True)
        same = [options.limit, options.dev_size, options.epochs]
        lines = self._state.read_text(encoding="utf-8").splitlines() if self._state.exists() else []
        read = [json.loads(line) for line in lines if line.endswith("}")]
        self.outcomes: dict[str, list[dict[str, Any]]] = {r["name"]: r["parts"] for r in read if r["same"] == same}
        self._same = same

    def run(self, name: str, parts: list[dict[str, Any]]) -> None:
        """Run parts side by side, unless it is done."""
        if name in self.outcomes:
            return
        processes = [self._start(part) for part in parts]
        if parts[0]["kind"] == "worker":
            for process in processes:
                while process.stdout.readline().strip() != "ready":  # type: ignore[union-attr]
                    if process.poll() is not None:
                        raise SystemExit(f"{name}: a process ended; see above.")
        began = time.perf_counter()
        # Those that wait begin now, all at once; what is written to the others is not read.
        for process in processes:
            process.stdin.write("go\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        printed = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit(f"{name}: a process failed; see above.")
        self.outcomes[name] = [json.loads(text.splitlines()[-1]) for text in printed]
        with self._state.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "same": self._same, "parts": self.outcomes[name]}) + "\n")
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)

    def of(self, kind: str, count: int) -> list[dict[str, Any]]:
        return [self.outcomes[f"{kind} {number}"][0] for number in range(count)]

    def _start(self, part: dict[str, Any]) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(part["threads"]), "HF_HUB_OFFLINE": "1"}
        command = [*self._command, "--child", json.dumps(part)]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def figures(done: Done, options: argparse.Namespace) -> dict[str, Any]:
    """The summary of all that was run."""
    plain, ours = (done.of(kind, options.seeds) for kind in ("plain", "ours"))
    names, folder = tasks()
    hour = {
        label: 3600
        * count
        / statistics.median(
            max(part["seconds"] for part in done.outcomes[f"{label} {turn}"]) for turn in range(options.rounds)
        )
        for count, label in ((1, "1 x 1 thread(s)"), (2, "2 x 1 thread(s)"), (1, "1 x 2 thread(s)"))
    }
    rates = [part["matrix_rate"] for part in ours]
    shares = [part["operations"] / part["train_seconds"] / part["matrix_rate"] for part in ours]
    return {
        "tasks": names,
        "precision": ours[0]["precision"],
        "generated_stand_in": folder is None,
        "limit": options.limit,
        "dev_size": options.dev_size,
        "epochs": options.epochs,
        "trial": {
            "times_as_fast": round(_median(plain, "seconds") / _median(ours, "seconds"), 2),
            "plain": _trials(plain),
            "ours": _trials(ours),
            "start_seconds": round(_median(ours, "start_seconds"), 1),
        },
        "workers": {
            "trials_an_hour": {label: round(value, 1) for label, value in hour.items()},
            "two_workers_to_one_of_one_thread": round(hour["2 x 1 thread(s)"] / hour["1 x 1 thread(s)"], 2),
            "two_workers_to_one_of_two_threads": round(hour["2 x 1 thread(s)"] / hour["1 x 2 thread(s)"], 2),
        },
        "rate": {
            "tokens_a_second": round(statistics.median(part["tokens"] / part["train_seconds"] for part in ours)),
            "matrix_gflops": round(statistics.median(rates) / 1e9),
            "share_of_matrix_rate": round(statistics.median(shares), 3),
        },
    }


def _trials(parts: list[dict[str, Any]]) -> dict[str, Any]:
    scores = list(zip(*(part["final"] for part in parts), strict=True))
    return {
        "median_seconds": round(_median(parts, "seconds"), 1),
        "seconds": [round(part["seconds"], 1) for part in parts],
        "peak_memory_mb": max(part["peak_memory_mb"] for part in parts),
        "p_o": _spread(scores[0]),
        "p_s": _spread(scores[1]),
    }


def _spread(values: tuple[float, ...]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "by_seed": list(values)}


def _median(parts: list[dict[str, Any]], key: str) -> float:
    return statistics.median(part[key] for part in parts)


def tasks() -> tuple[list[str], str | None]:
    folder = data_dir()
    return (["sst2", "qqp"] if folder else ["demo-sentiment", "demo-entailment"]), folder


if __name__ == "__main__":
    main()
