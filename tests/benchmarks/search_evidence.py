"""What a search is worth: search on some task pairs, combine, and measure the outcome on pairs that it never saw.

1. `lr-dist search` on each of `--pairs`: a study of four knots, and one of flat rates, the control, in the same bounds.
2. `lr-dist combine`: the knots of all pairs as one distribution; the flat rates of all pairs, in the same way, as one.
3. `lr-dist compare` of the two and flat 2e-5 on each of `--held-out`, on official validation, over several seeds.
4. `lr-dist report --against` the tuned flat rate: paired differences with their confidence intervals.

Trials, combined distributions, results and differences are written to `--files`. Everything goes on where it was
stopped; the defaults take about five hours on two cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lr_dist.presets import read_preset

CONFIGS = Path(__file__).parents[2] / "configs" / "search"
SEARCHED = ["sst2>qqp", "qqp>sst2", "sst2>mnli", "mnli>sst2"]
HELD_OUT = ["sst2>qnli", "qnli>sst2", "qqp>qnli", "qnli>qqp", "mnli>qnli", "qnli>mnli"]
UNTUNED = "flat:lr=2e-5"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", nargs="+", default=SEARCHED)
    p.add_argument("--held-out", nargs="+", default=HELD_OUT)
    p.add_argument("--knots", type=int, default=40, help="trials a pair")
    p.add_argument("--flat", type=int, default=16, help="trials a pair")
    p.add_argument("--seeds", type=int, default=5, help="of each distribution on each held-out pair")
    p.add_argument("--model", default="minilm")
    p.add_argument("--limit", type=int, default=1500, help="training examples a task")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--workers", type=int, default=2, help="processes of one thread")
    p.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="studies and runs")
    p.add_argument("--files", type=Path, default=Path("configs/evidence/search"), help="what is kept")
    options = p.parse_args()
    options.files.mkdir(parents=True, exist_ok=True)
    for space, trials in (("flat", options.flat), ("knots", options.knots)):
        for pair in options.pairs:
            search(pair, space, trials, options)
    knots, flat = (combined(space, options) for space in ("knots", "flat"))
    tuned = f"flat:lr={read_preset(flat).distribution.rates(1)['head']:.3g}"
    compared = [knots.stem, tuned, UNTUNED]
    # One more seed of every pair at a time, so that whoever stops in between has all pairs.
    for seeds in range(1, options.seeds + 1):
        with ThreadPoolExecutor(options.workers) as pool:
            results = list(pool.map(lambda pair: measured(pair, compared, seeds, options), options.held_out))  # noqa: B023
        table = run("report", *results, "--against", tuned, "--markdown", "true")
        (options.files / "differences.md").write_text(table, encoding="utf-8")
        print(table, flush=True)


def search(pair: str, space: str, trials: int, options: argparse.Namespace) -> None:
    """One study to its end, and its trials as CSV."""
    study = ["--study", study_name(pair, space), "--output", str(options.folder)]
    what = ["--config", str(CONFIGS / f"{space}.yaml"), "--tasks", *pair.split(">"), "--trials", str(trials)]
    run("search", *what, *study, "--workers", str(options.workers), *sizes(options), shown=True)
    run("search", "export", *study, "--csv", str(options.files / f"{study_name(pair, space)}.csv"))


def combined(space: str, options: argparse.Namespace) -> Path:
    """The studies of one space as one distribution."""
    studies = [study_name(pair, space) for pair in options.pairs]
    preset = options.files / f"combined-{space}.yaml"
    run("combine", *studies, "--output", str(options.folder), "--output-file", str(preset), shown=True)
    return preset


def measured(pair: str, distributions: list[str], seeds: int, options: argparse.Namespace) -> str:
    """A comparison on one held-out pair, over so many seeds; returns its result file."""
    folder = options.folder / pair.replace(">", "-")
    which = [str(seed) for seed in range(seeds)]
    what = ["--tasks", *pair.split(">"), "--distributions", *distributions, "--seeds", *which, *sizes(options)]
    own = {"OMP_NUM_THREADS": "1", "LR_DIST_PRESETS": str(options.files)}
    run("compare", *what, "--output", str(folder), **own)
    return str(shutil.copy(folder / "result.json", options.files / f"{folder.name}.json"))


def sizes(options: argparse.Namespace) -> list[str]:
    return ["--model", options.model, "--limit", str(options.limit), "--epochs", str(options.epochs)]


def study_name(pair: str, space: str) -> str:
    return f"{pair.replace('>', '-')}-{space}"


def run(*words: str, shown: bool = False, **environment: str) -> str:
    """One command of lr-dist; its output is shown as it comes, or returned."""
    command = [sys.executable, "-m", "lr_dist.cli", *words]
    output = None if shown else subprocess.PIPE
    done = subprocess.run(command, env={**os.environ, **environment}, stdout=output, text=True)
    if done.returncode:
        raise SystemExit(f"lr-dist {' '.join(words)} ended with {done.returncode}; the same command goes on there.")
    return done.stdout or ""


if __name__ == "__main__":
    main()
