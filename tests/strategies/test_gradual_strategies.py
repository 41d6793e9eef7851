"""Gradual unfreezing and warm-up by layer with two processes: the weights of one process, and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from strategies import checks
from strategies.checks import Run
from strategies.runs import Case

WARM_UP = (("layer_warmup_steps", 3),)
BY_STEP = (("unfreeze_every_n_steps", 2), *WARM_UP)
BY_EPOCH = (("unfreeze_every_n_epochs", 1),)
# The step in which each layer starts; `layers.0` has the rate 0 and takes no turn.
STARTS = {
    BY_STEP: {"head": 0, "layers.2": 2, "layers.1": 4, "embeddings": 6},
    WARM_UP: {"head": 0, "layers.2": 0, "layers.1": 0, "embeddings": 0},
}


@pytest.mark.parametrize(
    ("strategy", "options"), [("ddp", BY_STEP), ("fsdp2", BY_STEP), ("fsdp2", WARM_UP), ("fsdp1", WARM_UP)]
)
def test_rates_and_weights_are_those_of_one_process(strategy: str, options: Any, together: Run) -> None:
    case = Case("gradual", strategy, "ExponentialLR", layerwise=options)
    outcomes = together(case)
    assert checks.weights(case, outcomes) == []
    for layer, start in STARTS[options].items():
        own = [min(1, (step - start + 1) / 3) if step >= start else 0 for step in range(12)]
        expected = [checks.RATES[layer] * factor * 0.9**step for step, factor in enumerate(own)]
        assert [outcome["rates"][layer] for outcome in outcomes] == [pytest.approx(expected, rel=1e-12)] * 2


@pytest.mark.parametrize(
    ("strategy", "options", "within_window"),
    [
        ("ddp", BY_STEP, True),
        ("ddp", BY_EPOCH, False),
        ("fsdp2", BY_STEP, False),
        ("fsdp2", BY_STEP, True),
        ("fsdp2", BY_EPOCH, True),
        ("fsdp2-distributed", BY_STEP, True),
        ("fsdp2-distributed", BY_EPOCH, False),
    ],
)
def test_a_run_resumes_exactly(strategy: str, options: Any, within_window: bool, together: Run, tmp_path: Path) -> None:
    case = Case("resume", strategy, "OneCycleLR", layerwise=options)
    assert checks.resumes(case, together, tmp_path, within_window=within_window) == []


def test_unfreezing_under_fsdp1_is_refused_before_a_step(together: Run) -> None:
    for outcome in together(Case("refused", "fsdp1", layerwise=BY_STEP)):
        assert outcome["error"]["type"] == "UnsupportedStrategyError"
        assert "ModelParallelStrategy" in outcome["error"]["message"]
        assert outcome["rates"] == {}
