"""EMA: the average worked out from the weights of every step, resume, sequences."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError
from lr_dist.methods import EMA, Interpolate, StageContext, build_method

WORDS = "model.bert.embeddings.word_embeddings.weight"


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


class Steps(tiny.L.Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seen.append(tiny.weights(pl_module))


@pytest.mark.parametrize("every", [1, 3])
def test_the_weights_in_the_end_are_the_average_of_the_steps(every: int) -> None:
    module, steps = tiny.Classifier(adamw), Steps()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    tiny.fit(module, steps, EMA(0.8, every))
    assert len(steps.seen) == 8
    for name, weight in tiny.weights(module).items():
        averaged = [each[name].double() for each in steps.seen[::every]]
        average = averaged[0]
        for each in averaged[1:]:
            average = 0.8 * average + 0.2 * each
        torch.testing.assert_close(weight.double(), average, atol=1e-6, rtol=1e-5, msg=name)
    # Position ids are whole numbers, which an average would change.
    assert buffers
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())


def test_then_interpolation_is_of_the_average() -> None:
    module, averaged = tiny.Classifier(adamw), tiny.Classifier(adamw)
    before = tiny.weights(module)[WORDS]
    tiny.fit(averaged, EMA(0.8))
    tiny.fit(module, EMA(0.8), Interpolate(0.5))
    torch.testing.assert_close(tiny.weights(module)[WORDS], torch.lerp(before, tiny.weights(averaged)[WORDS], 0.5))


def test_a_stopped_fit_resumes_bit_for_bit(tmp_path) -> None:
    class SaveAt(tiny.L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def callbacks() -> tuple[Any, ...]:
        return LayerwiseLR("flat:lr=1e-2", verbose=False), EMA(0.8)

    whole, rest = tiny.Classifier(adamw), tiny.Classifier(adamw)
    tiny.fit(whole, *callbacks(), SaveAt())
    tiny.fit(rest, *callbacks(), ckpt=tmp_path / "half.ckpt")
    assert all(torch.equal(weight, tiny.weights(whole)[name]) for name, weight in tiny.weights(rest).items())


def test_in_a_sequence_the_first_stage_is_left_alone() -> None:
    module, plain, method = tiny.Classifier(adamw), tiny.Classifier(adamw), EMA(0.8)
    tiny.fit(plain)
    method.enter(StageContext(index=0))
    tiny.fit(module, method)
    assert torch.equal(tiny.weights(module)[WORDS], tiny.weights(plain)[WORDS])
    assert [EMA(stages="all").trains_in(StageContext(0)), EMA().trains_in(StageContext(1))] == [True, True]


@pytest.mark.parametrize("settings", [{"decay": 1}, {"decay": -0.1}, {"every": 0}, {"stages": "first"}])
def test_invalid_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        EMA(**settings)


def test_the_text_form() -> None:
    assert str(build_method("ema:decay=0.9")) == "ema:decay=0.9,every=1,stages=later"
