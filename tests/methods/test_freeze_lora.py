"""Freezing and LoRA: what is trained, what is left after the fit, resume, and LoRA with interpolation."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError, LayerCountError, UnsupportedStrategyError, UnsupportedWeightsError
from lr_dist.methods import Freeze, Interpolate, LoRA, StageContext, build_method
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.observers import TestAfterStages
from lr_dist.sequence.runner import run_sequence
from lr_dist.sequence.settings import SequenceSettings

QUERY = "model.bert.encoder.layer.{}.attention.self.query.weight"
WORDS = "model.bert.embeddings.word_embeddings.weight"


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)


def depth(name: str) -> str:
    if ".embeddings." in name:
        return "embeddings"
    return f"layers.{name.split('encoder.layer.')[1][0]}" if "encoder.layer." in name else "head"


def moved(*callbacks: Any, **options: Any) -> set[str]:
    """The groups whose weights a fit has changed."""
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    tiny.fit(module, *callbacks, **options)
    assert all(parameter.requires_grad for parameter in module.parameters())
    changed = {name for name, weight in tiny.weights(module).items() if not torch.equal(weight, before[name])}
    groups = {depth(name) for name in changed}
    # Whole groups: all of it, or nothing (a key's bias has no gradient).
    assert all(name in changed for name in before if depth(name) in groups and not name.endswith("key.bias"))
    return groups


ALL = {"embeddings", "layers.0", "layers.1", "layers.2", "head"}


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [
        ("..1", {"embeddings", "layers.0", "layers.1"}),
        ("..0.5", {"embeddings", "layers.0", "layers.1"}),
        ("..0.4", {"embeddings", "layers.0"}),
        ("embeddings..embeddings", {"embeddings"}),
        ("1..2", {"layers.1", "layers.2"}),
        ("-1..", {"layers.2"}),
        ("layers.0..0", {"layers.0"}),
        ("..-1", {"embeddings", "layers.0", "layers.1", "layers.2"}),
    ],
)
def test_a_range_is_frozen_and_trainable_again_after_the_fit(layers: str, frozen: set[str]) -> None:
    assert moved(Freeze(layers)) == ALL - frozen


def test_freezing_is_the_rate_zero() -> None:
    frozen, by_rate = tiny.Classifier(adamw), tiny.Classifier(adamw)
    tiny.fit(frozen, LayerwiseLR("flat:lr=1e-2", verbose=False), Freeze("..0"))
    tiny.fit(by_rate, LayerwiseLR("flat:lr=1e-2,freeze=embeddings..layers.0", verbose=False))
    assert all(torch.equal(weight, tiny.weights(by_rate)[name]) for name, weight in tiny.weights(frozen).items())


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("5", "no range"),
        ("..", "no range"),
        ("", "no range"),
        ("..head", "no range"),
        ("..1.5", "no range.* a relative depth"),
        ("0.9..0.1", "runs backwards"),
        (3, "no range"),
        ("a..b", "no range"),
    ],
)
def test_a_range_that_is_none_is_refused(layers: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Freeze(layers)


@pytest.mark.parametrize(
    ("layers", "error"), [("..3", LayerCountError), ("2..1", LayerCountError), ("0.6..0.9", ConfigurationError)]
)
def test_a_range_that_the_model_lacks_is_refused_before_the_first_step(layers: str, error: type[Exception]) -> None:
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    with pytest.raises(error, match="freeze:layers="):
        tiny.fit(module, Freeze(layers))
    assert torch.equal(tiny.weights(module)[WORDS], before[WORDS])


def test_in_a_sequence_the_first_stage_is_left_alone() -> None:
    for method, frozen in ((Freeze("..0"), set()), (Freeze("..0", stages="all"), {"embeddings", "layers.0"})):
        context = StageContext(index=0)
        assert method.trains_in(context) == bool(frozen)
        method.enter(context)
        assert moved(method) == ALL - frozen
        method.enter(StageContext(index=1))
        assert moved(method) == ALL - {"embeddings", "layers.0"}
    with pytest.raises(ConfigurationError, match="later or all"):
        Freeze(stages="first")


def test_a_fit_that_fails_leaves_nothing_frozen_and_no_adapters() -> None:
    class Failing(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("stop")

    for method in (Freeze("..0"), LoRA()):
        module = Failing(adamw)
        names = list(tiny.weights(module))
        with pytest.raises(RuntimeError, match="stop"):
            tiny.fit(module, method)
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert list(tiny.weights(module)) == names


# LoRA ----------------------------------------------------------------------------------------------------


class Adapters(tiny.L.Callback):
    """The product of each adapter's matrices when training ends, and the groups of the optimizer."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.trained = {name for name, p in pl_module.named_parameters() if p.requires_grad}
        self.groups = {group.get("name") for group in trainer.optimizers[0].param_groups}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        factors = {name: p.detach().clone() for name, p in pl_module.named_parameters() if ".lora_" in name}
        self.products = {
            name.partition(".lora_A")[0]: factors[name.replace("lora_A", "lora_B")] @ a
            for name, a in factors.items()
            if ".lora_A." in name
        }


