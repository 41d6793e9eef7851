"""ForgettingMonitor with two processes: the scores of one process, training that does not notice, exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from strategies import checks
from strategies.checks import MIDDLE, Run
from strategies.runs import Case

MONITORED = (("every_n_steps", 2), ("keep", "moved/head <= 0.03"))
CASE = Case("monitored", schedule="SequentialLR", optimizer="sgd", monitored=MONITORED)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "tensor-parallel"])
def test_scores_and_movement_are_those_of_one_process(strategy: str, together: Run) -> None:
    case = replace(CASE, strategy=strategy)
    outcomes = together(case)
    assert checks.weights(case, outcomes) == []
    (single,) = checks.alone(replace(case, strategy="single"))
    assert [row["step"] for row in single["history"]] == [0, 2, 4, 6, 8, 10, 12]
    for outcome in outcomes:
        assert outcome["best"]["step"] == single["best"]["step"] < 12
        for row, expected in zip(outcome["history"], single["history"], strict=True):
            # Each of the 18 examples counted once: with a padded fifth batch the shares would be others.
            assert row["old"] == expected["old"]
            assert row["moved"] == pytest.approx(expected["moved"], rel=1e-4)
        weights = outcome["best"]["weights"]
        assert max((weights[n] - w).abs().max().item() for n, w in single["best"]["weights"].items()) < 1e-5
    assert len({row["old"]["first"] for row in single["history"]}) > 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_the_training_does_not_notice(strategy: str, together: Run) -> None:
    case = Case("plain", strategy, dropout=0.2)
    watched = together(replace(case, monitored=(("every_n_steps", 1),)))
    for one, other in zip(watched, together(case), strict=True):
        assert (one["error"], other["error"]) == (None, None)
        for part in ("weights", "optimizer", "random"):
            assert checks.differences(one[part], other[part], part) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2-distributed"])
def test_a_run_resumes_with_the_same_measurements(strategy: str, together: Run, tmp_path: Path) -> None:
    case = Case("resumed", strategy, monitored=MONITORED, dropout=0.2)
    path = tmp_path / f"stopped-step={MIDDLE}.ckpt"
    whole = together(replace(case, save_at_step=MIDDLE, checkpoint=f"{tmp_path}/stopped-{{step}}"))
    rest = together(replace(case, resume=str(path)))
    for one, other in zip(whole, rest, strict=True):
        assert (one["error"], other["error"]) == (None, None)
        for part in ("history", "best", "weights"):
            assert checks.differences(one[part], other[part], part) == []


@pytest.mark.parametrize("strategy", ["fsdp1", "deepspeed"])
def test_a_strategy_that_keeps_no_names_is_refused_before_a_step(strategy: str, together: Run) -> None:
    for outcome in together(Case("refused", strategy, distribution=None, monitored=MONITORED)):
        assert outcome["error"]["type"] == "UnsupportedStrategyError"
        assert "ModelParallelStrategy (FSDP2)" in outcome["error"]["message"]
        assert outcome["steps"] == 0


def test_a_rule_over_a_metric_that_differs_between_the_processes_is_decided_alike(together: Run) -> None:
    monitored: Any = (("every_n_steps", 2), ("keep", "forgotten <= 1"), ("monitor", "rank_score"))
    outcomes = together(Case("apart", "ddp", monitored=monitored, logs_by_rank=True))
    assert [outcome["error"] for outcome in outcomes] == [None, None]
    assert outcomes[0]["best"]["step"] == outcomes[1]["best"]["step"]
    assert checks.differences(outcomes[0]["best"], outcomes[1]["best"], "best") == []
