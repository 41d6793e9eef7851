"""Run generated bad inputs by the thousand: each one must be answered within a minute, with a name.

    python tests/badinput/bad_inputs.py --cases 10000

Every case is a real command line of `lr-dist` with the files that it names, run in this process's pool of workers. A
worker that gives no answer within a minute is killed and counted. The output folder keeps a line a case in
`cases.jsonl`; interrupted in any way, the same command continues, and `--only N` runs case N alone and prints all that
it said. Equal seeds draw equal cases.

Outcomes: `well` (status 0, or refused by what was put there to end it), `named` (an error of lr_dist/errors.py),
`usage` (refused by the parser), `unknown` (an error that lr-dist does not know: a bug), `traceback`, `no answer`,
`killed` (the process died), `leak` (a password or a control character was printed). Only the first three are right.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import multiprocessing
import os
import pwd
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent), str(FOLDER.parents[1])]

from kinds import DEMO, KINDS, REACHED, Case, Sources, drawn  # noqa: E402

RIGHT = ("well", "named", "usage")
SECONDS = 60
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@dataclass(frozen=True)
class Outcome:
    """What a case came to.

    Attributes:
        number: of the case.
        kind: of the input.
        outcome: see the module's docstring.
        said: the last line on standard error.
        seconds: it took.
    """

    number: int
    kind: str
    outcome: str
    said: str
    seconds: float


def prepare(folder: Path) -> Sources:
    """A tiny model, and a comparison of it that has ended; made once a folder."""
    from tiny_folder import save_tiny_model

    from lr_dist.cli import main

    model, comparison = folder / "tiny-model", folder / "ended"
    command = (
        *("compare", "--model", str(model), "--tasks", *DEMO, "--distributions", "flat:lr=1e-3", "--seeds", "0"),
        *("--limit", "64", "--epochs", "1", "--batch-size", "32", "--precision", "32-true"),
    )
    if not (folder / "prepared").exists():
        shutil.rmtree(model, ignore_errors=True)
        shutil.rmtree(comparison, ignore_errors=True)
        save_tiny_model(model)
        with _beside(Case([], {"LR_DIST_CACHE": str(folder / "cache")})), contextlib.redirect_stdout(io.StringIO()):
            assert main([*command, "--output", str(comparison)]) == 0
        (folder / "prepared").touch()
    return Sources(model, comparison, command)


def run_case(seed: int, number: int, sources: Sources, cache: Path, *, show: bool = False) -> Outcome:
    """Make the case, run it in this process, and judge what it said."""
    from lr_dist.cli import main

    folder = Path(tempfile.mkdtemp(prefix="lr-dist-bad-"))
    here, start = os.getcwd(), time.monotonic()
    kind = "?"
    out, err = io.StringIO(), io.StringIO()
    try:
        kind, case = drawn(seed, number, folder, sources)
        os.chdir(folder)
        if show:
            print(kind, case, folder)
        environment = {"LR_DIST_CACHE": str(cache), "LR_DIST_DATA": None, **case.environment}
        with (
            _beside(Case(case.arguments, environment, case.homeless)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            status: Any = main(["--traceback", *case.arguments] if show else case.arguments)
        outcome = {0: "well", 1: "unknown", 2: "named"}.get(status, f"status {status}")
    except SystemExit as stop:
        outcome = {0: "well", 2: "usage"}.get(stop.code, f"status {stop.code}")  # type: ignore[arg-type]
    except BaseException:
        outcome = "traceback"
        err.write(traceback.format_exc())
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)
    said = err.getvalue()
    # What rich adds itself is no control sequence where the output is no terminal.
    if outcome in RIGHT and ("hunter2" in said + out.getvalue() or _ACTING.search(said + out.getvalue())):
        outcome = "leak"
    if outcome == "named" and REACHED in said:
        outcome = "well"
    if show:
        print(out.getvalue(), said, sep="\n")
    lines = said.strip().splitlines()
    return Outcome(number, kind, outcome, lines[-1][:300] if lines else "", round(time.monotonic() - start, 2))


@contextlib.contextmanager
def _beside(case: Case) -> Iterator[None]:
    before, entry = dict(os.environ), pwd.getpwuid
    try:
        for name, value in case.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if case.homeless:
            os.environ.pop("HOME", None)
            pwd.getpwuid = _nobody
        tempfile.tempdir = None
        yield
    finally:
        pwd.getpwuid = entry
        tempfile.tempdir = None
        os.environ.clear()
        os.environ.update(before)


def _nobody(number: int) -> Any:
    raise KeyError(f"getpwuid(): uid not found: {number}")


def worker(pipe: Any, seed: int, sources: Sources, cache: Path) -> None:
    """Answer case numbers from the pipe with outcomes; standard output and error of libraries go nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    while (number := pipe.recv()) is not None:
        pipe.send(asdict(run_case(seed, number, sources, cache)))


