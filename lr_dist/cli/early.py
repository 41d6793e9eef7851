"""Typing errors in the texts of a command, found before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def check_texts(tasks: Iterable[Any], rates: Iterable[Any]) -> None:
    """Check the names of tasks and the texts of rates, without torch.

    What needs the model or the data (the number of layers, a method's settings, a task's files) is checked later.

    Args:
        tasks: as in `--tasks`.
        rates: texts of distributions or arms; mappings are left to the command.

    Raises:
        UnknownTaskError: a task that does not exist.
        LRDistError: a text of rates that is not valid, or the name of a preset that does not exist.
    """
    from lr_dist.presets import resolve_plan
    from lr_dist.tasks.registry import check_task_names

    for text in rates:
        # An arm's methods stand behind a plus sign; rates from the model's weights need the model.
        written = text.split(" + ")[0].strip() if isinstance(text, str) else ""
        if written and "heavy-tail" not in written:
            resolve_plan(written)
    check_task_names(tasks)
