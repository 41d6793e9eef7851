"""Loads tasks by their text or YAML form: `sst2`, `demo-sentiment`, `my=PATH`, a mapping, `sst2@length`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lr_dist.errors import ConfigurationError, UnknownTaskError
from lr_dist.names import did_you_mean
from lr_dist.tasks.custom import load_custom, parse_custom
from lr_dist.tasks.demo import DEMO_TASKS, load_demo
from lr_dist.tasks.draw import draw_task
from lr_dist.tasks.glue import GLUE_TASKS, load_glue
from lr_dist.tasks.shifts import Encode, data_shift, embedding_shift
from lr_dist.tasks.task import Task

DATA_DIR_VARIABLE = "LR_DIST_DATA"
SHIFTS: tuple[str, ...] = ("length", "embedding")

Spec = str | Mapping[str, Any]


def task_names() -> tuple[str, ...]:
    """Names of the tasks that need no path: GLUE and the generated tasks."""
    return GLUE_TASKS + DEMO_TASKS


def load_task(
    spec: Spec,
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    dev_size: int | float | None = None,
    seed: int = 0,
) -> Task:
    """Loads one task and draws its splits.

    Args:
        spec: A GLUE task (`sst2`), a generated task (`demo-sentiment`), a user's own (`my=PATH`, or a mapping with
            `name`, `path`, and optionally `text`, `label`, `kind`, `metrics`, `subset`, `head`).
        data_dir: Folder with the GLUE files; None uses the environment variable LR_DIST_DATA or, if it is not
            set, the hub.
        limit: Rows of train to keep, drawn with `seed`; None keeps all.
        dev_size: Rows (int) or share (float) of the source's train that become `dev`; None: min(1,000, 10%).
        seed: Seed for the rows that `limit` keeps; `dev` does not depend on it.

    Raises:
        UnknownTaskError: No task has this name.
        TaskDataError: Data that cannot be loaded or used.
        ConfigurationError: A shift (it is two tasks: use `load_tasks`), or an invalid `limit` or `dev_size`.
    """
    base, shift = split_shift(spec)
    if shift is not None:
        raise ConfigurationError(f"{spec!r} is two tasks, the halves of {base!r}; load it with load_tasks")
    check_task_names([base])
    if isinstance(base, Mapping) or "=" in base:
        custom = parse_custom(base)
        if custom.name in task_names():
            raise ConfigurationError(f"{custom.name!r} is the name of an existing task; give yours another name")
        raw = load_custom(custom)
    elif base in DEMO_TASKS:
        raw = load_demo(base)
    else:
        raw = load_glue(base, data_dir or os.environ.get(DATA_DIR_VARIABLE) or None)
    return draw_task(raw, limit=limit, dev_size=dev_size, seed=seed)


def load_tasks(
    specs: Sequence[Spec],
    *,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    dev_size: int | float | None = None,
    seed: int = 0,
    encode: Encode | None = None,
) -> list[Task]:
    """Loads a task sequence; `TASK@length` and `TASK@embedding` become two tasks each.

    Args:
        specs: As for `load_task`, and shifts.
        data_dir, limit, dev_size, seed: As in `load_task`. For a shift, `limit` counts both halves together.
        encode: Returns the pre-trained vectors of texts (see `cls_encoder`); needed for `TASK@embedding`.

    Raises:
        ConfigurationError: Two tasks with the same name, two with one head and other classes, an embedding shift
            without `encode`, or no task.
        LRDistError: What `load_task` raises.
    """
    if isinstance(specs, str | Mapping) or not specs:
        raise ConfigurationError(f"tasks is {specs!r}; give a list of at least one task")
    # All of them before the first one is loaded.
    check_task_names(specs)
    tasks: list[Task] = []
    for spec in specs:
        base, shift = split_shift(spec)
        if shift == "embedding" and encode is None:
            raise ConfigurationError(
                f"{spec!r} clusters the vectors of a pre-trained model: pass encode=cls_encoder(model, tokenizer)"
            )
        task = load_task(base, data_dir=data_dir, limit=limit, dev_size=dev_size, seed=seed)
        if shift is None:
            tasks.append(task)
        elif shift == "length":
            tasks += data_shift(task)
        elif encode is not None:
            tasks += embedding_shift(task, encode)
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(
            f"the task sequence {', '.join(names)} names {', '.join(twice)} more than once; every task needs its "
            "own name"
        )
    _check_heads(tasks)
    return tasks


def _check_heads(tasks: Sequence[Task]) -> None:
    """Tasks that share an output layer must mean the same by each of its outputs."""
    first: dict[str, Task] = {}
    for task in tasks:
        other = first.setdefault(task.head, task)
        if (other.kind, other.classes) != (task.kind, task.classes):
            raise ConfigurationError(
                f"{task.name} and {other.name} share the head {task.head!r}, and their classes differ: "
                f"{', '.join(task.classes) or task.kind}; {', '.join(other.classes) or other.kind}. Give {task.name} a "
                "head of its own, or name the classes alike, in the same order."
            )


def check_task_names(specs: Iterable[Spec]) -> None:
    """Check that every task without a path of its own is known; reads no data.

    Raises:
        UnknownTaskError: A name or a shift that does not exist.
    """
    for spec in specs:
        base, _ = split_shift(spec)
        if isinstance(base, str) and "=" not in base and base not in task_names():
            raise UnknownTaskError(_unknown(base))


def split_shift(spec: Spec) -> tuple[Spec, str | None]:
    """`sst2@length` -> (`sst2`, "length"); anything without a shift -> (itself, None).

    Raises:
        UnknownTaskError: A shift that does not exist.
    """
    if isinstance(spec, Mapping):
        return spec, None
    base, at, shift = spec.rpartition("@")
    # In `my=PATH` an @ may belong to the path.
    if not at or ("=" in spec and shift not in SHIFTS):
        return spec, None
    if shift not in SHIFTS:
        raise UnknownTaskError(f"{spec!r}: no shift named {shift!r}; there are: {', '.join(SHIFTS)}")
    return base, shift


def _unknown(name: str) -> str:
    names = task_names()
    return (
        f"no task named {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}; your own task is written "
        "my=PATH, and a shift TASK@length or TASK@embedding"
    )
