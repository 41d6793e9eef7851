"""A callback and a module that are fitted again, evaluated alone, copied, pickled; and the Trainer's options."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelSummary
from torch import nn
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


def adamw(module: Any, **options: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), **{"lr": 1e-3, **options})


def layerwise(distribution: Any = DISTRIBUTION, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, **{"verbose": False, **options})


def rates_of(run: Any) -> dict[str, float]:
    return {group["name"]: float(group["lr"]) for group in run.optimizers[0].param_groups}


class Evaluated(tiny.Classifier):
    """Can be validated, tested and asked for predictions."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.model(input_ids=batch[0], labels=batch[1]).loss)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.model(input_ids=batch[0]).logits


class Data(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return tiny.batches()

    def val_dataloader(self) -> Any:
        return tiny.batches(2, seed=1)


# Fit again -----------------------------------------------------------------------------------------------


def test_a_second_fit_with_new_optimizers_has_the_same_rates() -> None:
    module, callback, recorder = tiny.Classifier(adamw), layerwise(), tiny.Recorder()
    run = tiny.fit(module, callback, recorder)
    run.fit_loop.max_epochs = 2
    run.fit(module, tiny.batches())
    tiny.fit(module, callback, recorder)
    assert {name: set(rates) for name, rates in recorder.rates.items()} == {n: {r} for n, r in tiny.RATES.items()}
    assert len(recorder.rates["head"]) == 24


@pytest.mark.parametrize("text", ["linear:first=0.1,last=5,relative=true", "linear:first=1e-4,last=5e-3"])
def test_a_second_fit_with_the_same_optimizer_keeps_its_state_and_does_not_multiply_twice(text: str) -> None:
    kept: list[Any] = []

    def configure(module: Any) -> Any:
        if not kept:
            kept.append(adamw(module))
        # A new schedule, whose floor is a part of the user's rate.
        return [kept[0]], [{"scheduler": sch.CosineAnnealingLR(kept[0], 8, eta_min=1e-4), "interval": "step"}]

    module = tiny.Classifier(configure)
    tiny.fit(module, layerwise(text))
    first = [group["lr"] for group in kept[0].param_groups]
    steps = {id(p): state["step"].item() for p, state in kept[0].state.items()}
    assert set(steps.values()) == {8}
    for group in kept[0].param_groups:  # as a user would who starts another round
        group["lr"] = group["initial_lr"]
    tiny.fit(module, layerwise(text))
    assert {state["step"].item() for state in kept[0].state.values()} == {16}
    rates = [rate * (1e-3 if "relative" in text else 1) for rate in LRDistribution.parse(text).rates(3).values()]
    assert first == pytest.approx([rate / 10 for rate in rates])
    assert [group["lr"] for group in kept[0].param_groups] == pytest.approx(first)
    assert [group["name"] for group in kept[0].param_groups] == list(tiny.RATES)


def test_a_new_plateau_on_the_same_optimizer_has_each_layers_share_of_the_floor() -> None:
    optimizers: list[Any] = []

    def configure(module: Any) -> Any:
        optimizers.append(optimizers[0] if optimizers else adamw(module))
        plateau = sch.ReduceLROnPlateau(optimizers[0], min_lr=1e-4)
        return {"optimizer": optimizers[0], "lr_scheduler": {"scheduler": plateau, "monitor": "score"}}

    module = tiny.Classifier(configure, scores=[1.0])
    for _ in range(2):
        plateau = tiny.fit(module, layerwise()).lr_scheduler_configs[0].scheduler
        # A tenth of the user's rate.
        assert plateau.min_lrs == pytest.approx([rate / 10 for rate in tiny.RATES.values()])


def test_another_distribution_on_the_same_optimizer_replaces_the_first() -> None:
    kept: list[Any] = []

    def configure(module: Any) -> Any:
        kept.append(kept[0] if kept else torch.optim.SGD(module.parameters(), lr=1e-3))
        return kept[0]

    module = tiny.Classifier(configure)
    tiny.fit(module, layerwise("decay:lr=3,factor=0.5,relative=true"))
    tiny.fit(module, layerwise("flat:lr=2,relative=true"))
    assert [group["lr"] for group in kept[0].param_groups] == pytest.approx([2e-3] * 5)


def test_evaluation_alone_leaves_the_model_untouched() -> None:
    module = Evaluated(adamw)
    tiny.trainer(layerwise(DISTRIBUTION.freeze("layers.0"))).test(module, tiny.batches(2), verbose=False)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_same_callback_serves_another_module_with_another_number_of_layers() -> None:
    class Shallow(tiny.Classifier):
        def __init__(self, configure: Any) -> None:
            super().__init__(configure)
            self.model.bert.encoder.layer = nn.ModuleList(list(self.model.bert.encoder.layer)[:2])
            self.model.config.num_hidden_layers = 2

    callback = layerwise("decay:lr=8e-3,factor=0.5")
    assert rates_of(tiny.fit(tiny.Classifier(adamw), callback, max_steps=1))["layers.0"] == 1e-3
    rates = rates_of(tiny.fit(Shallow(adamw), callback, max_steps=1))
    assert rates == {"embeddings": 1e-3, "layers.0": 2e-3, "layers.1": 4e-3, "head": 8e-3}
    assert callback.state_dict()["num_layers"] == 2


def test_a_layer_that_one_fit_froze_trains_in_the_next_that_gives_it_a_rate() -> None:
    module = tiny.Classifier(lambda m: adamw(m, weight_decay=0.5))
    before = tiny.weights(module)
    tiny.fit(module, layerwise(DISTRIBUTION.freeze("layers.0")), max_steps=1)
    name = "model.bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(module.get_parameter(name), before[name])
    tiny.fit(module, layerwise(), max_steps=1)
    assert not torch.equal(module.get_parameter(name), before[name])


def test_one_trainer_goes_through_every_stage() -> None:
    module, recorder = Evaluated(adamw), tiny.Recorder()
    run = tiny.trainer(layerwise(DISTRIBUTION.freeze("layers.0")), recorder, max_epochs=1)
    run.validate(module, tiny.batches(1), verbose=False)
    assert all(parameter.requires_grad for parameter in module.parameters())
    run.fit(module, tiny.batches(), tiny.batches(1))
    run.test(module, tiny.batches(1), verbose=False)
    assert len(run.predict(module, tiny.batches(1))) == 1
    run.fit_loop.max_epochs = 2
    run.fit(module, tiny.batches(), tiny.batches(1))
    assert recorder.rates == {n: [r] * 16 for n, r in {**tiny.RATES, "layers.0": 0.0}.items()}


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_within_and_without_inference_mode_does_not_keep_layers_from_training(inference_mode: bool) -> None:
    module, recorder = Evaluated(adamw), tiny.Recorder()
    before = tiny.weights(module)
    run = tiny.trainer(layerwise(), recorder, inference_mode=inference_mode, val_check_interval=2, max_epochs=1)
    run.fit(module, tiny.batches(), tiny.batches(1))
    assert recorder.rates == {name: [rate] * 8 for name, rate in tiny.RATES.items()}
    assert not any(torch.equal(p, before[n]) for n, p in module.named_parameters() if "key.bias" not in n)


def test_early_stopping_ends_the_run_with_the_ratios_kept() -> None:
    def configure(module: Any) -> Any:
        optimizer = adamw(module)
        return [optimizer], [sch.ExponentialLR(optimizer, 0.5)]

    stopping, recorder = EarlyStopping("score", patience=1, check_on_train_epoch_end=True), tiny.Recorder()
    module = tiny.Classifier(configure, scores=[3.0, 2.0, 2.5, 1.0, 0.5])
    tiny.fit(module, stopping, layerwise(), recorder, max_epochs=5)
    assert stopping.stopped_epoch == 2
    for name, rate in tiny.RATES.items():
        assert recorder.rates[name] == pytest.approx([rate] * 8 + [rate / 2] * 8 + [rate / 4] * 8)


@pytest.mark.parametrize("first", [True, False])
def test_the_summary_counts_frozen_layers_as_not_trainable(first: bool, caplog: pytest.LogCaptureFixture) -> None:
    pair = [ModelSummary(), layerwise(DISTRIBUTION.freeze("layers.0"))]
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        tiny.fit(tiny.Classifier(adamw), *(pair if first else pair[::-1]), max_steps=1, enable_model_summary=True)
    (line,) = [line for line in caplog.text.splitlines() if "Non-trainable params" in line]
    assert line.startswith("2.2 K")


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"fast_dev_run": 3}, 3),
        ({"overfit_batches": 2, "max_epochs": 2}, 4),
        ({"limit_train_batches": 5}, 5),
        ({"limit_train_batches": 0}, 0),
        ({"max_epochs": 0}, 0),
        ({"max_steps": 0}, 0),
        ({"barebones": True}, 8),
        ({"profiler": "simple"}, 8),
        ({"detect_anomaly": True}, 8),
        ({"deterministic": True}, 8),
        ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, 16),
        ({"max_time": "00:01:00:00"}, 8),
    ],
    ids=str,
)
def test_the_trainers_options(options: dict[str, Any], steps: int) -> None:
    recorder, module = tiny.Recorder(), Evaluated(adamw)
    if "barebones" in options:  # which wants these left alone
        run = L.Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[layerwise(), recorder], **options)
    else:
        run = tiny.trainer(layerwise(), recorder, **options)
    run.fit(module, tiny.batches())
    assert recorder.rates == ({name: [rate] * steps for name, rate in tiny.RATES.items()} if steps else {})
    if steps or "max_epochs" not in options:
        assert rates_of(run) == tiny.RATES


