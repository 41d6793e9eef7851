"""Old tasks of `lr_dist.tasks`: the texts, the tokens and the score are its own."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import tiny
import torch
from monitor.watched import adamw, monitor, old_loader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lr_dist import ForgettingMonitor
from lr_dist.errors import ConfigurationError
from lr_dist.monitor.task_score import TaskScore
from lr_dist.tasks import Scorer, eval_loader, load_task, tokenize_task


def test_the_score_of_a_named_task_is_that_of_the_scorer(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2).eval()

    class Learns(tiny.Classifier):
        def __init__(self) -> None:
            super().__init__(adamw)
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.model(**batch).loss

    task = load_task("demo-acceptability", dev_size=50)
    tokens = tokenize_task(task, tokenizer, 24)
    scorer = Scorer(task)
    with torch.no_grad():
        for batch in eval_loader(tokens.dev, 128, tokens.pad_token_id):
            labels = batch.pop("labels")
            scorer.update(model(**batch).logits, labels)
    watching = ForgettingMonitor(
        ["demo-acceptability", "demo-sentiment"], tokenizer=tokenizer, max_length=24, examples=50
    )
    data = eval_loader(tokens.train, 360, tokens.pad_token_id)
    tiny.fit(Learns(), watching, data=data)
    start = watching.history[0].old
    assert list(start) == ["demo-acceptability", "demo-sentiment"]
    assert start["demo-acceptability"] == scorer.compute()["matthews"]
    assert abs(start["demo-acceptability"]) > 0.1


def test_a_task_given_twice_is_refused(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(ConfigurationError, match="'demo-sentiment' is given twice"):
        ForgettingMonitor(["demo-sentiment", "demo-sentiment"], tokenizer=tokenizer, max_length=24)


def test_batches_add_up_to_the_score_of_all() -> None:
    task = load_task("demo-sentiment")
    outputs = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    whole, metric = Scorer(task), TaskScore(task)
    whole.update(outputs, labels)
    for start in (0, 7, 30):
        stop = {0: 7, 7: 30, 30: 40}[start]
        metric.update(outputs[start:stop], labels[start:stop])
    assert float(metric.compute()) == whole.compute()["accuracy"]
    with pytest.raises(ValueError, match="needs \\(3, 2\\)"):
        metric.update(outputs[:3, :1], labels[:3])


def test_after_the_fit_it_holds_no_model_and_pickles() -> None:
    watching = monitor({"first": old_loader()}, keep="forgotten <= 1")

    def fit() -> list[Any]:
        module = tiny.Classifier(adamw)
        trainer = tiny.fit(module, watching, data=tiny.batches(4))
        return [weakref.ref(module), weakref.ref(module.model), weakref.ref(trainer)]

    left = fit()
    gc.collect()
    assert [reference() for reference in left] == [None] * 3
    again = pickle.loads(pickle.dumps(copy.deepcopy(watching)))
    assert again.history == watching.history
    tiny.fit(tiny.Classifier(adamw), again, data=tiny.batches(4))
    assert [row.old for row in again.history] == [row.old for row in watching.history]
