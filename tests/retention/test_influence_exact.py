"""Exact influence against hand computations and against the measured derivative of up-weighting an example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from retention.influence_problems import TwoStages, logistic, newton, normal, ridge, tanh_net, upweighted
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from torch.func import hessian

from lr_dist.errors import InfluenceError, ModelMismatchError, SingularCurvatureError
from lr_dist.retention.influence.curvature import ConjugateGradients, FullHessian
from lr_dist.retention.influence.exact import (
    TrainedStage,
    frozen_influence,
    influence,
    pulled_influence,
    with_pull,
)

B = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)


def scalar(value: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(value, dtype=torch.float64)}


def scores(problem: TwoStages, **first: object) -> Tensor:
    one = replace(problem.first, **first) if first else problem.first
    if problem.pull is None:
        return frozen_influence(one, problem.second, problem.measure, problem.shared)
    return pulled_influence(one, problem.second, problem.measure, problem.shared, pull=problem.pull)


def test_the_scalar_case() -> None:
    # W = mean(b) = 2; v minimises (v-1)^2/2 + (v-W)^2/4, so v = 4/3; the measure is v^2/2.
    first = TrainedStage(lambda p: (B - p["w"]).square() / 2, scalar(2.0))
    second = TrainedStage(lambda p: (p["w"] - 1).square().reshape(1) / 2, scalar(4 / 3))
    found = pulled_influence(first, second, lambda p: p["w"].square() / 2, ["w"], pull=0.5)
    expected = torch.tensor([[2 / 9, 1 / 9, 0, -1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(-found / 4, expected, rtol=0, atol=1e-10)


def test_the_scalar_case_with_a_frozen_first_stage() -> None:
    # Theta minimises (Theta - W)^2/2 and so follows W; the measure is Theta * W = W^2, which moves by 2 W dW.
    first = TrainedStage(lambda p: (B - p["w"]).square() / 2, scalar(2.0))
    at = {**scalar(2.0), "theta": torch.tensor(2.0, dtype=torch.float64)}
    second = TrainedStage(lambda p: (p["theta"] - p["w"]).square().reshape(1) / 2, at)
    found = frozen_influence(first, second, lambda p: p["theta"] * p["w"], ["w"])
    torch.testing.assert_close(found, 4 * (B - 2)[None], rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [ridge, logistic, tanh_net, lambda: tanh_net(pull=None)])
def test_scores_are_the_measured_derivative_of_up_weighting(make: Callable[[], TwoStages]) -> None:
    problem = make()
    found = scores(problem)
    for example in (0, 7):
        measured = problem.measured(example)
        assert measured.abs().max() > 1e-3  # there is something to compare
        torch.testing.assert_close(found[:, example], measured, rtol=1e-5, atol=1e-5)


def test_conjugate_gradients_give_the_scores_of_the_full_hessian() -> None:
    problem = tanh_net()
    full = scores(problem)
    products = replace(problem, second=replace(problem.second, solver="cg"))
    torch.testing.assert_close(scores(products, solver="cg"), full, rtol=1e-8, atol=1e-10)


def test_both_blocks_are_inverted_together() -> None:
    problem = tanh_net(pull=1.0)
    assert problem.pull is not None
    whole = scores(problem)
    # What is easily written instead: the block of W alone, in both stages.
    first, second = problem.first, with_pull(problem.second, problem.first, problem.shared, problem.pull)
    one, two = first.layout.places(problem.shared), second.layout.places(problem.shared)
    curved, pulled = hessian(first.objective)(first.vector), hessian(second.objective)(second.vector)
    moved = -torch.linalg.solve(curved[one][:, one], first.example_gradients()[:, one].T)
    gradients = second.measure_gradients(problem.measure)[:, two]
    alone = problem.pull * gradients @ torch.linalg.solve(pulled[two][:, two], moved)
    examples = list(range(12))
    measured = torch.stack([problem.measured(index) for index in examples], dim=-1)
    ours = [float(spearmanr(a, b)[0]) for a, b in zip(whole[:, examples], measured, strict=True)]
    theirs = [float(spearmanr(a, b)[0]) for a, b in zip(alone[:, examples], measured, strict=True)]
    assert min(ours) > 0.99
    assert max(theirs) < 0.75


def test_the_second_stages_examples_and_what_they_make_the_model_forget() -> None:
    problem = tanh_net(pull=0.5)
    assert problem.pull is not None
    pulled = with_pull(problem.second, problem.first, problem.shared, problem.pull)
    head = problem.first.parameters["u"]

    def forgotten(p: dict[str, Tensor]) -> Tensor:  # loss of the first stage's examples, with its head
        return problem.first.losses({**p, "u": head})[:3]

    found = influence(pulled, forgotten)
    step = 1e-4
    for example in (1, 9):
        more, less = (forgotten(newton(upweighted(pulled, example, e)).parameters) for e in (step, -step))
        torch.testing.assert_close(found[:, example], (more - less) / (2 * step), rtol=1e-5, atol=1e-6)


def test_leaving_one_out_goes_with_the_scores(capsys: pytest.CaptureFixture[str]) -> None:
    """Reported: how well first derivatives tell the change by removing an example depends on the data."""
    problem = ridge()
    examples = range(0, 60, 3)
    found, removed = scores(problem)[:, list(examples)], problem.left_out(examples)
    correlations = [float(pearsonr(-a / 60, b)[0]) for a, b in zip(found, removed, strict=True)]
    with capsys.disabled():
        print(f"\nleave-one-out, two-stage ridge: Pearson {', '.join(f'{c:.3f}' for c in correlations)}")
    signs = (found * removed < 0)[removed.abs() > removed.abs().median()]
    assert signs.double().mean() > 0.8  # removing what raises a measure lowers it


def test_a_query_changes_neither_damping_nor_later_scores() -> None:
    problem = ridge()
    damped = replace(problem.first, damping=0.1)
    args = (problem.second, problem.measure, problem.shared)
    once = frozen_influence(damped, *args)
    assert torch.equal(frozen_influence(damped, *args), once)
    assert damped.damping == 0.1
    for curvature in (FullHessian(torch.eye(3).double(), 0.5), ConjugateGradients(lambda v: v, 0.5)):
        right = torch.ones(3, 1, dtype=torch.float64)
        for _ in range(3):
            torch.testing.assert_close(curvature.solve(right), right / 1.5)
        assert curvature.damping == 0.5


def test_damping_is_added_to_the_hessian() -> None:
    first = TrainedStage(lambda p: (B - p["w"]).square() / 2, scalar(2.0), damping=1.0)  # Hessian 1, then 2
    torch.testing.assert_close(influence(first, lambda p: p["w"]), (B - 2)[None] / 2)


@pytest.mark.parametrize("solver", ["full", "cg"])
def test_singular_curvature_without_damping_is_refused_and_says_what_to_do(solver: str) -> None:
    x = normal(0)(4, 6)  # six columns, four examples
    stage = TrainedStage(
        lambda p: (x @ p["w"] - 1).square() / 2,
        {"w": torch.linalg.pinv(x).sum(1)},
        solver=solver,  # type: ignore[arg-type]
    )
    with pytest.raises(SingularCurvatureError, match=r"damping > 0"):
        influence(stage, lambda p: p["w"].sum())
    assert influence(replace(stage, damping=0.1), lambda p: p["w"].sum()).isfinite().all()


def test_wrong_arguments_are_named() -> None:
    first = TrainedStage(lambda p: (B - p["w"]).square() / 2, scalar(2.0))
    other = TrainedStage(lambda p: p["w"].square().sum().reshape(1), {"w": torch.ones(2, dtype=torch.float64)})
    with pytest.raises(ModelMismatchError, match=r"two architectures"):
        pulled_influence(first, other, lambda p: p["w"].sum(), ["w"], pull=1.0)
    with pytest.raises(ModelMismatchError, match=r"no parameter 'v'"):
        pulled_influence(first, first, lambda p: p["w"], ["v"], pull=1.0)
    with pytest.raises(ModelMismatchError, match=r"pulled_influence"):
        frozen_influence(first, replace(first, parameters=scalar(1.0)), lambda p: p["w"], ["w"])
    with pytest.raises(InfluenceError, match=r"pull"):
        pulled_influence(first, first, lambda p: p["w"], ["w"], pull=0.0)
    with pytest.raises(InfluenceError, match=r"damping"):
        replace(first, damping=-1.0)
    with pytest.raises(InfluenceError, match=r"float64"):
        replace(first, parameters={"w": torch.tensor(2.0)})
    with pytest.raises(InfluenceError, match=r"one loss for each example"):
        influence(replace(first, losses=lambda p: p["w"].square()), lambda p: p["w"])
