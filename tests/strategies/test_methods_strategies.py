"""Methods against forgetting with two processes: the weights of one process, exact resume, named refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from strategies import checks
from strategies.checks import Run
from strategies.runs import Case

# Strong enough that the weights would be far apart without it, or with twice of it.
METHODS = ("l2-sp:alpha=20,beta=5",)
ACCUMULATED = (("accumulate_grad_batches", 2), ("gradient_clip_val", 0.5))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [(), ACCUMULATED], ids=["plain", "accumulated_and_clipped"])
def test_the_weights_are_those_of_one_process(strategy: str, options: tuple, together: Run) -> None:
    case = Case("methods", strategy, "SequentialLR", methods=METHODS, options=options, optimizer="sgd")
    assert checks.weights(case, together(case)) == []
    without = Case("methods", schedule="SequentialLR", options=options, optimizer="sgd")
    assert checks.weights(without, checks.alone(case)) != []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2-distributed"])
def test_a_run_resumes_exactly(strategy: str, together: Run, tmp_path: Path) -> None:
    case = Case("methods", strategy, "SequentialLR", methods=METHODS)
    assert checks.resumes(case, together, tmp_path, within_window=strategy == "fsdp2") == []


# With each, replayed examples for one process, for both and for none come by turns.
REHEARSAL = ("replay:ratio=0.4,size=6", "der:alpha=2,beta=1,ratio=0.3,size=6", "a-gem:examples=3,size=6")


@pytest.mark.parametrize("options", [(), ACCUMULATED], ids=["plain", "accumulated_and_clipped"])
@pytest.mark.parametrize(
    ("strategy", "method"),
    [*(("ddp", method) for method in REHEARSAL), *(("fsdp2", method) for method in REHEARSAL[:2])],
)
def test_rehearsed_weights_are_those_of_one_process(strategy: str, method: str, options: tuple, together: Run) -> None:
    case = Case("rehearsed", strategy, methods=(method,), learned_before=True, options=options, optimizer="sgd")
    outcomes = together(case)
    assert checks.weights(case, outcomes) == []
    assert checks.weights(replace(case, learned_before=False), checks.alone(replace(case, strategy="single"))) != []
    if strategy == "ddp":
        assert checks.differences(outcomes[0]["whole"], outcomes[1]["whole"], "process") == []


@pytest.mark.parametrize(
    ("strategy", "method"), [("ddp", REHEARSAL[2]), ("fsdp2-distributed", REHEARSAL[0]), ("fsdp2", REHEARSAL[1])]
)
def test_a_rehearsing_run_resumes_exactly(strategy: str, method: str, together: Run, tmp_path: Path) -> None:
    case = Case("rehearsed", strategy, methods=(method,), learned_before=True)
    assert checks.resumes(case, together, tmp_path, within_window=strategy == "fsdp2") == []


def test_a_method_of_whole_gradients_is_refused_under_fsdp2(together: Run) -> None:
    for outcome in together(Case("refused", "fsdp2", distribution=None, methods=REHEARSAL[2:])):
        assert outcome["error"]["type"] == "UnsupportedStrategyError"
        assert outcome["steps"] == 0


ANCHORED = ("ewc:strength=300,labels=true", "mas:strength=3", "lwf:strength=3", "rec-adam:gamma=50,k=0.5,t0=6")
PATH = "si:xi=1e-2"


@pytest.mark.parametrize(
    ("strategy", "method"),
    [*(("ddp", method) for method in (*ANCHORED, PATH)), ("fsdp2", ANCHORED[3]), ("fsdp2", PATH)],
)
def test_anchored_weights_and_what_was_learned_are_those_of_one_process(
    strategy: str, method: str, together: Run
) -> None:
    """The examples of all processes make the importances; SI's path is that of whole gradients."""
    case = Case("anchored", strategy, methods=(method,), learned_before=True, options=ACCUMULATED, optimizer="sgd")
    outcomes = together(case)
    assert checks.weights(case, outcomes) == []
    (single,) = checks.alone(replace(case, strategy="single"))
    if method != PATH:
        assert checks.weights(replace(case, methods=()), [single]) != []
    name = method.partition(":")[0]
    for outcome in outcomes:
        for part in ("importance", "anchor"):
            expected = single["learned"][name].get("pull", {}).get(part, {})
            largest = max((float(each.abs().max()) for each in expected.values()), default=0.0)
            assert largest > 0 or method in ANCHORED[2:]
            for key, each in expected.items():
                torch.testing.assert_close(
                    outcome["learned"][name]["pull"][part][key], each, rtol=2e-3, atol=1e-4 * largest
                )