class Worker:
    """A process that runs cases, replaced when it gives no answer."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=worker, args=(other, *self._arguments), daemon=True)
        self._process.start()
        other.close()
        self.number: int | None = None
        self._cases = 0

    def give(self, number: int) -> None:
        # Libraries keep what they loaded; a fresh process now and then keeps memory flat.
        if self._cases >= 500:
            self.end()
            self._start()
        self._cases += 1
        self.number, self._begun = number, time.monotonic()
        self.pipe.send(number)

    def answer(self) -> Outcome | None:
        """What the case came to, or None while it runs."""
        assert self.number is not None
        number, spent = self.number, time.monotonic() - self._begun
        # The first case of a process imports torch and transformers, which a loaded machine takes long for.
        limit = SECONDS if self._cases > 1 else 3 * SECONDS
        try:
            if self.pipe.poll(0):
                self.number = None
                return Outcome(**self.pipe.recv())
            if spent < limit:
                return None
            outcome = "no answer"
        except (EOFError, OSError):
            outcome = "killed"
        self.end()
        self._start()
        return Outcome(number, "?", outcome, "", round(spent, 1))

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def sweep(cases: int, seed: int, output: Path, processes: int, minutes: float) -> list[Outcome]:
    """Run what is left of the cases, a line in cases.jsonl each; returns all outcomes."""
    output.mkdir(parents=True, exist_ok=True)
    sources = prepare(output)
    log = output / f"cases-{seed}.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    outcomes = {data["number"]: Outcome(**data) for data in map(_parsed, lines) if data}
    left = iter([number for number in range(cases) if number not in outcomes])
    end = time.monotonic() + minutes * 60 if minutes else float("inf")
    workers = [Worker(seed, sources, output / "cache") for _ in range(processes)]
    shown_at = time.monotonic()
    with log.open("a") as file:
        if lines and not log.read_text().endswith("\n"):
            file.write("\n")
        try:
            while True:
                for one in workers:
                    if one.number is None and time.monotonic() < end and (number := next(left, None)) is not None:
                        one.give(number)
                busy = [one for one in workers if one.number is not None]
                if not busy:
                    break
                multiprocessing.connection.wait([one.pipe for one in busy], timeout=1)  # type: ignore[attr-defined]
                for one in busy:
                    outcome = one.answer()
                    if outcome is None:
                        continue
                    outcomes[outcome.number] = outcome
                    file.write(json.dumps(asdict(outcome)) + "\n")
                    file.flush()
                    if outcome.outcome not in RIGHT:
                        print(f"case {outcome.number}: {outcome.outcome}: {outcome.kind}: {outcome.said}", flush=True)
                if time.monotonic() - shown_at > 30:
                    shown_at = time.monotonic()
                    print(f"{len(outcomes):,} of {cases:,} cases", flush=True)
        except KeyboardInterrupt:
            print("interrupted; the same command continues")
        finally:
            for one in workers:
                one.end()
    return [outcome for number, outcome in sorted(outcomes.items()) if number < cases]


def table(outcomes: list[Outcome]) -> str:
    """Counts by kind and outcome."""
    names = [*RIGHT, *sorted({o.outcome for o in outcomes} - set(RIGHT))]
    counts = collections.Counter((o.kind, o.outcome) for o in outcomes)
    lines = [f"{'kind':16}" + "".join(f"{name:>11}" for name in names) + f"{'slowest':>11}"]
    for kind in [*KINDS, *sorted({o.kind for o in outcomes} - set(KINDS))]:
        slowest = max((o.seconds for o in outcomes if o.kind == kind), default=0)
        lines.append(f"{kind:16}" + "".join(f"{counts[kind, name]:>11,}" for name in names) + f"{slowest:>9.1f} s")
    totals = collections.Counter(o.outcome for o in outcomes)
    lines.append(f"{'all':16}" + "".join(f"{totals[name]:>11,}" for name in names))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="how many in all, earlier ones included")
    parser.add_argument("--seed", type=int, default=0, help="another one, other cases")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=0.0, help="end after that time; 0 for no limit")
    parser.add_argument("--output", type=Path, default=Path("runs/badinput"), help="folder of the lines and the cases")
    parser.add_argument("--only", type=int, nargs="+", help="run these cases in this process and print what they said")
    options = parser.parse_args(arguments)
    options.output = options.output.resolve()
    if options.only:
        sources = prepare(options.output)
        for number in options.only:
            print(run_case(options.seed, number, sources, options.output / "cache", show=True))
        return 0
    outcomes = sweep(options.cases, options.seed, options.output, options.processes, options.minutes)
    print(table(outcomes))
    return 0 if all(outcome.outcome in RIGHT for outcome in outcomes) else 1


def _parsed(line: str) -> dict[str, Any] | None:
    # A line that a kill cut is run again.
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
