"""What cannot be watched is refused by name, before the first step where it can be known."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from monitor.watched import accuracy, adamw, monitor, old_loader, score
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy

from lr_dist import ForgettingMonitor
from lr_dist.errors import ConfigurationError, DivergedError, LayersNotFoundError, ScoringError, UnknownTaskError


@pytest.mark.parametrize(
    ("old", "options", "message"),
    [
        ({}, {}, "no old task"),
        ([], {"metric": None, "score": None}, "no old task"),
        ("sst2", {}, "must be a mapping from names to loaders"),
        ({"a b": [1]}, {}, "cannot be the name"),
        ({"old/a": [1]}, {}, "cannot be the name"),
        ({"a": None}, {}, "needs a DataLoader"),
        ({"a": []}, {}, "has no batch"),
        ({"a": DataLoader([1], batch_size=4, drop_last=True)}, {}, "drop_last"),
        ({"a": iter([1])}, {}, "read only once"),
        (None, {"metric": None}, "needs a torchmetrics Metric"),
        (None, {"metric": MetricCollection([accuracy()])}, "needs a torchmetrics Metric"),
        (None, {"metric": {"second": accuracy()}}, "metric has entries for 'second'"),
        (None, {"score": "accuracy"}, "must be a function"),
        (None, {"every_n_steps": 0}, "every_n_steps must be a whole number of at least 1, not 0"),
        (None, {"every_n_epochs": 1.5}, "every_n_epochs must be a whole number"),
        (None, {"every_n_steps": 1, "every_n_epochs": 1}, "not both"),
        (None, {"patience": 0}, "patience must be a whole number"),
        (None, {"keep": "old/second >= 0.5"}, "the old tasks are first"),
        (None, {"keep": "old >= 0.5", "monitor": "x", "mode": "best"}, "'max' or 'min'"),
        (None, {"monitor": "val_acc"}, "chooses among the measurements within a bound"),
        (None, {"keep": "old + val_acc", "monitor": "val_acc"}, "put the metric into the sum"),
        (None, {"stop_when": "old + val_acc"}, "must compare a value with a number"),
        (None, {"tokenizer": object()}, "tokenizer is for old tasks that are given by name"),
        (["demo-sentiment"], {"metric": None, "score": None}, "Give the model's tokenizer"),
    ],
)
def test_invalid_options_are_refused_at_once(old: Any, options: dict[str, Any], message: str) -> None:
    old = {"first": old_loader()} if old is None else old
    with pytest.raises(ConfigurationError, match=message):
        ForgettingMonitor(old, **{"score": score, "metric": accuracy(), **options})


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(UnknownTaskError, match="stt2"):
        ForgettingMonitor(["stt2"], tokenizer=object())


def fails(watching: ForgettingMonitor, error: type[Exception], message: str, **options: Any) -> None:
    """The fit fails before its first step."""
    steps: list[int] = []

    class Steps(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            steps.append(1)

    with pytest.raises(error, match=message):
        tiny.fit(tiny.Classifier(adamw), watching, Steps(), **options)
    assert not steps


def test_batches_that_cannot_be_scored_are_named_before_the_first_step() -> None:
    unlabelled = [{"input_ids": batch[0]} for batch in old_loader()]
    fails(monitor({"first": unlabelled}, score=None), ScoringError, "'first' cannot be scored. The batch has no labels")
    fails(monitor({"first": [torch.ones(2)]}, score=None), ScoringError, "The batch is a Tensor, neither")
    fails(monitor(score=lambda module, batch: batch["x"]), ScoringError, "'first' cannot be scored: TypeError")
    fails(monitor(score=lambda module, batch: batch[1]), ScoringError, "must return two tensors")
    fails(monitor(score=lambda module, batch: (batch[1], None)), ScoringError, "must return two tensors")


def test_shapes_that_do_not_fit_the_metric_are_named() -> None:
    fails(
        monitor(metric=MulticlassAccuracy(5)), ScoringError, r"outputs of the shape \(4, 2\) and targets of the shape"
    )
    fails(
        monitor(metric=MulticlassAccuracy(2, average=None)),
        ScoringError,
        "must give one number, not .*With average='macro'",
    )


def test_a_loader_that_turns_out_empty_is_named() -> None:
    class Empty:
        def __iter__(self) -> Any:
            return iter(())

    fails(monitor({"first": Empty()}), ScoringError, "'first' has no batch")


def test_a_score_that_is_undefined_is_named() -> None:
    def constant(module: Any, batch: Any) -> Any:
        return torch.ones(len(batch[1])), batch[1].float()

    fails(monitor(score=constant, metric=PearsonCorrCoef()), ScoringError, "PearsonCorrCoef .* is nan after 0 step")


def test_layers_that_cannot_be_found_are_named_with_a_way_out() -> None:
    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(7, 2)

        def configure_optimizers(self) -> Any:
            return adamw(self)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("a step was taken")

    with pytest.raises(LayersNotFoundError, match="movement=False"):
        tiny.fit(Plain(), monitor(score=None))


def test_outputs_of_nan_are_a_divergence_with_its_step() -> None:
    class Explodes(tiny.Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.global_step == 3:
                torch.nn.init.constant_(self.model.classifier.weight, float("nan"))

    with pytest.raises(DivergedError, match="'first' are NaN after 4 step"):
        tiny.fit(Explodes(adamw), monitor(every_n_steps=2))