@pytest.mark.parametrize(
    ("strategy", "method"), [("ddp", ANCHORED[0]), ("ddp", ANCHORED[2]), ("fsdp2", ANCHORED[3]), ("fsdp2", PATH)]
)
def test_an_anchored_run_resumes_exactly(strategy: str, method: str, together: Run, tmp_path: Path) -> None:
    case = Case("anchored", strategy, methods=(method,), learned_before=True)
    assert checks.resumes(case, together, tmp_path, within_window=strategy == "fsdp2") == []


def test_gradients_of_single_examples_are_refused_under_fsdp2(together: Run) -> None:
    for outcome in together(Case("refused", "fsdp2", distribution=None, methods=ANCHORED[:1])):
        assert outcome["error"]["type"] == "UnsupportedStrategyError"
        assert "gives each process a part of them" in outcome["error"]["message"]
        assert outcome["steps"] == 0


FISHER = ("fisher-rates:power=1",)


def test_rates_from_the_examples_of_all_processes_are_those_of_one(together: Run) -> None:
    case = Case("fisher", "ddp", methods=FISHER, learned_before=True, optimizer="sgd")
    outcomes = together(case)
    assert checks.weights(case, outcomes) == []
    (single,) = checks.alone(replace(case, strategy="single"))
    assert checks.weights(replace(case, methods=()), [single]) != []
    for outcome in outcomes:
        learned, expected = (each["learned"]["fisher-rates"] for each in (outcome, single))
        assert learned["factors"] == pytest.approx(expected["factors"], rel=0.2)


def test_a_run_with_rates_from_examples_resumes_exactly(together: Run, tmp_path: Path) -> None:
    case = Case("fisher", "ddp", methods=FISHER, learned_before=True)
    assert checks.resumes(case, together, tmp_path) == []


BORDER = ("interpolate:alpha=(linear:first=0.2,last=0.9)",)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_weights_that_change_at_the_end_are_those_of_one_process(strategy: str, together: Run) -> None:
    case = Case("border", strategy, methods=BORDER)
    assert checks.weights(case, together(case)) == []
    assert checks.weights(Case("border"), checks.alone(case)) != []


@pytest.mark.parametrize("methods", [("lora:rank=2", "interpolate:alpha=0.5"), ("ema:decay=0.8",)])
def test_adapters_and_averages_are_those_of_one_process(methods: tuple[str, ...], together: Run) -> None:
    case = Case("adapters", "ddp", methods=methods, optimizer="sgd")
    outcomes = together(case)
    assert [outcome["error"] for outcome in outcomes] == [None, None]
    alone = checks.alone(Case("adapters", methods=case.methods, optimizer="sgd"))[0]["whole"]
    for outcome in outcomes:
        assert max((outcome["whole"][name] - weight).abs().max().item() for name, weight in alone.items()) < 1e-6


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_run_whose_weights_change_at_the_end_resumes_exactly(strategy: str, together: Run, tmp_path: Path) -> None:
    assert checks.resumes(Case("border", strategy, methods=BORDER), together, tmp_path) == []


@pytest.mark.parametrize("strategy", ["fsdp1", "deepspeed"])
def test_a_strategy_that_keeps_no_names_is_refused_before_a_step(strategy: str, together: Run) -> None:
    for outcome in together(Case("refused", strategy, distribution=None, methods=METHODS)):
        assert outcome["error"]["type"] == "UnsupportedStrategyError"
        assert "ModelParallelStrategy (FSDP2)" in outcome["error"]["message"]
        assert outcome["steps"] == 0
