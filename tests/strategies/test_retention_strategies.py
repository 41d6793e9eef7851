"""RetentionMonitor with two processes: the numbers of one process, training that does not notice, exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from strategies import checks
from strategies.checks import MIDDLE, Run
from strategies.runs import Case

RETAINED = (("every_n_steps", 4),)
CASE = Case("retained", optimizer="sgd", retained=RETAINED)


@pytest.mark.parametrize(("strategy", "other"), [("ddp", False), ("fsdp2", False), ("fsdp2", True)])
def test_drift_and_cka_are_those_of_one_process(strategy: str, other: bool, together: Run) -> None:
    case = replace(CASE, strategy=strategy, retained=(*RETAINED, ("other", other)))
    outcomes = together(case)
    assert checks.weights(case, outcomes) == []
    (single,) = checks.alone(replace(case, strategy="single"))
    assert [row["step"] for row in single["history"]] == [0, 4, 8, 12]
    for outcome in outcomes:
        for row, expected in zip(outcome["history"], single["history"], strict=True):
            assert row["drift"] == pytest.approx(expected["drift"], rel=1e-4)
            assert row["cka"] == pytest.approx(expected["cka"], abs=1e-4)
    first, last = single["history"][0], single["history"][-1]
    assert (first["drift"]["layers.1"] > 0.5) == other
    assert last["cka"]["layers.2"] < 0.99 if other else last["drift"]["layers.2"] > 0


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_training_does_not_notice(strategy: str, together: Run) -> None:
    case = Case("plain", strategy, dropout=0.2)
    watched = together(replace(case, retained=(("every_n_steps", 3), ("other", True))))
    for one, other in zip(watched, together(case), strict=True):
        assert (one["error"], other["error"]) == (None, None)
        for part in ("weights", "optimizer", "random"):
            assert checks.differences(one[part], other[part], part) == []


@pytest.mark.parametrize(("strategy", "other"), [("ddp", False), ("fsdp2", True)])
def test_a_run_resumes_with_the_same_measurements(strategy: str, other: bool, together: Run, tmp_path: Path) -> None:
    case = Case("resumed", strategy, retained=(*RETAINED, ("other", other)), dropout=0.2)
    path = tmp_path / f"stopped-step={MIDDLE}.ckpt"
    whole = together(replace(case, save_at_step=MIDDLE, checkpoint=f"{tmp_path}/stopped-{{step}}"))
    rest = together(replace(case, resume=str(path)))
    for one, again in zip(whole, rest, strict=True):
        assert (one["error"], again["error"]) == (None, None)
        for part in ("history", "weights"):
            assert checks.differences(one[part], again[part], part) == []
