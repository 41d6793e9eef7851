"""Scores of a task (with torchmetrics), and its majority baseline."""

from __future__ import annotations

import math
import warnings
from collections import Counter

import torch

from lr_dist.tasks.task import Task, column_values


class Scorer:
    """Collects a model's outputs on a task and scores them.

    An undefined score counts as 0: Matthews if all labels or all answers are one class,
    correlations if all labels or all answers are one number or an answer is not finite, F1 if neither the labels nor
    the answers contain the class. With two classes, F1 is that of class 1; with more, it is the mean over the classes
    (macro).

    Args:
        task: The task; its `metrics` are computed.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.primary = task.primary
        self._answers: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def update(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            outputs: The head's outputs, [n, num_outputs]: logits, or predicted values.
            labels: [n].

        Raises:
            ValueError: Another shape.
        """
        if outputs.ndim != 2 or outputs.shape != (len(labels), self.task.num_outputs):
            raise ValueError(
                f"outputs have shape {tuple(outputs.shape)} for {len(labels)} labels; task {self.task.name!r} needs "
                f"({len(labels)}, {self.task.num_outputs})"
            )
        outputs = outputs.detach().to("cpu", torch.float64)
        if self.task.kind == "classification":
            self._answers.append(outputs.argmax(dim=1))
            self._labels.append(labels.detach().to("cpu", torch.int64))
        else:
            self._answers.append(outputs[:, 0])
            self._labels.append(labels.detach().to("cpu", torch.float64))

    def compute(self) -> dict[str, float]:
        """The scores by name, starting with the primary one.

        Raises:
            ValueError: No example was added.
        """
        if not self._labels:
            raise ValueError(f"no outputs to score for task {self.task.name!r}: call update first")
        # All rows at once, because the last digits of a correlation merged over batches depend on the batches.
        answers, labels = torch.cat(self._answers), torch.cat(self._labels)
        constant = bool((answers == answers[0]).all() or (labels == labels[0]).all())
        undefined = constant or not bool(torch.isfinite(answers).all())
        scores: dict[str, float] = {}
        for name in self.task.metrics:
            if undefined and name in ("matthews", "pearson", "spearman"):
                scores[name] = 0.0
                continue
            with warnings.catch_warnings():
                # Nearly constant answers are a result, not the user's mistake.
                warnings.simplefilter("ignore", UserWarning)
                score = _score(name, len(self.task.classes), answers, labels)
            # float32 has seven digits: .475 rather than .4749999940395355
            value = round(float(score), 7) if score.dtype == torch.float32 else float(score)
            scores[name] = value if math.isfinite(value) else 0.0
        return scores


def baseline_scores(task: Task, split: str = "validation") -> dict[str, float]:
    """Scores of always answering train's majority class (for a regression train's mean, so correlations of 0).

    A model that does not beat it has not learned the task.

    Args:
        task: The task.
        split: "train", "dev" or "validation".
    """
    train = column_values(task.train, "label")
    labels = torch.tensor(column_values(getattr(task, split), "label"))
    outputs = torch.zeros(len(labels), task.num_outputs)
    if task.kind == "classification":
        counts = Counter(train)
        outputs[:, min(counts, key=lambda label: (-counts[label], label))] = 1.0
    else:
        outputs[:] = sum(train) / len(train)
    scorer = Scorer(task)
    scorer.update(outputs, labels)
    return scorer.compute()


def _score(name: str, classes: int, answers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from torchmetrics import functional as tmf
    from torchmetrics.functional import classification as tmc

    match name:
        case "accuracy":
            return tmc.multiclass_accuracy(answers, labels, classes, average="micro")
        case "f1" if classes == 2:
            return tmc.binary_f1_score(answers, labels)
        case "f1":
            return tmc.multiclass_f1_score(answers, labels, classes, average="macro")
        case "matthews":
            return tmc.multiclass_matthews_corrcoef(answers, labels, classes)
        case "pearson":
            return tmf.pearson_corrcoef(answers, labels)
        case _:
            return tmf.spearman_corrcoef(answers, labels)
