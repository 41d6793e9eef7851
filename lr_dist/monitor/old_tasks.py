"""The old tasks: what each is scored on, and how. Checked when they are named, long before a model is at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lr_dist.errors import ConfigurationError, shown
from lr_dist.extras import require_libraries
from lr_dist.monitor.outputs import outputs_and_labels

Score = Callable[[Any, Any], tuple[Tensor, Tensor]]

_NAME = re.compile(r"[\w.@-]+")
_BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class OldTask:
    """A task that was learned before.

    Attributes:
        name: as in `old/NAME`.
        loader: its batches, each of them once in an iteration.
        score: (module, batch) -> (outputs, targets), as `metric` takes them.
        metric: a torchmetrics Metric whose `compute` gives one number; a copy of the user's.
    """

    name: str
    loader: Iterable[Any]
    score: Score
    metric: Any

    @property
    def sign(self) -> int:
        """1 if a higher score is better, -1 if a lower one is (as the metric says of itself)."""
        return -1 if getattr(self.metric, "higher_is_better", None) is False else 1


def tasks_with_loaders(
    loaders: Mapping[str, Iterable[Any]],
    score: Score | Mapping[str, Score] | None,
    metric: Any,
) -> tuple[OldTask, ...]:
    """Old tasks whose batches the user has.

    Args:
        loaders: name -> batches.
        score: one function for all tasks, or one for each; None: `outputs_and_labels`.
        metric: a torchmetrics Metric for all tasks, or name -> Metric.

    Raises:
        ConfigurationError: no task, an invalid name, an empty loader, an iterator, no metric, or one that is none.
    """
    if not loaders:
        raise ConfigurationError("There is no old task to watch. Give at least one: {'sst2': its_loader}.")
    for name, loader in loaders.items():
        _check_name(name)
        _check_loader(name, loader)
    scores = _of_each("score", score or outputs_and_labels, loaders)
    metrics = _of_each("metric", metric, loaders)
    return tuple(
        OldTask(name, loader, _check_score(name, scores[name]), _copy(name, metrics[name]))
        for name, loader in loaders.items()
    )


def tasks_by_name(
    names: Sequence[str], tokenizer: Any, max_length: int, examples: int | None, score: Score | None
) -> tuple[OldTask, ...]:
    """Old tasks of `lr_dist.tasks`, on their dev examples, which no one else uses: validation stays for the result.

    Args:
        names: as `load_task` takes them: `sst2`, `demo-sentiment`, `my=PATH`.
        tokenizer: the model's.
        max_length: of an input, in tokens.
        examples: how many are drawn; None: `load_task`'s own number.
        score: None: the model's own forward gives the logits.

    Raises:
        ConfigurationError: no name, one that is given twice, or no tokenizer.
        LRDistError: what `load_task` and `tokenize_task` raise.
    """
    if not names:
        raise ConfigurationError("There is no old task to watch. Give the name of at least one, such as ['sst2'].")
    if tokenizer is None:
        raise ConfigurationError(
            f"The old tasks {', '.join(map(shown, names))} are texts. Give the model's tokenizer: tokenizer=..., or a "
            "mapping from names to data loaders."
        )
    require_libraries("tasks", "transformers", "datasets", "pyarrow", "torchmetrics", "filelock")
    from lr_dist.monitor.task_score import TaskScore
    from lr_dist.tasks import eval_loader, load_task, tokenize_task

    found: dict[str, OldTask] = {}
    for spec in names:
        task = load_task(spec, dev_size=examples)
        _check_name(task.name)
        if task.name in found:
            raise ConfigurationError(f"The old task {shown(task.name)} is given twice.")
        tokens = tokenize_task(task, tokenizer, max_length)
        loader = eval_loader(tokens.dev, _BATCH_SIZE, tokens.pad_token_id)
        found[task.name] = OldTask(task.name, loader, score or outputs_and_labels, TaskScore(task))
    return tuple(found.values())


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{shown(name)} cannot be the name of an old task, because scores are logged as old/NAME. Use letters, "
            "digits and ._@- only."
        )


def _check_loader(name: str, loader: Any) -> None:
    if not hasattr(loader, "__iter__"):
        raise ConfigurationError(
            f"The old task {shown(name)} needs a DataLoader, or another iterable of batches, not {shown(loader)}."
        )
    if hasattr(loader, "__next__"):
        raise ConfigurationError(
            f"The batches of the old task {shown(name)} are a {type(loader).__name__}, which can be read only once. "
            "Give a DataLoader or a list of batches."
        )
    if hasattr(loader, "__len__") and _length(loader) == 0:
        raise ConfigurationError(
            f"The loader of the old task {shown(name)} has no batch. Look at its data set, and at drop_last, which "
            "drops the only batch of a small one."
        )


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a DataLoader of an iterable data set has __len__, but no length
        return None


def _of_each(what: str, given: Any, tasks: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or isinstance(given, nn.Module):  # a MetricCollection is both
        return dict.fromkeys(tasks, given)
    if set(given) != set(tasks):
        raise ConfigurationError(
            f"{what} has entries for {', '.join(map(shown, given))}, and the old tasks are "
            f"{', '.join(map(shown, tasks))}. Give one {what} for each of them, or one for all."
        )
    return given


def _check_score(name: str, score: Any) -> Score:
    if not callable(score):
        raise ConfigurationError(
            f"The score of the old task {shown(name)} must be a function (module, batch) -> (outputs, targets), not "
            f"{shown(score)}."
        )
    return score


def _copy(name: str, metric: Any) -> Any:
    """A metric of our own: the user's may be logged in training at the same time."""
    from torchmetrics import Metric, MetricCollection

    if not isinstance(metric, Metric) or isinstance(metric, MetricCollection):
        raise ConfigurationError(
            f"The old task {shown(name)} needs a torchmetrics Metric, such as MulticlassAccuracy(num_classes=2), not "
            f"{shown(metric)}. Give metric=..., one for all tasks or one for each."
        )
    return metric.clone()
