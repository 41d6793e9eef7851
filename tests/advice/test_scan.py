"""The scan of flat rates, on a tiny model that really learns."""

from __future__ import annotations

import shlex

import pytest

from lr_dist.advice import Case, choose
from lr_dist.advice.scan import Scanned, scan
from lr_dist.cli import main
from lr_dist.errors import ConfigurationError
from lr_dist.runs.numbers import number
from lr_dist.sequence.arm import parse_arms
from lr_dist.sequence.settings import SequenceSettings

SETTINGS = SequenceSettings(epochs=2, batch_size=16, max_length=32, precision="32-true")


@pytest.mark.parametrize("tasks", [("demo-sentiment",), ("demo-sentiment", "demo-acceptability")])
def test_the_plan_is_scaled_to_the_rate_that_scored_best_on_dev(tiny_model: str, tasks: tuple[str, ...]) -> None:
    advice = choose(Case("bert", 3, tasks, 320))
    told: list[Scanned] = []
    factors = [rate / advice.level for rate in (2.68e-3, 1.34e-3, 1.34e-9)]
    scaled, results = scan(advice, tiny_model, settings=SETTINGS, factors=factors, listener=told.append)
    assert told == results
    assert [result.lr for result in results] == [pytest.approx(rate, rel=1e-2) for rate in (1.34e-9, 1.34e-3, 2.68e-3)]
    scores = {result.lr: result.score or 0.0 for result in results}
    best = max(scores, key=lambda lr: scores[lr])
    # The lowest rate moves nothing.
    assert best != results[0].lr
    assert scaled.level == pytest.approx(best, rel=1e-5)
    assert f"{best:g}: {number(scores[best])}" in scaled.evidence[0]
    assert ("at an end of the scan" in scaled.evidence[0]) == (best == results[-1].lr)
    if len(tasks) == 1:
        assert str(scaled.plan) == f"flat:lr={'1.34e-3' if best == results[1].lr else '2.68e-3'}"


def test_a_scan_in_which_nothing_is_learned_says_so(tiny_model: str) -> None:
    advice = choose(Case("bert", 3, ("demo-sentiment",), 64))
    with pytest.raises(ConfigurationError, match="learned more than the majority class"):
        scan(advice, tiny_model, settings=SETTINGS, factors=(1e-7,))


def test_the_command_prints_plan_evidence_differences_and_a_comparison(
    tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["recommend", "--model", tiny_model, "--tasks", "sst2", "qqp", "--examples", "1500"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    plan = "flat:lr=1.34e-4 | decay:lr=4e-4,factor=0.7"
    assert f"Begin with: rates measured by us\n  {plan}\n  with interpolate:alpha=0.7" in text
    assert "layers: 3 here, 6 there" in text
    assert f"lr-dist compare --model {tiny_model} --tasks sst2 qqp --limit 1500 --batch-size 32 --arms" in text
    # Each arm once, and in a form that a comparison reads.
    arms = shlex.split(text[text.index("lr-dist compare") :].splitlines()[0])
    arms = arms[arms.index("--arms") + 1 :]
    flat = "flat:lr=1.96e-4"  # 4e-4 times .7^(1, 2, 3): its geometric mean
    assert list(parse_arms(arms)) == [f"{plan} + interpolate:alpha=0.7", flat, f"{flat} + interpolate:alpha=0.7"]
    assert main([*arguments[:3], "--tasks", "sst2", "--examples", "1500"]) == 0
    text = capsys.readouterr().out
    assert "Begin with: a flat rate\n  flat:lr=1.34e-4\n" in text
    assert "interpolate" not in text
    assert "order: one task here, two tasks one after the other there" in text
