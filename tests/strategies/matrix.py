"""The table of strategies x schedulers x resume: `python tests/strategies/matrix.py --output runs/strategies`.

Every cell is made of real runs (`checks.py`). Two processes do what needs two. The command can be stopped and started
again: it goes on with the cells that are missing, unless the code has changed. It writes `strategies.json`, with every
result, and `strategies.md`, the tables of `docs/strategies.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(_TESTS))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from strategies import checks  # noqa: E402
from strategies.checks import Run  # noqa: E402
from strategies.launch import Processes  # noqa: E402
from strategies.runs import SCHEDULES, Case  # noqa: E402

SCHEMA_VERSION = 1
TITLES = {
    "single": "one process",
    "ddp": "DDP",
    "fsdp2": "FSDP2, full checkpoint",
    "fsdp2-distributed": "FSDP2, distributed checkpoint",
    "fsdp1": "FSDP1, sharded checkpoint",
}
_NOT_RUN = "\N{EN DASH}"
Check = Callable[[Case, Run, Path], list[str]]
CHECKS: dict[str, Check] = {
    "rates": lambda case, run, folder: checks.rates(case, run(case)),
    "weights": lambda case, run, folder: checks.weights(case, run(case)),
    "resume": lambda case, run, folder: checks.resumes(case, run, folder),
    "window": lambda case, run, folder: checks.resumes(case, run, folder, within_window=True),
    "refusal": checks.refuses_others,
}
# What one process does is what the others' weights are compared with.
# FSDP1 keeps whole gradients within a window, of which a process has no share to save.
NOT_RUN = {("single", "weights"), ("fsdp1", "window")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and write both files; the number of failed checks is the exit status."""
    options = _options(arguments)
    _be_quiet()
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "strategies.json"
    result = _started(file)
    cells = [(strategy, schedule) for strategy in options.strategies for schedule in options.schedules]
    with Processes(2) as processes:
        for index, (strategy, schedule) in enumerate(cells, 1):
            done = result["cells"].setdefault(strategy, {}).setdefault(schedule, {})
            wanted = [name for name in CHECKS if (strategy, name) not in NOT_RUN]
            missing = [name for name in wanted if name not in done]
            began = time.monotonic()
            run = cache(checks.alone if strategy == "single" else processes.run)
            for name in missing:
                with tempfile.TemporaryDirectory() as folder:
                    done[name] = CHECKS[name](Case("cell", strategy, schedule), run, Path(folder))
                _write(file, result)
            shown = "  ".join(f"{name} {'ok' if not done[name] else 'FAILED'}" for name in wanted)
            took = f"{time.monotonic() - began:.0f} s" if missing else "done before"
            print(f"[{index}/{len(cells)}] {strategy}, {schedule}: {shown}  ({took})", flush=True)
    (options.output / "strategies.md").write_text(render(result), encoding="utf-8")
    failed = _failed(result)
    for line in failed:
        print(line)
    print(f"{_passed(result)} checks passed, {len(failed)} failed: {file}")
    return min(len(failed), 100)


def render(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    counted = ["| | " + " | ".join(CHECKS) + " |", "|---|" + "---|" * len(CHECKS)]
    for strategy, schedules in result["cells"].items():
        row = []
        for name in CHECKS:
            lists = [found[name] for found in schedules.values() if name in found]
            row.append(f"{sum(not found for found in lists)} of {len(lists)}" if lists else _NOT_RUN)
        counted.append(f"| {TITLES[strategy]} | " + " | ".join(row) + " |")
    strategies = list(result["cells"])
    titles = " | ".join(TITLES[name] for name in strategies)
    each = [f"| scheduler | {titles} |", "|---|" + "---|" * len(strategies)]
    for schedule in result["cells"][strategies[0]]:
        row = []
        for strategy in strategies:
            found = result["cells"][strategy].get(schedule, {})
            failed = [name for name, lines in found.items() if lines]
            count = f"{len(found) - len(failed)} of {len(found)}" if found else _NOT_RUN
            row.append(count + (f", not {', '.join(failed)}" if failed else ""))
        each.append(f"| {schedule} | " + " | ".join(row) + " |")
    made = result["environment"]
    versions = ", ".join(f"{name} {made['packages'][name]}" for name in made["packages"])
    passed, failed = _passed(result), len(_failed(result))
    closing = f"{passed} of {passed + failed} checks pass. Made with {versions} on {made['machine']}."
    return "\n".join([*counted, "", *each, "", closing]) + "\n"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for strategies.json and strategies.md")
    parser.add_argument("--strategies", nargs="+", choices=TITLES, default=list(TITLES), metavar="NAME")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES), metavar="NAME")
    return parser.parse_args(arguments)


def _be_quiet() -> None:
    """Of Lightning's lines for each of hundreds of runs none is news."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _started(file: Path) -> dict[str, Any]:
    """What an earlier start has written, if it was of the same code; else a new result."""
    new = {
        "schema_version": SCHEMA_VERSION,
        "command": "python tests/strategies/matrix.py",
        "code": _code(),
        "environment": {
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} processors, gloo",
            "packages": {name: importlib.metadata.version(name) for name in ("torch", "lightning", "transformers")},
        },
        "cells": {},
    }
    if file.exists():
        old = json.loads(file.read_text(encoding="utf-8"))
        same = {key: old.get(key) for key in ("schema_version", "code", "environment")}
        if same == {key: new[key] for key in same}:
            return old
        print(f"{file} was made with other code or versions: starting over.")
    return new


def _code() -> str:
    """A digest of all that takes part in a run."""
    root = _TESTS.parent
    files = sorted([*root.glob("lr_dist/**/*.py"), *_TESTS.glob("strategies/*.py"), _TESTS / "tiny.py"])
    digest = hashlib.sha256()
    for file in files:
        if not file.name.startswith("test_"):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _write(file: Path, result: dict[str, Any]) -> None:
    half = file.with_suffix(".part")
    half.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    half.replace(file)


def _passed(result: dict[str, Any]) -> int:
    return sum(not found for _, _, _, found in _results(result))


def _failed(result: dict[str, Any]) -> list[str]:
    return [f"{TITLES[a]}, {b}, {name}: {'; '.join(found)}" for a, b, name, found in _results(result) if found]


def _results(result: dict[str, Any]) -> list[tuple[str, str, str, list[str]]]:
    return [
        (strategy, schedule, name, found)
        for strategy, schedules in result["cells"].items()
        for schedule, names in schedules.items()
        for name, found in names.items()
    ]


if __name__ == "__main__":
    raise SystemExit(main())
