"""What EWC, online EWC, SI and MAS have in common: a weighted pull in closed form, learned at the end of each stage."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from methods.fits import Module, batches, fit, weights
from torch import nn

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError, InvalidRateError, ResumeMismatchError, UnsupportedOptimizerError
from lr_dist.layers import clean_name
from lr_dist.methods import StageContext, build_method
from lr_dist.methods.quadratic import QuadraticPull

# Importances of the tiny BERT are small, so strengths are large.
METHODS = ("ewc:strength=300", "online-ewc:strength=300", "si:strength=10", "mas:strength=2")
names = pytest.mark.parametrize("text", METHODS)
LOW = {"lr": 0.02}


def learned(text: str, **module: Any) -> tuple[Any, Module]:
    """A method that has been through the first stage, and the module after it."""
    method, first = build_method(text), Module(**{**LOW, **module})
    fit(first, method)
    assert method.pull
    return method, first


def second(first: Module, penalty: Any = None, **options: Any) -> Module:
    """The module of the second stage: elsewhere than the anchor, so that the pull counts from the first step."""
    module = Module(**{**LOW, **options}, penalty=penalty)
    module.load_state_dict(first.state_dict())
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    return module


@names
@pytest.mark.parametrize(
    ("module", "trainer"),
    [
        ({}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}),
        ({"optimizer": torch.optim.AdamW, "lr": 1e-3, "fused": True}, {}),
        ({}, {"precision": "bf16-mixed"}),
    ],
    ids=["accumulated and clipped", "fused", "bf16"],
)
def test_the_fit_is_the_one_with_the_penalty_in_the_loss(text, module, trainer):
    method, first = learned(text)
    penalty = copy.deepcopy(method)
    pulled, plain = second(first, **module), second(first, **module)
    written = second(first, lambda each: penalty.penalty(each), **module)
    fit(pulled, method, **trainer)
    fit(written, **trainer)
    fit(plain, **trainer)
    apart = (weights(pulled) - weights(written)).abs().max()
    effect = (weights(plain) - weights(written)).abs().max()
    assert apart < (0.2 if "precision" in trainer else 0.002) * effect
    assert pulled.losses[0] == plain.losses[0]  # the task's alone


@pytest.mark.parametrize("text", ["ewc:strength=3000", "si:strength=100"])
def test_a_gradient_scaler_scales_neither_the_pull_nor_the_path(text):
    """Fused Adam is given scaled gradients; others are given plain ones."""
    method, first = learned(text)
    ends, paths = {}, {}
    for fused, strength in ((False, method.strength), (True, method.strength), (True, 0.0)):
        each, module = copy.deepcopy(method), second(first, optimizer=torch.optim.AdamW, lr=1e-3, eps=1e-4, fused=fused)
        each.strength = strength
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        fit(module, each, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        ends[fused, strength > 0] = weights(module)
        paths[fused, strength > 0] = sum(each.pull.importance[name].sum() for name in each.pull.importance.names())
    effect = (ends[True, False] - ends[False, True]).abs().max()
    assert (ends[True, True] - ends[False, True]).abs().max() < 0.2 * effect
    assert paths[True, True] == pytest.approx(float(paths[False, True]), rel=0.05)


@names
def test_the_first_stage_is_not_changed(text):
    method, plain = Module(), Module()
    fit(method, build_method(text))
    fit(plain)
    assert torch.equal(weights(method), weights(plain))
    assert build_method(text).trains_in(StageContext(0)) == text.startswith("si")
    assert build_method(text).trains_in(StageContext(1))


@pytest.mark.parametrize("text", ["ewc", "online-ewc", "mas"])
def test_in_the_last_stage_no_pass_is_made_for_a_later_one(text):
    for last in (False, True):
        method, module = build_method(text), Module(**LOW)
        method.enter(StageContext(1, "second", last=last))
        fit(module, method)
        assert bool(method.pull) != last


@names
def test_a_stopped_second_stage_resumes_bit_for_bit_and_goes_on_to_a_third(text, tmp_path):
    """What was learned, and SI's path so far, are in the checkpoint."""
    ends = []
    method, first = learned(text)
    trained = {"optimizer": torch.optim.AdamW, "lr": 1e-3}
    for stop in (False, True):
        each, module = copy.deepcopy(method), second(first, **trained)
        callbacks = lambda each=each: (LayerwiseLR("flat:lr=1e-3", verbose=False), each)  # noqa: E731
        if stop:
            trainer = fit(module, *callbacks(), max_steps=3)
            # As ModelCheckpoint does it in the third step, before the end of the fit.
            path = tmp_path / "half.ckpt"
            assert trainer.global_step == 3
            each, module = copy.deepcopy(method), second(first, **trained)
            callbacks = lambda each=each: (LayerwiseLR("flat:lr=1e-3", verbose=False), each)  # noqa: E731
            fit(module, *callbacks(), _Save(path, 3))
            torch.load(path, weights_only=True)
            each, module = build_method(text), Module(**trained)
            callbacks = lambda each=each: (LayerwiseLR("flat:lr=1e-3", verbose=False), each)  # noqa: E731
            fit(module, *callbacks(), ckpt_path=path)
        else:
            fit(module, *callbacks())
        third = second(module, **trained)
        fit(third, *callbacks(), data=batches(seed=5))
        ends.append((weights(module), weights(third)))
    assert torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


