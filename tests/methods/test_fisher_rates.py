"""Rates from Fisher information: F by hand, the factors in a real step, exact resume, and in a comparison."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from comparison import FLAT, Listener, config_of
from lightning.pytorch.callbacks import ModelCheckpoint
from methods.fits import Module, batches, fit, weights
from transformers import BertForMaskedLM

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import ConfigurationError, InvalidRateError, ResumeMismatchError
from lr_dist.layers import assign_layers
from lr_dist.methods import FisherRates
from lr_dist.methods.context import StageContext
from lr_dist.methods.fisher_rates import fisher_by_layer, fisher_rates
from lr_dist.sequence.compare import compare

FLAT_SGD = "flat:lr=0.1"
LAYERS = ["embeddings", "layers.0", "layers.1"]


def test_it_is_the_mean_over_the_parameters_that_the_examples_reach() -> None:
    module, data = Module(), batches(3)
    found = fisher_by_layer(module, data, labels="true")
    squares = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for batch in data:
        for row in range(4):
            module.zero_grad()
            module.model(**{key: value[row : row + 1] for key, value in batch.items()}).loss.backward()
            for name, p in module.named_parameters():
                squares[name] += p.grad**2 / 12 if p.grad is not None else 0
    assert list(found) == [*LAYERS, "head"]
    for group, names in assign_layers(module).groups.items():
        values = torch.cat([squares[name].flatten() for name in names])
        assert found[group] == pytest.approx(float(values[values > 0].mean()), rel=1e-3)
    # The rows of words that no text has are not counted: position 0 to 5 of 16, and of 20 words at most 19.
    words = squares["model.bert.embeddings.position_embeddings.weight"]
    assert int((words.sum(1) > 0).sum()) == 6


def test_a_plain_model_gives_the_same_and_stays_as_it_was() -> None:
    module, data = Module(dropout=0.3), batches(3)
    module.train()
    before, state = weights(module), torch.get_rng_state()
    found = fisher_by_layer(module.model, data, seed=3)
    assert found == fisher_by_layer(module, data, seed=3)
    assert torch.equal(weights(module), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.model.training
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    rates = fisher_rates(module.model, data, 1e-4, power=1.0, limit=1e4, seed=3)
    assert rates == LRDistribution.from_fisher(found, 1e-4, power=1.0, limit=1e4)
    assert len(set(rates.rates(2).values())) == 4
    control = fisher_rates(module.model, data, 1e-4, power=1.0, limit=1e4, seed=3, permuted=1)
    assert control != rates
    assert sorted(control.rates(2).values()) == sorted(rates.rates(2).values())


def test_masked_texts_say_what_pre_training_knows() -> None:
    model = BertForMaskedLM(Module().model.config)
    rows = [{**row, "labels": torch.where(row["input_ids"] > 10, row["input_ids"], -100)} for row in batches(2).dataset]
    found = fisher_by_layer(model, torch.utils.data.DataLoader(rows, batch_size=4))
    assert list(found) == [*LAYERS, "head"]
    assert min(found.values()) > 0


@pytest.mark.parametrize("settings", [{"power": 1.0}, {"power": 0.5, "permuted": 2}, {"power": 4.0, "limit": 1.5}])
def test_a_step_of_the_second_stage_is_the_plain_one_times_the_factors(settings: dict) -> None:
    module = Module()
    method = FisherRates(**settings)
    fit(module, LayerwiseLR(FLAT_SGD), method, data=batches(4))
    twin = Module()
    twin.load_state_dict(module.state_dict())
    by_layer = fisher_by_layer(module, batches(4), seed=method_seed(method, 0))
    control = {"permuted": settings["permuted"]} if "permuted" in settings else {}
    rates = LRDistribution.from_fisher(by_layer, 1.0, **{"power": settings["power"], **control}, limit=method.limit)
    expected = {**rates.rates(2), "head": 1.0}
    assert max(expected.values()) / min(expected.values()) > 1.1
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    # A high rate, so that steps stand out from the rounding of weights near 1.
    fit(module, LayerwiseLR("flat:lr=10"), method, data=batches(1, seed=5))
    fit(twin, LayerwiseLR("flat:lr=10"), data=batches(1, seed=5))
    assert method.outcome()["factors"] == pytest.approx({name: expected[name] for name in LAYERS})
    plain, group_of = dict(twin.named_parameters()), assign_layers(module).group_of
    moved = 0
    for name, p in module.named_parameters():
        step, own = plain[name].detach() - start[name], p.detach() - start[name]
        torch.testing.assert_close(own, expected[group_of[name]] * step, rtol=1e-3, atol=1e-5)
        moved += int(step.abs().max() > 1e-3)
    assert moved > 20


def method_seed(method: FisherRates, stage: int) -> int:
    """The seed with which stage `stage` drew labels."""
    return StageContext(stage, f"task {stage + 1}").generator(method.name).initial_seed()


def test_the_first_stage_is_the_one_without_it_and_the_rates_between_steps_are_the_plans() -> None:
    seen: list[float] = []

    class Looks(Module):
        def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
            seen.extend(float(group["lr"]) for group in self.optimizers().param_groups)

    module, plain, method = Looks(), Module(), FisherRates(power=1.0)
    fit(module, LayerwiseLR(FLAT_SGD), method)
    fit(plain, LayerwiseLR(FLAT_SGD))
    assert torch.equal(weights(module), weights(plain))
    assert method.outcome() == {}
    fit(module, LayerwiseLR(FLAT_SGD), method)
    assert set(seen) == {0.1}
    # A third stage has both tasks in its F.
    known = method.state()["fisher"]
    assert known["layers.0"] > 0
    method.enter(StageContext(2, "third", last=True))
    fit(module, LayerwiseLR(FLAT_SGD), method)
    assert len(method.outcome()["factors"]) == 3
    # No later stage needs the F of this one.
    assert method.state()["fisher"] == known


def test_what_the_model_knew_before_its_first_fit_counts() -> None:
    module, method = Module(), FisherRates(power=1.0)
    method.learn_from(module, batches(2))
    fit(module, LayerwiseLR(FLAT_SGD), method, data=batches(1))
    assert len(method.outcome()["factors"]) == 3


def test_a_resumed_second_stage_ends_where_the_unbroken_one_does(tmp_path: Path) -> None:
    adam = {"optimizer": torch.optim.AdamW, "lr": 1e-3}

    def learned() -> tuple[Module, FisherRates]:
        module, method = Module(**adam), FisherRates(power=1.0)
        fit(module, LayerwiseLR("flat:lr=1e-3"), method, data=batches(3))
        return module, method

    whole, method = learned()
    fit(whole, LayerwiseLR("flat:lr=1e-3"), method, data=batches(8, seed=2))
    again = learned()
    keep = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=4, save_top_k=-1)
    trainer = L.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        **{"enable_model_summary": False, "callbacks": [LayerwiseLR("flat:lr=1e-3"), again[1], keep]},
    )
    trainer.fit(again[0], batches(8, seed=2))
    path = tmp_path / "middle.ckpt"
    rest, resumed = FisherRates(power=1.0), Module(**adam)
    fit(resumed, LayerwiseLR("flat:lr=1e-3"), rest, data=batches(8, seed=2), ckpt_path=path)
    assert torch.equal(weights(resumed), weights(whole))
    assert rest.state() == method.state()
    with pytest.raises(ResumeMismatchError, match="power"):
        fit(Module(**adam), LayerwiseLR("flat:lr=1e-3"), FisherRates(), data=batches(4), ckpt_path=path)


def test_wrong_input_is_named() -> None:
    for settings, error in (
        ({"power": -1}, InvalidRateError),
        ({"limit": 0.5}, InvalidRateError),
        ({"examples": 0}, ConfigurationError),
        ({"permuted": -1}, ConfigurationError),
    ):
        with pytest.raises(error, match=next(iter(settings))):
            FisherRates(**settings)
    with pytest.raises(ConfigurationError, match="labels must be"):
        fisher_by_layer(Module(), batches(1), labels="false")
    with pytest.raises(ConfigurationError, match="no examples"):
        fisher_by_layer(Module(), [])
    module, method = Module(), FisherRates()
    fit(module, method, data=batches(1))  # the first stage needs no layers
    before = weights(module)
    with pytest.raises(ConfigurationError, match="Add LayerwiseLR"):
        fit(module, method, data=batches(1))
    assert torch.equal(weights(module), before)


def test_it_is_an_arm_with_its_control_beside_it_from_the_same_first_stage(tiny_model: str, tmp_path: Path) -> None:
    arms = (f"{FLAT} + fisher-rates:power=1", f"{FLAT} + fisher-rates:power=1,permuted=1")
    config = config_of(tiny_model, seeds=(0,), arms=arms, distributions=(FLAT,), epochs=1)
    result = compare(config, tmp_path, listener=Listener(), command="test")
    runs = {run["arm"]: run for run in result.runs}
    assert len({str(run["matrix"][1]) for run in runs.values()}) == 1
    assert sum(run["taken_over"] == [0] for run in runs.values()) == 2
    own, control = (runs[arm]["methods"][1]["fisher-rates"]["factors"] for arm in arms)
    assert list(own) == ["embeddings", "layers.0", "layers.1", "layers.2"]
    assert sorted(own.values()) == sorted(control.values())
    assert own != control