def test_after_the_fit_the_scaled_product_is_in_the_weights_and_the_rest_as_before() -> None:
    module, seen = tiny.Classifier(adamw), Adapters()
    before = tiny.weights(module)
    tiny.fit(module, seen, LoRA(rank=2, alpha=6))
    after = tiny.weights(module)
    assert list(after) == list(before)
    assert {depth(name) for name in seen.trained} == {"layers.0", "layers.1", "layers.2", "head"}
    assert len(seen.products) == 6  # queries and values of three layers: peft's choice for BERT
    for name, weight in after.items():
        owner = name.removesuffix(".weight")
        if owner in seen.products:
            product = seen.products[owner]
            assert torch.linalg.matrix_rank(product) == 2
            torch.testing.assert_close(weight, before[name] + 6 / 2 * product)
            assert not torch.equal(weight, before[name])
        elif depth(name) == "head":
            assert not torch.equal(weight, before[name]), name
        else:
            assert torch.equal(weight, before[name]), name
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(hasattr(each, "base_layer") or hasattr(each, "peft_config") for each in module.modules())


def test_lora_then_interpolate_is_alpha_times_the_product() -> None:
    module, seen = tiny.Classifier(adamw), Adapters()
    before = tiny.weights(module)
    tiny.fit(module, seen, LoRA(rank=2, alpha=6), Interpolate(0.25))
    name = QUERY.format(1)
    product = seen.products[name.removesuffix(".weight")]
    torch.testing.assert_close(tiny.weights(module)[name], before[name] + 0.25 * 3 * product)
    assert torch.equal(tiny.weights(module)[WORDS], before[WORDS])


def test_the_other_order_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigurationError, match=r"callbacks=\[\.\.\., LoRA, Interpolate\]"):
        tiny.fit(tiny.Classifier(adamw), Interpolate(0.25), LoRA())


def test_layers_have_their_rates_and_what_is_frozen_has_no_trained_adapter() -> None:
    module, seen = tiny.Classifier(adamw), Adapters()
    before = tiny.weights(module)
    rates = "from_layers:embeddings=1e-5,layers=3e-5/2e-4/5e-4,head=7e-3,freeze=layers.1..layers.1"
    recorder = tiny.Recorder()
    tiny.fit(module, LayerwiseLR(rates, verbose=False), seen, LoRA(rank=2, targets="query key value"), recorder)
    got = {group.partition("/")[0]: values[0] for group, values in recorder.rates.items()}
    assert {group: got[group] for group in ("layers.0", "layers.2", "head")} == {
        "layers.0": 3e-5,
        "layers.2": 5e-4,
        "head": 7e-3,
    }
    assert torch.equal(tiny.weights(module)[QUERY.format(1)], before[QUERY.format(1)])
    assert not torch.equal(tiny.weights(module)[QUERY.format(2)], before[QUERY.format(2)])


def test_what_the_user_has_frozen_has_no_trained_adapter_and_stays_frozen() -> None:
    module, seen = tiny.Classifier(adamw), Adapters()
    before = tiny.weights(module)
    module.model.bert.encoder.layer[1].requires_grad_(False)
    module.model.bert.pooler.requires_grad_(False)
    tiny.fit(module, seen, LoRA(rank=2))
    assert {depth(name) for name in seen.trained} == {"layers.0", "layers.2", "head"}
    after = tiny.weights(module)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert {depth(name) for name in frozen if "pooler" not in name} == {"layers.1"}
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert not torch.equal(after[QUERY.format(2)], before[QUERY.format(2)])