class _Save:
    """Writes a checkpoint after a step."""

    def __new__(cls, path, step):
        import lightning.pytorch as L

        class Save(L.Callback):
            def on_train_batch_end(self, trainer, *_):
                if trainer.global_step == step:
                    trainer.save_checkpoint(path)

        return Save()


@names
def test_a_checkpoint_of_other_settings_is_refused(text, tmp_path):
    fit(Module(), build_method(text), _Save(tmp_path / "c.ckpt", 2))
    name = text.partition(":")[0]
    with pytest.raises(ResumeMismatchError, match=r"strength=7\.0"):
        fit(Module(), build_method(f"{name}:strength=7"), ckpt_path=tmp_path / "c.ckpt")


@names
def test_another_head_is_refused_unless_it_is_excluded(text):
    method, first = learned(text)
    _with_three_classes(first)
    with pytest.raises(ConfigurationError, match=r"exclude='classifier'"):
        fit(first, method, data=batches(1))
    method = type(method)(exclude="classifier")
    fit(Module(), method)
    first = Module()
    _with_three_classes(first)
    fit(first, method, data=batches(1))
    assert "model.classifier.weight" not in method.pull.anchor


def _with_three_classes(module: Module) -> None:
    module.model.classifier = nn.Linear(16, 3)
    module.model.num_labels = module.model.config.num_labels = 3


@names
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e31, "a", True])
def test_a_strength_that_is_not_valid_is_refused(text, value):
    with pytest.raises(InvalidRateError, match="strength"):
        type(build_method(text))(value)


@names
def test_nothing_of_the_model_is_kept_alive(text):
    method, _ = learned(text)
    held = [value for value in vars(method).values() if isinstance(value, (nn.Module, dict, list))]
    assert not any(held)


def test_a_sparse_gradient_is_refused():
    class Sparse(Module):
        def __init__(self):
            super().__init__()
            self.model.bert.embeddings.word_embeddings.sparse = True

    method = build_method("ewc:strength=1")
    method.learn_from(Sparse(), batches(2))
    with pytest.raises(UnsupportedOptimizerError, match="sparse"):
        fit(Sparse(), method)


def test_one_penalty_stands_for_those_of_all_tasks():
    """Its gradient and value are those of three penalties, also where an importance is 0."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(50, generator=generator))
    pull, tasks = QuadraticPull(), []
    for _ in range(3):
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn(50, generator=generator))
        importance = torch.rand(50, generator=generator) * (torch.rand(50, generator=generator) > 0.5)
        pull.add({"w": importance}, {"w": parameter})
        tasks.append((importance, parameter.detach().clone()))
    with torch.no_grad():
        parameter.add_(0.1 * torch.randn(50, generator=generator))
    separate = torch.stack([(f * (parameter - a).square()).sum() for f, a in tasks]).sum()
    merged = pull.value({"w": parameter})
    torch.testing.assert_close(merged, separate)
    (expected,), (got,) = torch.autograd.grad(separate, parameter), torch.autograd.grad(merged, parameter)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_an_anchor_is_where_the_pull_is_zero():
    method, first = learned("mas:strength=1")
    assert method.penalty(first) == 0
    with torch.no_grad():
        first.model.classifier.bias.add_(1.0)
    expected = method.pull.importance["model.classifier.bias"].sum()
    torch.testing.assert_close(method.penalty(first), expected)
    assert clean_name("model.classifier.bias") in method.pull.anchor
