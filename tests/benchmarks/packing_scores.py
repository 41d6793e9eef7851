"""Whether trials without padding score like padded ones: both, seed by seed, with everything else the same.

They compute the same function and differ in what dropout draws, so scores should differ by chance only. Each runs in
turn; what is done is kept in `--state`, and the same command goes on there. Commands with other `--seeds` can share it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from common import parser, publish
from search_throughput import LR, tasks

from lr_dist.distribution import LRDistribution
from lr_dist.search.trials.trial import run_once
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.differences import Interval
from lr_dist.sequence.settings import SequenceSettings


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--limit", type=int, default=600, help="training examples a task")
    p.add_argument("--dev-size", type=int, default=400, help="examples a task that are tested on")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--seeds", type=int, nargs="+", default=list(range(10, 22)))
    p.add_argument("--state", type=Path, default=Path("runs/bench/packing_scores.jsonl"))
    options = p.parse_args()
    names, folder = tasks()
    sizes = {"limit": options.limit, "dev_size": options.dev_size}
    same = [options.limit, options.dev_size, options.epochs]
    settings = SequenceSettings(epochs=options.epochs, evaluate_on="dev")
    bench = Bench.prepare("minilm", names, settings, data_dir=folder, **sizes)
    view = bench.view()
    if view.first_position is None:
        raise SystemExit("This model is padded anyway.")
    padded = bench.with_view(dataclasses.replace(view, first_position=None))
    options.state.parent.mkdir(parents=True, exist_ok=True)
    options.state.touch()
    for seed in options.seeds:
        for kind, which in (("packed", bench), ("padded", padded)):
            if (seed, kind) not in read(options.state, same):
                run = run_once(which, Arm.of(LRDistribution.flat(LR)), seed)
                line = {"same": same, "seed": seed, "kind": kind, "final": run["final"], "s": run["seconds"]}
                with options.state.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    found = {"tasks": names, "precision": bench.precision.to_dict(), **sizes, **figures(read(options.state, same))}
    publish("packing_scores", found, options.output)


def read(state: Path, same: list[int]) -> dict[tuple[int, str], dict[str, Any]]:
    """The runs of these sizes, by seed and kind."""
    runs = [json.loads(line) for line in state.read_text(encoding="utf-8").splitlines()]
    return {(run["seed"], run["kind"]): run for run in runs if run["same"] == same}


def figures(runs: dict[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds that both have: means, standard deviations, the paired difference and half its 95% interval."""
    seeds = sorted(seed for seed, kind in runs if kind == "packed" and (seed, "padded") in runs)
    found: dict[str, Any] = {"seeds": seeds}
    for index, name in enumerate(("p_o", "p_s")):
        scores = {kind: [runs[seed, kind]["final"][index] for seed in seeds] for kind in ("packed", "padded")}
        differences = [ours - theirs for ours, theirs in zip(scores["packed"], scores["padded"], strict=True)]
        interval = Interval.of(differences, 0.95)
        found[name] = {
            **{f"{kind}_mean_sd": [statistics.fmean(own), statistics.stdev(own)] for kind, own in scores.items()},
            "packed_minus_padded": [interval.mean, interval.half],
            "differences": differences,
        }
    for kind in ("packed", "padded"):
        found[f"{kind}_median_seconds"] = statistics.median(runs[seed, kind]["s"] for seed in seeds)
    return found


if __name__ == "__main__":
    main()
