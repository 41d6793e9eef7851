"""Run the properties of this folder at length: other cases than CI's, as many as are asked for.

    python tests/fuzz/at_length.py --cases 1000000 --only distributions yaml overrides
    python tests/fuzz/at_length.py --minutes 60 --only schedules --output runs/fuzz-schedules

The properties take turns, a few hundred cases each. The output folder holds `state.json` (how many cases of each
property ran, and which failed) and for each failure the shrunk case with its traceback. Interrupted in any way, the
same command continues; a property that failed is left out until its failure file is removed. Every turn's seed follows
from --seed, the property and the turn, so two runs of one seed and one Hypothesis see the same cases.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from harness import ENV_CASES

FOLDER = Path(__file__).parent
# A turn that takes longer hangs: where, is written to hang.txt, and the run ends.
LONGEST_TURN = 900


@dataclass
class Run:
    """What was run so far; `state.json` holds it.

    Attributes:
        seed: of all turns.
        cases: for each property, how many times its test ran to an end.
        turns: for each property, how many turns it had.
        seconds: for each property, its time.
        failed: the properties that failed.
        hypothesis: the version that made the cases.
    """

    seed: int
    cases: dict[str, int] = field(default_factory=dict)
    turns: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    hypothesis: str = hypothesis.__version__

    @classmethod
    def continued(cls, folder: Path, seed: int) -> Run:
        """The run of an earlier command in this folder, or a new one."""
        path = folder / "state.json"
        if not path.exists():
            return cls(seed)
        run = cls(**json.loads(path.read_text(encoding="utf-8")))
        if run.seed != seed:
            raise SystemExit(f"{path} is a run with --seed {run.seed}; take that seed, or another --output.")
        run.failed = [name for name in run.failed if failure_file(folder, name).exists()]
        return run

    def save(self, folder: Path) -> None:
        """Write the state; interrupted in the middle, the one before stays."""
        path = folder / "state.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        os.replace(draft, path)

    def total(self, names: list[str]) -> int:
        return sum(self.cases.get(name, 0) for name in names)


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ[ENV_CASES] = str(options.turn)
    properties = dict(found(options.only, options.folder))
    run = Run.continued(options.output, options.seed)
    names = [*properties]
    start = shown_at = time.monotonic()
    deadline = start + options.minutes * 60 if options.minutes else None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    try:
        while alive := [name for name in names if name not in run.failed]:
            # The one with the least time next: an early end leaves none out, and slow ones do not hold the others up.
            name = min(alive, key=lambda name: run.seconds.get(name, 0.0))
            now = time.monotonic()
            if run.total(names) >= options.cases or (deadline is not None and now >= deadline):
                break
            if now - shown_at >= 30:
                shown_at = now
                rate = sum(run.seconds.values()) / max(run.total(names), 1)
                print(
                    f"{run.total(names):,} of {options.cases:,} cases, {(now - start) / 60:.1f} min, "
                    f"{1000 * rate:.1f} ms a case, failed: {', '.join(run.failed) or 'none'}",
                    flush=True,
                )
            take_turn(run, name, properties[name], options.output)
    except KeyboardInterrupt:
        print("interrupted; the same command continues")
    run.save(options.output)
    print(summary(run, names, options.output))
    return 1 if run.failed else 0


def take_turn(run: Run, name: str, test: Callable[[], None], output: Path) -> None:
    """One turn of a property, counted; what fails is written to a file of its own."""
    turn = run.turns.get(name, 0)
    seed = int.from_bytes(hashlib.sha256(f"{run.seed} {name} {turn}".encode()).digest()[:8], "big")
    before, start = counts.get(name, 0), time.monotonic()
    with (output / "hang.txt").open("w", encoding="utf-8") as hang:
        faulthandler.dump_traceback_later(LONGEST_TURN, exit=True, file=hang)
        try:
            hypothesis.seed(seed)(test)()
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            head = f"{name}, --seed {run.seed}, turn {turn} (hypothesis.seed({seed})), hypothesis {run.hypothesis}"
            failure_file(output, name).write_text(f"{head}\n\n{text}", encoding="utf-8", errors="backslashreplace")
            run.failed.append(name)
            print(f"FAILED {name}: {failure_file(output, name)}", flush=True)
        finally:
            faulthandler.cancel_dump_traceback_later()
            os.unlink(hang.name)
    run.turns[name] = turn + 1
    run.cases[name] = run.cases.get(name, 0) + counts.get(name, 0) - before
    run.seconds[name] = run.seconds.get(name, 0.0) + time.monotonic() - start
    run.save(output)


counts: dict[str, int] = {}
interrupted: list[int] = []


def found(only: list[str], folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every property of the folder's modules as (module.test, test), its cases counted in `counts`."""
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    for path in sorted(folder.glob("test_*.py")):
        kind = path.stem.removeprefix("test_")
        if only and kind not in only:
            continue
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        for name, test in vars(module).items():
            if name.startswith("test_") and hypothesis.is_hypothesis_test(test):
                title = f"{kind}.{name}"
                test.hypothesis.inner_test = counted(title, test.hypothesis.inner_test)
                yield title, test


def counted(title: str, inner: Callable[..., None]) -> Callable[..., None]:
    """`inner`, counting the cases that it ran to an end; those that it discarded do not count."""

    def test(*arguments: Any, **options: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        inner(*arguments, **options)
        counts[title] = counts.get(title, 0) + 1

    return test


def failure_file(folder: Path, name: str) -> Path:
    return folder / f"failure-{name}.txt"


def summary(run: Run, names: list[str], output: Path) -> str:
    width = max(map(len, names), default=0)
    lines = [
        f"{name:{width}} {run.cases.get(name, 0):>9,} cases {run.seconds.get(name, 0):>8,.0f} s  "
        + ("FAILED" if name in run.failed else "passed")
        for name in names
    ]
    total, seconds = run.total(names), sum(run.seconds.get(name, 0) for name in names)
    return "\n".join([*lines, f"{total:,} cases in {seconds:,.0f} s, {len(run.failed)} failed; {output}/state.json"])


def interrupt(number: int, frame: FrameType | None) -> None:
    """Stop before the next case; raised here, KeyboardInterrupt can be swallowed where Python may not raise."""
    interrupted.append(number)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="how many in all, earlier ones included")
    parser.add_argument("--minutes", type=float, default=0.0, help="end after that time; 0 for no limit")
    parser.add_argument("--seed", type=int, default=0, help="another one, other cases")
    parser.add_argument("--only", nargs="+", default=[], help="distributions, yaml, overrides, schedules")
    parser.add_argument("--turn", type=int, default=500, help="cases of one property before the next has its turn")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder of the state and the failures")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the properties are")
    options = parser.parse_args(arguments)
    kinds = {path.stem.removeprefix("test_") for path in options.folder.glob("test_*.py")}
    if unknown := set(options.only) - kinds:
        parser.error(f"no properties of {', '.join(sorted(unknown))}; there are {', '.join(sorted(kinds))}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
