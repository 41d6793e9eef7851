"""LayerwiseLR under every precision that a CPU knows, and with compiled modules."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import tiny
import torch
from lightning.pytorch.plugins import MixedPrecision

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import LostStepsWarning

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)
PARTS = {"embeddings": "word_embeddings", "head": "classifier", **{f"layers.{i}": f"layer.{i}." for i in range(3)}}
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def adamw(module: Any, **options: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), **{"lr": 1e-3, "weight_decay": 0.0, **options})


def layerwise(distribution: Any = DISTRIBUTION) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False)


def expect_first_step(module: Any, before: dict[str, torch.Tensor], tolerance: float = 0.02) -> None:
    """The first step of Adam is the rate times a sign."""
    after = tiny.weights(module)
    for layer, part in PARTS.items():
        moved = max((after[n].cpu() - w.cpu()).abs().max().item() for n, w in before.items() if part in n)
        assert moved == pytest.approx(tiny.RATES[layer], rel=tolerance), layer


# Precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true", "32-true"])
def test_weights_move_by_each_layers_rate(precision: Any) -> None:
    # Lightning runs 16-mixed as bf16-mixed where there is no GPU.
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    tiny.fit(module, layerwise(), precision=precision, max_steps=1)
    assert {p.dtype for p in module.parameters()} == {torch.float64 if precision == "64-true" else torch.float32}
    expect_first_step(module, before)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])])
def test_a_gradient_scaler_skips_a_step_with_overflow_and_takes_the_next_with_each_layers_rate(device: str) -> None:
    class Overflowing(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 0 else loss

    scaler = torch.amp.GradScaler(device, init_scale=256.0)
    module, recorder = Overflowing(adamw), tiny.Recorder()
    before = tiny.weights(module)
    tiny.fit(
        module,
        layerwise(),
        recorder,
        plugins=[MixedPrecision("16-mixed", device, scaler)],
        accelerator="gpu" if device == "cuda" else "cpu",
        max_steps=2,
        gradient_clip_val=1.0,
    )
    assert scaler.get_scale() == 128.0
    expect_first_step(module, before)
    # A step that the scaler skips calls the hook before it as well.
    assert recorder.rates["layers.0"] == [3e-5, 3e-5]


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "16-true"])
def test_weights_move_by_each_layers_rate_on_a_gpu(precision: Any) -> None:
    module = tiny.Classifier(lambda m: adamw(m, fused=True, eps=1e-6))
    before = tiny.weights(module)
    tiny.fit(module, layerwise("decay:lr=2e-2,factor=0.7"), accelerator="gpu", precision=precision, max_steps=1)
    moved = {
        layer: max((p.cpu() - before[n]).abs().max().item() for n, p in module.named_parameters() if part in n)
        for layer, part in PARTS.items()
    }
    rates = LRDistribution.decay(lr=2e-2, factor=0.7).rates(3)
    assert moved == pytest.approx(rates, rel=0.05)


def lost_steps(*arguments: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.fit(*arguments, **options)
    return [str(warning.message) for warning in caught if warning.category is LostStepsWarning]


def test_weights_in_bfloat16_that_cannot_move_are_reported_by_group_and_do_not_move() -> None:
    module = tiny.Classifier(adamw)
    before = {name: weight.bfloat16() for name, weight in tiny.weights(module).items()}
    (found,) = lost_steps(module, layerwise(), precision="bf16-true", max_steps=8)
    # Weights of about 0.2 are 0.001 apart; only the head's rate of 7e-3 reaches the next number.
    assert "in bfloat16" in found
    for layer in ("embeddings (", "layers.0 (", "layers.1 ("):
        assert layer in found
    assert "head" not in found.split("Keep")[0]
    still = {
        layer: sum(int((p == before[n]).sum()) for n, p in module.named_parameters() if part in n)
        / sum(p.numel() for n, p in module.named_parameters() if part in n)
        for layer, part in PARTS.items()
    }
    assert still["layers.0"] > 0.9
    assert still["head"] < 0.1


def test_rates_that_bfloat16_can_hold_and_mixed_precision_are_not_reported() -> None:
    assert lost_steps(tiny.Classifier(adamw), layerwise("flat:lr=1e-2"), precision="bf16-true", max_steps=1) == []
    assert lost_steps(tiny.Classifier(adamw), layerwise(), precision="bf16-mixed", max_steps=1) == []
    sgd = tiny.Classifier(lambda m: torch.optim.SGD(m.parameters(), lr=1e-3))
    assert lost_steps(sgd, layerwise(), precision="bf16-true", max_steps=1) == []


def test_what_is_loaded_in_bfloat16_is_reported_whatever_the_trainers_precision() -> None:
    # As transformers 5 loads a checkpoint that was saved in bfloat16, unless a dtype is given.
    (found,) = lost_steps(tiny.Classifier(adamw).bfloat16(), layerwise(), max_steps=1)
    assert "dtype=torch.float32" in found


def test_the_share_that_is_reported_is_the_share_of_weights_that_a_step_leaves() -> None:
    from lr_dist._callback import precision

    # Numbers of bfloat16 from 1 to 2 are 1/128 apart and take the nearest, and half of that below 1.
    parameter = torch.nn.Parameter(torch.tensor([1.5, 1.5, 1.5, 0.25, 0.0], dtype=torch.bfloat16))
    optimizer = torch.optim.Adam([{"params": [parameter], "name": "layers.0", "layer_lr": 2e-3}], lr=2e-3)
    (found,) = precision.lost_steps(optimizer)
    assert isinstance(found, LostStepsWarning)
    assert "layers.0 (60% at 0.002)" in str(found)
    optimizer.param_groups[0]["layer_lr"] = 5e-3
    assert precision.lost_steps(optimizer) == []


# torch.compile -------------------------------------------------------------------------------------------


class Inside(tiny.Classifier):
    """The transformer alone is compiled; its parameters' names get a prefix."""

    def __init__(self, configure: Any, backend: str) -> None:
        super().__init__(configure)
        self.model = torch.compile(self.model, backend=backend)


