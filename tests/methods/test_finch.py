"""FINCH as a method: `LossAdaptiveLR` under another name, through its text form, checkpoints and stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_gradual import assert_equal_weights
from test_loss_adaptive import FACTORS, LOSSES, Given, SaveAfter, batches, classifier

from lr_dist import LayerwiseLR, LossAdaptiveLR
from lr_dist.errors import InvalidScheduleError, ResumeMismatchError
from lr_dist.methods import build_method

TEXT = "finch:momentum=0.8"


def fit(module: Any, *callbacks: Any, **options: Any) -> Any:
    rates = LayerwiseLR("flat:lr=1e-2", verbose=False)
    return tiny.fit(module, rates, *callbacks, data=tiny.ShuffledBatches(6), max_epochs=2, **options)


def test_a_fit_equals_that_of_the_callback() -> None:
    ours, theirs, plain = classifier(), classifier(), classifier()
    fit(ours, build_method(TEXT))
    fit(theirs, LossAdaptiveLR(momentum=0.8))
    fit(plain)
    assert_equal_weights(ours, theirs)
    assert not torch.equal(ours.model.classifier.weight, plain.model.classifier.weight)


def test_each_stage_begins_with_a_mean_of_its_own() -> None:
    method, defaults = build_method("finch"), LossAdaptiveLR()
    assert method.settings() == {"momentum": 0.99, "f_min": defaults.f_min, "f_max": defaults.f_max}
    method = build_method("finch:momentum=0.5,f_min=0.1,f_max=2")
    for _ in range(2):
        module = Given()
        tiny.fit(module, method, data=batches(LOSSES))
        alone = Given()
        tiny.fit(alone, LossAdaptiveLR(momentum=0.5, f_min=0.1, f_max=2.0), data=batches(LOSSES))
        assert module.steps() == alone.steps()
        assert len(set(module.steps())) == len(set(FACTORS))


@pytest.mark.parametrize(("count", "accumulate"), [(4, 1), (3, 2)])
def test_a_run_resumes_exactly_within_a_window_too(count: int, accumulate: int, tmp_path: Path) -> None:
    path = tmp_path / "stopped.ckpt"
    whole, rest = classifier(), classifier()
    fit(whole, build_method(TEXT), accumulate_grad_batches=accumulate)
    fit(classifier(), build_method(TEXT), SaveAfter(count, path), accumulate_grad_batches=accumulate)
    fit(rest, build_method(TEXT), accumulate_grad_batches=accumulate, ckpt=path, weights_only=True)
    assert_equal_weights(whole, rest)
    with pytest.raises(ResumeMismatchError, match=r"momentum': 0\.8"):
        fit(classifier(), build_method("finch:momentum=0.7"), ckpt=path)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(InvalidScheduleError, match="below 1"):
        build_method("finch:momentum=1")