def test_freezing_holds_for_adapters_too_in_either_order() -> None:
    for methods in ((LoRA(rank=2), Freeze("..0")), (Freeze("..0"), LoRA(rank=2))):
        module, seen = tiny.Classifier(adamw), Adapters()
        tiny.fit(module, seen, *methods, Interpolate(0.5))
        assert {depth(name) for name in seen.trained} == {"layers.1", "layers.2", "head"}
        assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_stopped_fit_with_adapters_resumes_bit_for_bit(tmp_path) -> None:
    class SaveAt(tiny.L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def callbacks() -> tuple[Any, ...]:
        return LayerwiseLR("flat:lr=1e-2", verbose=False), LoRA(rank=2, dropout=0.1), Interpolate(0.5)

    whole, rest = tiny.Classifier(adamw), tiny.Classifier(adamw)
    tiny.fit(whole, *callbacks(), SaveAt())
    tiny.fit(rest, *callbacks(), ckpt=tmp_path / "half.ckpt")
    assert all(torch.equal(weight, tiny.weights(whole)[name]) for name, weight in tiny.weights(rest).items())


def test_a_second_fit_begins_with_new_adapters() -> None:
    module, method = tiny.Classifier(adamw), LoRA(rank=2)
    tiny.fit(module, method)
    first = tiny.weights(module)
    tiny.fit(module, method, data=tiny.batches(seed=5))
    change = tiny.weights(module)[QUERY.format(0)] - first[QUERY.format(0)]
    assert torch.linalg.matrix_rank(change, atol=1e-6) == 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 0}, "rank must be"),
        ({"rank": 2.5}, "rank must be"),
        ({"alpha": 0}, "alpha must be"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"dropout": 1}, "below 1"),
        ({"targets": ""}, "targets must be"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        LoRA(**settings)


def test_targets_that_the_model_lacks_are_named_with_those_that_it_has() -> None:
    with pytest.raises(ConfigurationError, match="called classifier, dense, key, query, value"):
        tiny.fit(tiny.Classifier(adamw), LoRA(targets="q_proj"))


def test_adapters_that_stay_are_refused() -> None:
    for method in (LoRA(), Interpolate(0.5)):
        module = tiny.Classifier(adamw)
        module.model = get_peft_model(module.model, LoraConfig(r=2, target_modules=["query"]))
        with pytest.raises(UnsupportedWeightsError, match=r"[Mm]erge"):
            tiny.fit(module, method)


def test_fsdp2_is_refused() -> None:
    from lightning.pytorch.strategies import ModelParallelStrategy

    class Trainer:
        callbacks = ()
        strategy = ModelParallelStrategy()

    with pytest.raises(UnsupportedStrategyError, match="whole parameters"):
        LoRA().setup(Trainer(), tiny.Classifier(adamw), "fit")


def test_text_forms() -> None:
    text = "lora:rank=4,alpha=8.0,targets=(query value),dropout=0.0,stages=later"
    assert str(build_method("lora:rank=4,alpha=8,targets=(query value)")) == text
    assert str(build_method(text)) == text
    assert str(build_method("freeze:layers=..3")) == "freeze:layers=..3,stages=later"


# In a sequence -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tiny_model: str) -> Bench:
    settings = SequenceSettings(epochs=1, batch_size=16, lr=2e-3)
    return Bench.prepare(tiny_model, ["demo-sentiment", "demo-acceptability"], settings, limit=64, dev_size=60)


@pytest.mark.parametrize(
    "methods", ["freeze:layers=..0.5", "lora:rank=2", "lora:rank=2,targets=all-linear + interpolate:alpha=0.5"]
)
def test_in_a_sequence_the_second_stage_differs(bench: Bench, methods: str) -> None:
    plain = run_sequence(bench, Arm.parse("flat:lr=2e-3"), 0, TestAfterStages())
    outcome = run_sequence(bench, Arm.parse(f"flat:lr=2e-3 + {methods}"), 0, TestAfterStages())
    assert all(score is not None for row in outcome.matrix for score in row)
    assert outcome.matrix[:2] == plain.matrix[:2] or "lora" in methods  # LoRA computes padded batches
    assert run_sequence(bench, Arm.parse(f"flat:lr=2e-3 + {methods}"), 0, TestAfterStages()).matrix == outcome.matrix
