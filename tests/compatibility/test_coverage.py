"""Parts of the model that are replaced or added after the optimizer was made."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_trainer import layerwise as hf_layerwise
from torch import nn
from transformers import TrainerCallback

from lr_dist import LayerwiseLR
from lr_dist.errors import OptimizerCoverageError, UncoveredParametersWarning


def layerwise() -> LayerwiseLR:
    return LayerwiseLR(tiny.EXPLICIT, verbose=False)


def adamw(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1e-3)


def module_with(hook: str, change: Any, epoch: int = 0) -> tiny.Classifier:
    class Changing(tiny.Classifier):
        done = False

    def act(self: Any, *_: Any) -> None:
        if not self.done and self.current_epoch == epoch:
            self.done = True
            change(self.model)

    setattr(Changing, hook, act)
    return Changing(adamw)


def replace_embeddings(model: Any) -> None:
    model.set_input_embeddings(nn.Embedding(60, 16))


def replace_head(model: Any) -> None:
    model.classifier = nn.Linear(16, 2)


def replace_layer(model: Any) -> None:
    layer = model.bert.encoder.layer[1]
    layer.output.dense = nn.Linear(32, 16)


REPLACED = {
    "word_embeddings.weight": replace_embeddings,
    "classifier.weight": replace_head,
    r"layer\.1\.output\.dense\.weight": replace_layer,
}


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"])
def test_a_part_that_is_replaced_in_any_hook_is_refused_before_the_first_step(hook: str) -> None:
    recorder = tiny.Recorder()
    with pytest.raises(OptimizerCoverageError, match=r"word_embeddings\.weight \(60, 16\).*make the optimizer"):
        tiny.fit(module_with(hook, replace_embeddings), layerwise(), recorder)
    assert recorder.steps == []


@pytest.mark.parametrize(("name", "replace"), REPLACED.items(), ids=list(REPLACED))
def test_each_part_of_the_model_that_is_replaced_is_named(name: str, replace: Any) -> None:
    with pytest.raises(OptimizerCoverageError, match=name):
        tiny.fit(module_with("on_train_start", replace), layerwise())


def test_in_the_middle_of_a_run_it_is_a_warning_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.fit(module_with("on_train_epoch_start", replace_head, epoch=1), layerwise(), max_epochs=3)
    texts = [str(w.message) for w in caught if w.category is UncoveredParametersWarning]
    assert len(texts) == 1
    assert "model.classifier.weight" in texts[0]
    assert "2 parameter(s) of the optimizer are no longer in the model" in texts[0]


def test_a_part_that_is_taken_out_is_said_and_training_goes_on() -> None:
    def remove(model: Any) -> None:
        model.bert.embeddings.extra = None

    class Extra(tiny.Classifier):
        def __init__(self) -> None:
            super().__init__(adamw)
            self.model.bert.embeddings.extra = nn.Linear(2, 2)

        def on_train_start(self) -> None:
            remove(self.model)

    callback = LayerwiseLR(tiny.EXPLICIT, verbose=False, overrides={"extra": "embeddings"})
    with pytest.warns(UncoveredParametersWarning, match=r"^2 parameter\(s\) of the optimizer are no longer"):
        tiny.fit(Extra(), callback)


def test_parameters_that_are_unfrozen_and_forgotten_are_said() -> None:
    class Forgetful(tiny.Classifier):
        def configure_optimizers(self) -> Any:
            self.model.bert.pooler.requires_grad_(False)
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)

        def on_train_epoch_start(self) -> None:
            self.model.bert.pooler.requires_grad_(True)

    with pytest.warns(UncoveredParametersWarning, match=r"2 trainable.*unfrozen.*pooler\.dense\.weight"):
        tiny.fit(Forgetful(lambda m: None), layerwise())


def test_a_model_that_stays_as_it_is_is_not_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncoveredParametersWarning)
        tiny.fit(tiny.Classifier(adamw), layerwise(), max_epochs=2)


# transformers' Trainer -----------------------------------------------------------------------------------


def test_the_trainer_refuses_an_optimizer_from_before_the_change(tmp_path: Path) -> None:
    model = tiny.bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    replace_embeddings(model)
    trainer, rates = hf_layerwise(tmp_path, model=model, optimizers=(optimizer, None))
    with pytest.raises(OptimizerCoverageError, match=r"word_embeddings\.weight \(60, 16\)"):
        trainer.train()
    assert rates.seen == []


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_step_begin"])
def test_the_trainer_refuses_a_change_in_a_hook_before_the_first_step(hook: str, tmp_path: Path) -> None:
    class Changing(TrainerCallback):
        pass

    def act(self: Any, *_: Any, **kwargs: Any) -> None:
        replace_head(kwargs["model"])

    setattr(Changing, hook, act)
    trainer, rates = hf_layerwise(tmp_path, model=tiny.bert(), callbacks=[Changing()])
    with pytest.raises(OptimizerCoverageError, match=r"classifier\.weight"):
        trainer.train()
    assert len(rates.seen) <= 1  # the recorder stands before the mixin's callback


def test_the_trainers_rates_are_compared_at_every_step(tmp_path: Path) -> None:
    from lr_dist.errors import RatesOffPlanWarning

    class Floor(TrainerCallback):
        def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
            for group in kwargs["optimizer"].param_groups:
                group["lr"] = max(group["lr"], 2e-5)

    trainer, _ = hf_layerwise(tmp_path, callbacks=[Floor()], lr_scheduler_type="constant", warmup_steps=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    (found,) = [w.message for w in caught if isinstance(w.message, RatesOffPlanWarning)]
    assert (found.group, found.wanted, found.found, found.step) == ("embeddings", pytest.approx(1e-5), 2e-5, 0)
    assert "LayerwiseTrainer's rate" in str(found)
