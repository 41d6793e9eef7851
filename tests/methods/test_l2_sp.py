"""L2-SP in a user's own Trainer, against numbers worked out by hand and against the penalty written into the loss."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from methods.fits import Module, batches, fit, weights
from torch import nn

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError, InvalidRateError, ResumeMismatchError
from lr_dist.methods import L2SP

ALPHA, BETA = 0.5, 0.25


def _penalty(module: Module) -> torch.Tensor:
    terms = []
    for name, p in module.model.named_parameters():
        head = name.startswith(("classifier", "bert.pooler"))
        terms.append(BETA * (p**2).sum() if head else ALPHA * ((p - module.start[name]) ** 2).sum())
    return 0.5 * torch.stack(terms).sum()


def test_one_step_by_hand():
    # With a constant loss, a step of SGD is theta - lr (alpha (theta - theta_0) + beta w): both pulls alone.
    class Constant(Module):
        def training_step(self, batch, batch_idx):
            return self.model(**batch).loss * 0.0

    module = Constant()
    method = L2SP(ALPHA, BETA)
    fit(module, method, data=batches(1))
    head = "bert.pooler.dense.weight"
    torch.testing.assert_close(dict(module.model.named_parameters())[head], module.start[head] * (1 - 0.1 * BETA))
    layer = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(dict(module.model.named_parameters())[layer], module.start[layer])  # at its anchor
    with torch.no_grad():
        module.model.bert.encoder.layer[1].output.dense.weight.add_(1.0)
    fit(module, method, data=batches(1))  # the second stage: the anchor is the first one's
    torch.testing.assert_close(dict(module.model.named_parameters())[layer], module.start[layer] + 1 - 0.1 * ALPHA)


@pytest.mark.parametrize(
    ("module", "trainer"),
    [
        ({}, {}),
        ({}, {"accumulate_grad_batches": 2}),
        ({}, {"gradient_clip_val": 0.05}),
        ({"optimizer": torch.optim.AdamW, "lr": 1e-3, "weight_decay": 0.1}, {}),
        ({"optimizer": torch.optim.AdamW, "lr": 1e-3, "fused": True}, {"accumulate_grad_batches": 4}),
        ({}, {"precision": "bf16-mixed"}),
    ],
    ids=["plain", "accumulated", "clipped", "decayed", "fused", "bf16"],
)
def test_the_fit_is_the_one_with_the_penalty_in_the_loss(module, trainer):
    pulled, written, plain = Module(**module), Module(**module, penalty=_penalty), Module(**module)
    fit(pulled, L2SP(ALPHA, BETA), **trainer)
    fit(written, **trainer)
    fit(plain, **trainer)
    tolerance = 2e-3 if "precision" in trainer else 2e-6
    torch.testing.assert_close(weights(pulled), weights(written), rtol=0, atol=tolerance)
    assert (weights(plain) - weights(written)).abs().max() > 5 * tolerance
    assert pulled.losses[0] == plain.losses[0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_does_not_scale_the_pull(fused):
    """Fused Adam divides by the scaler's factor itself, so the pull needs it; others are given plain gradients."""
    options = {"optimizer": torch.optim.AdamW, "lr": 1e-3, "eps": 1e-4, "fused": fused}
    pulled, written = Module(**options), Module(**options, penalty=_penalty)
    for module, callbacks in ((pulled, [L2SP(ALPHA, BETA)]), (written, [])):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        fit(module, *callbacks, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    plain = Module(**options)
    fit(plain)
    apart = (weights(pulled) - weights(written)).abs().max()
    assert apart < 0.1 * (weights(plain) - weights(written)).abs().max()


def test_the_layers_rates_apply_to_the_pull_and_frozen_layers_stay():
    module = Module()
    fit(module, LayerwiseLR("flat:lr=0.1,freeze=embeddings..layers.0", verbose=False), L2SP(ALPHA))
    for name, p in module.model.named_parameters():
        frozen = name.startswith(("bert.embeddings", "bert.encoder.layer.0."))
        assert torch.equal(p, module.start[name]) == frozen, name


def test_a_layer_that_was_frozen_in_the_first_stage_is_anchored_when_it_is_trained():
    method, module = L2SP(1e3), Module(lr=1e-4)
    fit(module, LayerwiseLR("flat:lr=1e-4,freeze=embeddings..layers.0", verbose=False), method)
    for p in module.model.parameters():
        p.requires_grad_(True)
    fit(module, method)
    free = Module(lr=1e-4)
    fit(free)
    moved, freely = (
        (m.model.bert.embeddings.word_embeddings.weight - m.start["bert.embeddings.word_embeddings.weight"]).norm()
        for m in (module, free)
    )
    assert 0 < moved < freely


def test_a_stopped_stage_resumes_bit_for_bit(tmp_path):
    options = {"optimizer": torch.optim.AdamW, "lr": 1e-3}
    whole = Module(**options)
    fit(whole, LayerwiseLR("flat:lr=1e-3", verbose=False), L2SP(ALPHA, BETA), max_steps=8)
    half = Module(**options)
    trainer = fit(half, LayerwiseLR("flat:lr=1e-3", verbose=False), L2SP(ALPHA, BETA), max_steps=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["lr_dist.l2-sp"]
    assert torch.equal(
        state["anchor"]["model.bert.embeddings.word_embeddings.weight"],
        half.start["bert.embeddings.word_embeddings.weight"],
    )
    rest = Module(**options)
    callbacks = (LayerwiseLR("flat:lr=1e-3", verbose=False), L2SP(ALPHA, BETA))
    fit(rest, *callbacks, max_steps=8, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(rest), weights(whole))


@pytest.mark.parametrize("before", [None, L2SP(0.1)])
def test_a_checkpoint_without_it_or_of_other_settings_is_refused(tmp_path, before):
    trainer = fit(Module(), *([before] if before else []), max_steps=2)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ResumeMismatchError, match=r"alpha=0\.5"):
        fit(Module(), L2SP(ALPHA), ckpt_path=tmp_path / "other.ckpt")


def test_an_instance_of_another_model_is_refused():
    method = L2SP()
    fit(Module(), method, data=batches(1))
    other = Module()
    other.model.resize_token_embeddings(30)
    with pytest.raises(ConfigurationError, match=r"has the shape \(20, 16\) there, and \(30, 16\) here"):
        fit(other, method, data=batches(1))


def test_nothing_of_the_model_is_kept_alive():
    method = L2SP()
    module = Module()
    fit(module, method, data=batches(1))
    assert not any(isinstance(value, nn.Module) for value in vars(method).values())
    assert method._names == {}


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e31, "a", True])
def test_a_strength_that_is_not_valid_is_refused(value):
    with pytest.raises(InvalidRateError, match="alpha"):
        L2SP(value)
