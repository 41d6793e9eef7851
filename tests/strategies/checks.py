"""What has to hold of a run under a strategy. Each check returns what does not: nothing, if all is well.

The tests and the command that makes the table (`matrix.py`) share them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from strategies.runs import BASE, EPOCHS, STEPS, Case, perform

Outcome = dict[str, Any]
Run = Callable[[Case], list[Outcome]]

RATES = {**tiny.RATES, "layers.0": 0.0}
OTHER = "decay:lr=1e-3,factor=0.5"
# The second step of the second epoch, which is also in the middle of a window of two.
MIDDLE = 6


def alone(case: Case) -> list[Outcome]:
    """Run `case` in this process, with as many threads as the others have; for models this small, more cost time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [perform(case)]
    finally:
        torch.set_num_threads(threads)


def rates(case: Case, outcomes: list[Outcome]) -> list[str]:
    """In every process, every group has its layer's rate times the factor of the schedule, at every step.

    The factor is what the same schedule gives one flat group, in a run of a single process without LayerwiseLR.
    """
    if found := _errors(outcomes):
        return found
    factors = [rate / BASE for rate in _flat_rates(case.schedule)]
    for rank, outcome in enumerate(outcomes):
        if list(outcome["rates"]) != list(RATES):
            found.append(f"process {rank}: groups {list(outcome['rates'])}")
            continue
        for name, rate in RATES.items():
            pairs = zip(outcome["rates"][name], [rate * factor for factor in factors], strict=True)
            wrong = [f"{a} not {b}" for a, b in pairs if abs(a - b) > 1e-12 * b]
            found += [f"process {rank}: {name}: {', '.join(wrong)}"] if wrong else []
    return found


def weights(case: Case, outcomes: list[Outcome], *, tolerance: float = 1e-6) -> list[str]:
    """The weights in the end are those of a single process that saw the same batches, and they have moved."""
    found = _errors(outcomes)
    single = _single(replace(case, name="single", strategy="single"))
    found += _errors(single)
    if found:
        return found
    start, expected = tiny.weights(tiny.bert()), single[0]["whole"]
    for rank, outcome in enumerate(outcomes):
        if list(outcome["whole"]) != list(expected):
            found.append(f"process {rank}: other parameters")
            continue
        apart = max((outcome["whole"][name] - expected[name]).abs().max().item() for name in expected)
        if not apart <= tolerance:
            found.append(f"process {rank}: weights are {apart} apart")
        frozen = [name for name in start if torch.equal(outcome["whole"][f"model.{name}"], start[name])]
        if frozen != [name.removeprefix("model.") for name in outcome["frozen"]]:
            found.append(f"process {rank}: did not move: {frozen}; has no gradient: {outcome['frozen']}")
    return found


def resumes(case: Case, run: Run, folder: Path, *, within_window: bool = False, dropout: float = 0.2) -> list[str]:
    """A run that is resumed in the middle of an epoch ends bit for bit where the unbroken one does, in each process.

    With dropout, so that random numbers count, and with a shuffled DataLoader, so that the position in the data does.

    Args:
        case: without a checkpoint.
        run: runs a case in all processes.
        folder: for the checkpoint.
        within_window: with `accumulate_grad_batches=2`, in the middle of a window.
        dropout: 0 where all processes have to draw the same numbers.
    """
    case = replace(case, dropout=dropout)
    if within_window:
        case = replace(case, options=(*case.options, ("accumulate_grad_batches", 2)))
        path = folder / "window.ckpt"
        saving = replace(case, save_after=MIDDLE + 1, checkpoint=str(path))
    else:
        path = folder / f"stopped-step={MIDDLE}.ckpt"
        saving = replace(case, save_at_step=MIDDLE, checkpoint=f"{folder}/stopped-{{step}}")
    unbroken = run(saving)
    resumed = run(replace(case, resume=str(path)))
    found = _errors(unbroken) + _errors(resumed)
    if found:
        return found
    steps = STEPS * EPOCHS // (2 if within_window else 1)
    done = MIDDLE // (2 if within_window else 1)
    for rank, (whole, rest) in enumerate(zip(unbroken, resumed, strict=True)):
        taken = {len(group) for group in rest["rates"].values()}
        if taken != {steps - done} or rest["steps"] != steps:
            found.append(f"process {rank}: {taken} steps, {rest['steps']} in all, not {steps - done} and {steps}")
        expected = {name: group[done:] for name, group in whole["rates"].items()}
        found += differences(expected, rest["rates"], f"process {rank}: rates")
        for part in ("weights", "optimizer", "schedulers", "random"):
            found += differences(whole[part], rest[part], f"process {rank}: {part}")
    if dropout and len(unbroken) > 1 and torch.equal(unbroken[0]["random"]["torch"], unbroken[1]["random"]["torch"]):
        found.append("the processes draw the same random numbers, so this shows nothing")
    return found


def refuses_others(case: Case, run: Run, folder: Path) -> list[str]:
    """A checkpoint of another distribution is refused in every process before a step, by the error that names both."""
    path = folder / f"own-step={MIDDLE}.ckpt"
    found = _errors(run(replace(case, save_at_step=MIDDLE, checkpoint=f"{folder}/own-{{step}}")))
    for rank, outcome in enumerate(run(replace(case, distribution=OTHER, resume=str(path)))):
        error = outcome["error"]
        if error is None or error["type"] != "ResumeMismatchError" or "layers=3e-5/2e-4/5e-4" not in error["message"]:
            found.append(f"process {rank}: {error}")
        if outcome["rates"]:
            found.append(f"process {rank}: took steps")
    return found


def differences(left: Any, right: Any, where: str) -> list[str]:
    """Where two outcomes differ, to the bit."""
    if type(left) is not type(right):
        return [f"{where}: {left!s:.60} and {right!s:.60}"]
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [f"{where}: other numbers"]
    if isinstance(left, dict):
        if list(left) != list(right):
            return [f"{where}: keys {list(left)} and {list(right)}"]
        return [line for key in left for line in differences(left[key], right[key], f"{where}.{key}")]
    if isinstance(left, list):
        if len(left) != len(right):
            return [f"{where}: {len(left)} and {len(right)} of them"]
        pairs = enumerate(zip(left, right, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    return [] if left == right else [f"{where}: {left!s:.60} and {right!s:.60}"]


def _errors(outcomes: list[Outcome]) -> list[str]:
    return [
        f"process {rank}: {outcome['error']['type']}: {outcome['error']['message']}"
        for rank, outcome in enumerate(outcomes)
        if outcome["error"] is not None
    ]


@cache
def _single(case: Case) -> list[Outcome]:
    return alone(case)


@cache
def _flat_rates(schedule: str) -> list[float]:
    (outcome,) = alone(Case("flat", schedule=schedule, distribution=None))
    assert outcome["error"] is None, outcome["error"]
    (flat,) = outcome["rates"].values()
    return flat