def compiled(how: str, backend: str) -> tuple[Any, Any]:
    """What is handed to `fit`, and the module in it."""
    if how == "model":
        module = Inside(adamw, backend)
        return module, module
    module = tiny.Classifier(adamw)
    if how == "in place":
        module.model.compile(backend=backend)
        return module, module
    return torch.compile(module, backend=backend), module


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Any:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("how", ["module", "model", "in place"])
def test_a_compiled_module_has_the_same_rates_and_ends_with_the_same_weights(how: str) -> None:
    plain = tiny.Classifier(adamw)
    before = tiny.weights(plain)
    tiny.fit(plain, layerwise(DISTRIBUTION.freeze("layers.0")), max_steps=3)
    handed, module = compiled(how, "eager")
    run = tiny.fit(handed, layerwise(DISTRIBUTION.freeze("layers.0")), max_steps=3)
    rates = {group["name"]: group["lr"] for group in run.optimizers[0].param_groups}
    assert rates == {**tiny.RATES, "layers.0": 0.0}
    for (name, ours), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-7), name
        assert torch.equal(theirs, before[name.replace("_orig_mod.", "")]) == ("layer.0." in name), name


@pytest.mark.skipif(not os.environ.get("LR_DIST_INDUCTOR"), reason="compiles C++ for half a minute: LR_DIST_INDUCTOR=1")
def test_a_single_layer_in_generated_code_steps_with_its_own_rate() -> None:
    module = tiny.Classifier(adamw)
    module.model.bert.encoder.layer[1].compile(backend="inductor")
    before = tiny.weights(module)
    try:
        tiny.fit(module, layerwise(), max_steps=1)
    except torch._inductor.exc.InductorError as error:  # no C++ compiler
        pytest.skip(f"the compiler does not work here: {error}"[:200])
    assert torch._dynamo.utils.counters["inductor"]
    expect_first_step(module, before)
