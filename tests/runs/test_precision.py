"""The probe that chooses a precision: it follows a measured ratio, is quick where bf16 is slow, and leaves no trace."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from lr_dist.errors import ConfigurationError, SlowPrecisionWarning
from lr_dist.runs import precision
from lr_dist.runs.precision import NEEDED, Measurement, choose_precision, measure, measured_before, remember

# oneDNN then has no bf16 kernels, as on a processor with AVX2 alone.
FORBIDDEN = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
CHOOSE = """
import json
from lr_dist.runs.precision import choose_precision, measure
print(json.dumps([choose_precision("auto").to_dict(), measure().milliseconds]))
"""
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or torch.cuda.is_available(),
    reason="bf16 products can be forbidden on x86 processors only",
)


def chosen_with(**environment: str) -> tuple[dict[str, Any], float]:
    """What a new process chooses, and the milliseconds that its probe took."""
    command = [sys.executable, "-c", CHOOSE]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    choice, milliseconds = json.loads(run.stdout.splitlines()[-1])
    return choice, milliseconds


@pytest.fixture
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_MEASURED", {})


@on_x86
def test_where_bf16_products_are_slow_auto_is_fp32_and_the_probe_is_still_short() -> None:
    choice, milliseconds = chosen_with(**FORBIDDEN)
    assert choice["asked"] == "auto"
    assert choice["chosen"] == "32-true"
    assert choice["ratio"] > 1.5
    assert f"{choice['ratio']:.1f} times as long as fp32" in choice["reason"]
    # Some 10 ms where nothing else runs; a product of an encoder's size takes 50 ms here, and is not tried.
    assert milliseconds < 1000


@on_x86
def test_the_choice_follows_what_was_measured_and_not_the_processors_name() -> None:
    free, forbidden = chosen_with()[0], chosen_with(**FORBIDDEN)[0]
    assert free["name"] == forbidden["name"]
    for choice in (free, forbidden):
        assert choice["chosen"] == ("bf16-mixed" if choice["ratio"] <= NEEDED else "32-true")
    # By far more than anything else that runs beside it could do.
    if free["chosen"] == "bf16-mixed":
        assert forbidden["ratio"] > 2 * free["ratio"]


@pytest.mark.parametrize(
    ("measured", "ratio"),
    [
        ([(1.0, 0.3)], 0.3),  # clear at once
        ([(1.0, 3.0)], 3.0),
        ([(1.0, 0.9), (1.2, 0.38)], 0.38),  # the first one was disturbed
        ([(1.0, 0.9), (0.8, 0.95), (1.0, 0.7)], 0.7 / 0.8),  # near the bound it is
    ],
)
def test_a_ratio_near_the_bound_is_measured_again(
    measured: list[tuple[float, float]], ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(measured)
    monkeypatch.setattr(precision, "_best_seconds", lambda full, mixed: next(left))
    assert precision._ratio_of(lambda: None, lambda: None) == pytest.approx(ratio)
    assert list(left) == []


@pytest.mark.usefixtures("nothing_measured")
@pytest.mark.parametrize(
    ("ratio", "chosen", "says"),
    [
        (0.31, "bf16-mixed", "is 3.2 times as fast as fp32"),
        (1.3, "32-true", "takes 1.3 times as long as fp32"),
        (0.9, "32-true", "is 1.1 times as fast as fp32"),
        (66.0, "32-true", "takes at least 66.0 times as long as fp32"),
    ],
)
def test_a_small_gain_is_not_worth_the_digits(
    ratio: float, chosen: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_ratio_on_cpu", lambda: ratio)
    monkeypatch.setattr(precision, "training_device", lambda: "cpu")
    choice = choose_precision("auto")
    assert choice.chosen == chosen
    assert choice.line.startswith(f"precision: {chosen} (a bf16 product {says}")
    assert choice.capability == torch.backends.cpu.get_cpu_capability()


@pytest.mark.usefixtures("nothing_measured")
def test_fp32_that_is_asked_for_is_not_measured() -> None:
    assert choose_precision("32-true").to_dict()["chosen"] == "32-true"
    assert measured_before() == ()


@pytest.mark.usefixtures("nothing_measured")
def test_bf16_that_is_asked_for_is_kept_and_warned_of_where_it_is_slow() -> None:
    remember((Measurement(precision.training_device(), "a processor", "AVX2", 66.0, False, 1.0),))
    with pytest.warns(SlowPrecisionWarning, match="takes at least 66.0 times as long as fp32 here.*Give auto"):
        assert choose_precision("bf16-mixed").chosen == "bf16-mixed"


@pytest.mark.parametrize("asked", ["bf16-true", "16-mixed", "Auto", ""])
def test_another_precision_is_refused_by_name(asked: str) -> None:
    with pytest.raises(ConfigurationError, match=f"auto, 32-true, bf16-mixed, not '{asked}'"):
        choose_precision(asked)


@pytest.mark.usefixtures("nothing_measured")
def test_the_probe_changes_nothing_and_works_in_any_context() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            found = measure()
            assert torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert measure() is found


@pytest.mark.usefixtures("nothing_measured")
def test_what_another_process_measured_is_taken_over() -> None:
    first = measure()
    other = replace(first, fast=not first.fast, ratio=1 / (first.ratio or 1))
    remember((other,))
    assert choose_precision("auto").chosen == ("bf16-mixed" if other.fast else "32-true")
    assert measured_before() == (other,)
