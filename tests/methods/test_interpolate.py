"""Interpolation as a callback in a user's Trainer: against a hand computation, resume, checkpoints, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist.errors import ConfigurationError, InvalidAlphaError, InvalidDistributionError, ResumeMismatchError
from lr_dist.methods import Interpolate, StageContext, build_method

WORDS = "model.bert.embeddings.word_embeddings.weight"
LAYER = "model.bert.encoder.layer.{}.output.dense.weight"
HEAD = "model.classifier.weight"


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def learned(**options: Any) -> dict[str, torch.Tensor]:
    """The weights at the end of the same fit without the method."""
    module = tiny.Classifier(adamw)
    tiny.fit(module, **options)
    return tiny.weights(module)


def mixed(before: torch.Tensor, after: torch.Tensor, alpha: float) -> torch.Tensor:
    return (before.double() + alpha * (after.double() - before.double())).float()


def test_one_number_mixes_what_is_below_the_head_and_keeps_the_head() -> None:
    module = tiny.Classifier(adamw)
    before, after = tiny.weights(module), learned()
    tiny.fit(module, Interpolate(0.3))
    for name, weight in tiny.weights(module).items():
        head = name.startswith(("model.classifier", "model.bert.pooler"))
        torch.testing.assert_close(weight, after[name] if head else mixed(before[name], after[name], 0.3), msg=name)
        assert head or (after[name] - before[name]).abs().max() > 1e-3, name


def test_a_distribution_gives_every_depth_its_own() -> None:
    module = tiny.Classifier(adamw)
    before, after = tiny.weights(module), learned()
    # Embeddings, three layers, head: steps of 0.2.
    tiny.fit(module, build_method("interpolate:alpha=(linear:first=0.2,last=1),head=interpolated"))
    weights = tiny.weights(module)
    for name, alpha in {WORDS: 0.2, LAYER.format(0): 0.4, LAYER.format(1): 0.6, LAYER.format(2): 0.8, HEAD: 1}.items():
        torch.testing.assert_close(weights[name], mixed(before[name], after[name], alpha), msg=name)


@pytest.mark.parametrize(("alpha", "which"), [(0, "before"), (1, "after")])
def test_the_ends_are_exact(alpha: float, which: str) -> None:
    module = tiny.Classifier(adamw)
    ends = {"before": tiny.weights(module), "after": learned()}
    tiny.fit(module, Interpolate(alpha, head="interpolated"))
    assert all(torch.equal(weight, ends[which][name]) for name, weight in tiny.weights(module).items())


def test_every_fit_of_a_user_is_interpolated_from_where_it_began() -> None:
    method, module = Interpolate(0.5), tiny.Classifier(adamw)
    tiny.fit(module, method)
    between = tiny.weights(module)
    other = tiny.Classifier(adamw)
    other.load_state_dict(module.state_dict())
    tiny.fit(other, data=tiny.batches(seed=5))
    tiny.fit(module, method, data=tiny.batches(seed=5))
    after = tiny.weights(other)[WORDS]
    torch.testing.assert_close(tiny.weights(module)[WORDS], mixed(between[WORDS], after, 0.5))


def test_a_fit_that_failed_leaves_no_weights_for_the_next() -> None:
    class Failing(tiny.Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("stop")

    method, module = Interpolate(0.5), tiny.Classifier(adamw)
    with pytest.raises(RuntimeError, match="stop"):
        tiny.fit(Failing(adamw), method)
    with torch.no_grad():
        module.get_parameter(WORDS).add_(1.0)
    tiny.fit(module, method)
    other = tiny.Classifier(adamw)
    with torch.no_grad():
        other.get_parameter(WORDS).add_(1.0)
    before = tiny.weights(other)[WORDS]
    tiny.fit(other)
    torch.testing.assert_close(tiny.weights(module)[WORDS], mixed(before, tiny.weights(other)[WORDS], 0.5))


def test_the_first_stage_of_a_sequence_is_left_as_learned() -> None:
    method, module = Interpolate(0.5), tiny.Classifier(adamw)
    method.enter(StageContext(index=0, task="first"))
    tiny.fit(module, method)
    after = learned()
    assert all(torch.equal(weight, after[name]) for name, weight in tiny.weights(module).items())
    method.enter(StageContext(index=1, task="second"))
    tiny.fit(module, method, data=tiny.batches(seed=5))
    other = tiny.Classifier(adamw)
    other.load_state_dict({name: weight.clone() for name, weight in after.items()})
    tiny.fit(other, data=tiny.batches(seed=5))
    torch.testing.assert_close(tiny.weights(module)[WORDS], mixed(after[WORDS], tiny.weights(other)[WORDS], 0.5))


def test_a_kept_stage_is_interpolated_without_training_it_again() -> None:
    """As a runner does that has the weights after the training: no fit, no hook of Lightning."""
    module, method, after = tiny.Classifier(adamw), Interpolate(0.25), learned()
    before = tiny.weights(module)
    assert not method.trains_in(StageContext(index=1))
    method.enter(StageContext(index=1))
    method.stage_started(module)
    module.load_state_dict(after)
    method.end_stage(module, tiny.batches())
    torch.testing.assert_close(tiny.weights(module)[WORDS], mixed(before[WORDS], after[WORDS], 0.25))


def test_a_stopped_fit_resumes_from_the_weights_before_it(tmp_path) -> None:
    whole = tiny.Classifier(adamw)
    callbacks = lambda: (LayerwiseLR("flat:lr=1e-2", verbose=False), Interpolate(0.4))  # noqa: E731
    tiny.fit(whole, *callbacks(), max_steps=8)

    class SaveAt(tiny.L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    tiny.fit(tiny.Classifier(adamw), *callbacks(), SaveAt(), max_steps=8)
    rest = tiny.Classifier(adamw)
    with torch.no_grad():
        rest.get_parameter(WORDS).add_(
            1.0
        )  # what it starts from does not matter: the checkpoint has the weights before
    tiny.fit(rest, *callbacks(), max_steps=8, ckpt=tmp_path / "half.ckpt")
    assert all(torch.equal(weight, tiny.weights(whole)[name]) for name, weight in tiny.weights(rest).items())


def test_a_checkpoint_after_the_fit_holds_the_interpolated_weights_and_cannot_be_resumed(tmp_path) -> None:
    module = tiny.Classifier(adamw)
    trainer = tiny.fit(module, Interpolate(0.4))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"][WORDS], tiny.weights(module)[WORDS])
    assert saved["callbacks"]["lr_dist.interpolate"]["before"] == {}
    with pytest.raises(ResumeMismatchError, match="the fit had ended"):
        tiny.fit(tiny.Classifier(adamw), Interpolate(0.4), ckpt=tmp_path / "after.ckpt", max_epochs=2)


def test_another_alpha_cannot_continue_a_checkpoint(tmp_path) -> None:
    tiny.fit(tiny.Classifier(adamw), Interpolate(0.4), max_steps=2).save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ResumeMismatchError, match=r"alpha=\(linear:first=0,last=0\.5\)"):
        tiny.fit(tiny.Classifier(adamw), Interpolate("linear:first=0,last=0.5"), ckpt=tmp_path / "other.ckpt")


def test_tied_weights_are_mixed_once() -> None:
    class Tied(tiny.Classifier):
        def __init__(self) -> None:
            super().__init__(adamw)
            # A second place of the same weight, as of a decoder.
            self.model.bert.encoder.layer[2].output.dense.weight = self.model.bert.encoder.layer[0].output.dense.weight

    module, plain = Tied(), Tied()
    before = tiny.weights(module)[LAYER.format(0)]
    tiny.fit(plain)
    tiny.fit(module, Interpolate(0.3))
    after = tiny.weights(plain)[LAYER.format(0)]
    torch.testing.assert_close(module.get_parameter(LAYER.format(2)).detach(), mixed(before, after, 0.3))


def test_weights_of_sixteen_bits_are_rounded_once() -> None:
    module, plain = tiny.Classifier(adamw), tiny.Classifier(adamw)
    before = tiny.weights(module)[WORDS].bfloat16()
    tiny.fit(plain, precision="bf16-true")
    tiny.fit(module, Interpolate(0.3), precision="bf16-true")
    after = tiny.weights(plain)[WORDS]
    assert module.get_parameter(WORDS).dtype == torch.bfloat16
    assert torch.equal(tiny.weights(module)[WORDS], torch.lerp(before.float(), after.float(), 0.3).bfloat16())
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    "options",
    [{"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}],
    ids=["accumulated_clipped", "bf16-mixed"],
)
def test_the_training_is_unchanged(options: dict[str, Any]) -> None:
    module = tiny.Classifier(adamw)
    before, after = tiny.weights(module), learned(**options)
    tiny.fit(module, Interpolate(0.5), **options)
    torch.testing.assert_close(tiny.weights(module)[WORDS], mixed(before[WORDS], after[WORDS], 0.5))
    assert torch.equal(tiny.weights(module)[HEAD], after[HEAD])


def test_nothing_of_the_model_is_kept() -> None:
    method = Interpolate(0.5)
    tiny.fit(tiny.Classifier(adamw), method)
    assert method.state() == {"before": {}}


@pytest.mark.parametrize(
    ("alpha", "error", "says"),
    [
        (1.5, InvalidAlphaError, "from 0 to 1"),
        (-0.1, InvalidAlphaError, "from 0 to 1"),
        (float("nan"), InvalidAlphaError, "from 0 to 1"),
        ("nan", InvalidAlphaError, "from 0 to 1"),
        (True, InvalidAlphaError, "from 0 to 1"),
        (None, InvalidAlphaError, "from 0 to 1"),
        ("linear:first=0.5,last=1.2", InvalidAlphaError, "layers.9 in linear"),
        ("flat:lr=0.5,layers.-1=7", InvalidAlphaError, "layers.11"),
        ("flat:lr=0.5,relative=true", InvalidAlphaError, "relative"),
        ("lineer:first=0,last=1", InvalidDistributionError, "Unknown family"),
        ("most", InvalidDistributionError, "most"),
    ],
)
def test_an_alpha_that_is_none_is_named(alpha: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Interpolate(alpha)


def test_what_only_the_model_can_tell_is_refused_before_the_first_step() -> None:
    module = tiny.Classifier(adamw)
    before = tiny.weights(module)
    # Of 3 layers one lies at the depth of 1/2, of 12 none.
    with pytest.raises(InvalidAlphaError, match=r"alpha of layers\.1"):
        tiny.fit(module, Interpolate(LRDistribution.parse("flat:lr=0.5,0.5..0.5=3")))
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.weights(module).items())


def test_head_is_one_of_two_words() -> None:
    with pytest.raises(InvalidAlphaError, match="learned or interpolated"):
        Interpolate(0.5, head="new")
    with pytest.raises(ConfigurationError, match="settings alpha, head"):
        build_method("interpolate:beta=1")
