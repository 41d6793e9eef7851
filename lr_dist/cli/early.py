"""Typing errors in the texts of a command, found before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lr_dist.errors import ConfigurationError, shown
from lr_dist.names import one_of

# Those of `lr_dist.methods.METHODS`, whose import takes seconds; a test compares them.
METHOD_NAMES = (
    *("a-gem", "der", "ema", "ewc", "finch", "fisher-rates", "freeze", "interpolate", "joint", "l2-sp", "lora", "lwf"),
    *("mas", "online-ewc", "rec-adam", "replay", "si"),
)


def check_method(name: str) -> None:
    """Check the name of a method, without torch.

    Raises:
        ConfigurationError: there is no such method.
    """
    if name not in METHOD_NAMES:
        raise ConfigurationError(f"There is no method {shown(name)}: it must be {one_of(METHOD_NAMES, name)}")


def check_texts(tasks: Iterable[Any], rates: Iterable[Any]) -> None:
    """Check the names of tasks, of methods, and the texts of rates, without torch.

    What needs the model or the data (the number of layers, a method's settings, a task's files) is checked later.

    Args:
        tasks: as in `--tasks`.
        rates: texts of distributions or arms; mappings are left to the command.

    Raises:
        UnknownTaskError: a task that does not exist.
        ConfigurationError: a method that does not exist.
        LRDistError: a text of rates that is not valid, or the name of a preset that does not exist.
    """
    from lr_dist.presets import resolve_plan
    from lr_dist.tasks.registry import check_task_names

    for text in rates:
        # An arm's methods stand behind a plus sign; rates from the model's weights need the model.
        written, *methods = [part.strip() for part in text.split(" + ")] if isinstance(text, str) else [""]
        for method in methods:
            check_method(method.partition(":")[0].strip())
        if written and "heavy-tail" not in written:
            resolve_plan(written)
    check_task_names(tasks)
