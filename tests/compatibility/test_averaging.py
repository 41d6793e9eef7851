"""LayerwiseLR beside averages of weights: StochasticWeightAveraging with a list of rates, and EMA."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution, param_groups
from lr_dist.errors import UnsupportedCallbackError

# Nothing here may be said to leave the distribution.
pytestmark = pytest.mark.filterwarnings("error::lr_dist.errors.RatesOffPlanWarning")

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)
SWA_RATES = [2e-5, 5e-5, 4e-4, 1e-4, 3e-3]


def sgd(module: Any) -> Any:
    return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)


def layerwise(distribution: Any = DISTRIBUTION) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False)


class Weights(L.Callback):
    """The weights when each epoch begins, and after each batch."""

    def __init__(self) -> None:
        self.at_epochs: list[dict[str, torch.Tensor]] = []
        self.after_steps: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.at_epochs.append(tiny.weights(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after_steps.append(tiny.weights(pl_module))


# Stochastic weight averaging -----------------------------------------------------------------------------


def test_with_a_list_each_layer_anneals_to_its_own_rate_and_the_weights_are_averaged() -> None:
    swa = StochasticWeightAveraging(SWA_RATES, swa_epoch_start=2, annealing_epochs=2, annealing_strategy="linear")
    recorder, weights, module = tiny.Recorder(), Weights(), tiny.Classifier(sgd).double()
    tiny.fit(module, swa, layerwise(), recorder, weights, max_epochs=4)
    for (name, rate), swa_rate in zip(tiny.RATES.items(), SWA_RATES, strict=True):
        # Averaging begins with the second epoch; its rate is reached two epochs later.
        epochs = [rate, rate, (rate + swa_rate) / 2, swa_rate]
        assert recorder.rates[name] == pytest.approx([epoch for epoch in epochs for _ in range(8)], rel=1e-12)
    for name, parameter in module.named_parameters():
        averaged = torch.stack([weights.at_epochs[epoch][name] for epoch in (1, 2, 3)]).mean(0)
        assert torch.allclose(parameter, averaged, rtol=0, atol=1e-14), name
        assert not torch.equal(parameter, weights.after_steps[-1][name]), name


def test_a_schedule_runs_until_averaging_takes_over() -> None:
    def configure(module: Any) -> Any:
        optimizer = sgd(module)
        return [optimizer], [sch.ExponentialLR(optimizer, 0.5)]

    swa = StochasticWeightAveraging(SWA_RATES, swa_epoch_start=3, annealing_epochs=1, annealing_strategy="linear")
    recorder = tiny.Recorder()
    tiny.fit(tiny.Classifier(configure), layerwise(), swa, recorder, max_epochs=4)
    for (name, rate), swa_rate in zip(tiny.RATES.items(), SWA_RATES, strict=True):
        assert recorder.rates[name][::8] == pytest.approx([rate, rate / 2, rate / 4, swa_rate], rel=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_one_rate_for_all_layers_is_refused_and_the_error_shows_a_list_that_works(first: bool) -> None:
    frozen = DISTRIBUTION.freeze("embeddings")
    pair = [StochasticWeightAveraging(0.07, swa_epoch_start=1, annealing_epochs=1), layerwise(frozen)]
    recorder = tiny.Recorder()
    with pytest.raises(
        UnsupportedCallbackError, match=r"swa_lrs=0\.07.*order: embeddings, layers\.0,.*, head"
    ) as error:
        tiny.fit(tiny.Classifier(sgd), *(pair if first else pair[::-1]), recorder)
    assert recorder.steps == []
    found = re.search(r"swa_lrs=\[(.*?)\]", str(error.value))
    assert found
    rates = [float(rate) for rate in found[1].split(", ")]
    # The highest is the rate that was given; the frozen embeddings need a number above 0, which moves nothing.
    assert rates == pytest.approx([3e-4, 3e-4, 2e-3, 5e-3, 0.07])
    swa = StochasticWeightAveraging(rates, swa_epoch_start=1, annealing_epochs=1)
    module = tiny.Classifier(sgd)
    before = tiny.weights(module)
    run = tiny.fit(module, swa, layerwise(frozen), recorder, max_epochs=3)
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx(rates)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) == ("embeddings" in name), name


def test_a_list_of_the_wrong_length_is_refused_with_the_groups_in_order() -> None:
    def halves(module: Any) -> Any:
        decayed = [p for p in module.parameters() if p.ndim > 1]
        rest = [p for p in module.parameters() if p.ndim < 2]
        return torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=1e-3)

    order = ", ".join(f"{name}, {name}/no_decay" for name in tiny.RATES)
    with pytest.raises(UnsupportedCallbackError, match=f"has 5 swa_lrs, but .* has 10 groups.*order: {order}"):
        tiny.fit(tiny.Classifier(halves), layerwise(), StochasticWeightAveraging(SWA_RATES))


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_run_is_resumed_before_and_during_averaging(epoch: int, tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        return [optimizer], [sch.ExponentialLR(optimizer, 0.5)]

    def averaging() -> StochasticWeightAveraging:
        return StochasticWeightAveraging(SWA_RATES, swa_epoch_start=2, annealing_epochs=3, annealing_strategy="linear")

    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, resumed, unbroken, after = *map(tiny.Classifier, [configure] * 2), tiny.Recorder(), tiny.Recorder()
    tiny.fit(whole, layerwise(), averaging(), unbroken, saving, enable_checkpointing=True, max_epochs=5)
    file = tmp_path / f"epoch={epoch}.ckpt"
    tiny.fit(resumed, layerwise(), averaging(), after, ckpt=file, weights_only=True, max_epochs=5)
    assert after.rates == {name: rates[8 * (epoch + 1) :] for name, rates in unbroken.rates.items()}
    for (name, ours), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


# Moving averages -----------------------------------------------------------------------------------------


def test_an_exponential_average_is_that_of_a_plain_torch_run_with_the_same_rates() -> None:
    module = tiny.Classifier(sgd).double()
    tiny.fit(module, layerwise(), EMAWeightAveraging(decay=0.8))

    model = tiny.bert().double()
    optimizer = torch.optim.SGD(param_groups(model, DISTRIBUTION), momentum=0.9)
    average: dict[str, torch.Tensor] = {}
    for tokens, labels in tiny.batches():
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        weights = tiny.weights(model)
        average = {name: 0.8 * average.get(name, w) + 0.2 * w for name, w in weights.items()}
    for name, parameter in module.model.named_parameters():
        assert torch.allclose(parameter, average[name], rtol=0, atol=1e-14), name
    moved = (module.model.classifier.weight - model.classifier.weight).abs().max()
    assert moved > 1e-4


@pytest.mark.parametrize("first", [True, False])
def test_layers_with_rate_zero_stay_as_they_are_in_the_average(first: bool) -> None:
    module = tiny.Classifier(sgd)
    before = tiny.weights(module)
    pair = [EMAWeightAveraging(decay=0.8), layerwise(DISTRIBUTION.freeze("layers.1"))]
    tiny.fit(module, *(pair if first else pair[::-1]))
    for name, parameter in module.named_parameters():
        # torch's average of equal numbers is equal to them but for its rounding.
        same = torch.allclose(parameter, before[name], rtol=1e-6, atol=0)
        assert same == ("encoder.layer.1." in name), name


class Validated(tiny.Classifier):
    """Validation sees the average, training goes on from the weights themselves."""

    def val_dataloader(self) -> Any:
        return tiny.batches(1, seed=1)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.model(input_ids=batch[0], labels=batch[1]).loss)
        self.validated = tiny.weights(self)


@pytest.mark.parametrize("kind", [EMAWeightAveraging, WeightAveraging])
def test_a_run_with_an_average_is_resumed_exactly(kind: type[WeightAveraging], tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        return [optimizer], [{"scheduler": sch.LinearLR(optimizer, 0.1, 1.0, 12), "interval": "step"}]

    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, resumed, unbroken, after = Validated(configure), Validated(configure), tiny.Recorder(), tiny.Recorder()
    tiny.fit(whole, layerwise(), kind(), unbroken, saving, enable_checkpointing=True, max_epochs=2)
    file = tmp_path / "epoch=0.ckpt"
    tiny.fit(resumed, layerwise(), kind(), after, ckpt=file, weights_only=True, max_epochs=2)
    assert after.rates == {name: rates[8:] for name, rates in unbroken.rates.items()}
    assert after.rates["layers.1"][0] == pytest.approx(2e-4 * (0.1 + 0.9 * 8 / 12))
    for (name, ours), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert torch.equal(resumed.validated[name], whole.validated[name]), name
    # The file holds the average as its weights, and the weights themselves beside it.
    saved = torch.load(file, weights_only=True)
    name = "model.classifier.weight"
    assert not torch.equal(saved["state_dict"][name], saved["current_model_state"][name])


def test_a_copy_of_the_callback_gives_a_second_run_the_same_average() -> None:
    callback = layerwise()
    runs = []
    for own in (callback, copy.deepcopy(callback)):
        module = tiny.Classifier(sgd)
        tiny.fit(module, own, EMAWeightAveraging(decay=0.5))
        runs.append(tiny.weights(module))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