def test_a_datamodule_with_validation(tmp_path: Path) -> None:
    recorder = tiny.Recorder()
    run = tiny.trainer(layerwise(), recorder, default_root_dir=tmp_path, max_epochs=2)
    run.fit(Evaluated(adamw), datamodule=Data())
    assert recorder.rates == {name: [rate] * 16 for name, rate in tiny.RATES.items()}


def test_callbacks_that_the_module_configures() -> None:
    class Configuring(tiny.Classifier):
        def configure_callbacks(self) -> Any:
            return [layerwise()]

    # It takes the place of the Trainer's, as Lightning says.
    assert rates_of(tiny.fit(Configuring(adamw), layerwise("flat:lr=1"), max_steps=1)) == tiny.RATES
    assert rates_of(tiny.fit(Configuring(adamw), max_steps=1)) == tiny.RATES


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["copy", "pickle"])
def test_a_copy_of_the_callback_has_the_same_rates_before_and_after_a_fit(duplicate: Any) -> None:
    callback = layerwise(DISTRIBUTION.freeze("layers.0"), overrides={"pooler": "layers.2"})
    fresh = duplicate(callback)
    first = tiny.fit(tiny.Classifier(adamw), callback, max_steps=1)
    second = tiny.fit(tiny.Classifier(adamw), fresh, max_steps=1)
    third = tiny.fit(tiny.Classifier(adamw), copy.deepcopy(callback), max_steps=1)
    assert rates_of(first) == rates_of(second) == rates_of(third) == {**tiny.RATES, "layers.0": 0.0}
    assert fresh.state_dict() == callback.state_dict()


def test_after_a_fit_the_callback_keeps_no_optimizer_alive() -> None:
    callback = layerwise()
    module = tiny.Classifier(adamw)
    optimizer = weakref.ref(tiny.fit(module, callback, max_steps=1).optimizers[0])
    module.trainer.strategy.optimizers = []
    gc.collect()
    assert optimizer() is None
