"""What the tests of the tasks share: small tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lr_dist.tasks.task import Task, make_split


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """Builds a task from (text, label) rows; labels are class ids."""

    def build(
        rows: Sequence[tuple[str, int]],
        name: str = "toy",
        classes: tuple[str, ...] = ("no", "yes"),
        metrics: tuple[str, ...] = ("accuracy",),
        **splits: Any,
    ) -> Task:
        data = {"train": rows, "dev": rows, "validation": rows, **splits}
        made = {
            split: make_split([row[0] for row in found], None, [row[1] for row in found], "classification")
            for split, found in data.items()
        }
        return Task(name=name, kind="classification", classes=classes, metrics=metrics, **made)

    return build
