"""A linear probe tells what the encoder has forgotten from what only the head has."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comparison import FLAT, FROZEN, Listener, config_of
from rich.console import Console
from torch import nn

from lr_dist.report.page import render_report
from lr_dist.report.terminal import print_comparison
from lr_dist.sequence.compare import Comparison, compare
from lr_dist.sequence.linear_probe import RIDGE, LinearProbe, fit_linear
from lr_dist.sequence.observers import Observer, TestAfterStages
from lr_dist.sequence.runner import run_sequence


def task_of(kind: str, outputs: int) -> Any:
    return SimpleNamespace(kind=kind, num_outputs=outputs)


def test_for_numbers_the_head_is_ridge_regression() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 5) * torch.tensor([10.0, 3, 1, 1, 0.1]) + 2, torch.randn(60)
    z = (x.double() - x.double().mean(0)) / x.double().std(0)
    # The gradient of mean (zw - y)^2 / 2 + RIDGE / 2 w^2 is zero; the bias is the mean, as z has none.
    weight = torch.linalg.solve(z.T @ z / 60 + RIDGE * torch.eye(5), z.T @ (y.double() - y.double().mean()) / 60)
    torch.testing.assert_close(
        fit_linear(task_of("regression", 1), x, y)(x)[:, 0], z @ weight + y.double().mean(), rtol=0, atol=1e-6
    )


def test_for_classes_the_head_is_the_minimum_of_its_loss() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(90, 4), torch.randint(3, (90,))
    head = fit_linear(task_of("classification", 3), x, y)
    # From its outputs at the mean and along each direction: bias and weights.
    points = x.mean(0) + torch.cat([torch.zeros(1, 4), torch.diag(x.std(0))])
    outputs = head(points)
    weight = (outputs[1:] - outputs[0]).requires_grad_()
    bias = outputs[0].clone().requires_grad_()
    z = (x.double() - x.double().mean(0)) / x.double().std(0)
    loss = nn.functional.cross_entropy(z @ weight + bias, y) + RIDGE / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, [weight, bias]):
        assert gradient.abs().max() < 1e-5


@pytest.fixture(scope="module")
def probed(tiny_model, tmp_path_factory):
    config = replace(config_of(tiny_model), linear_probe=True)
    return compare(config, tmp_path_factory.mktemp("probed"), listener=Listener(), command="test")


def test_a_frozen_encoder_forgets_nothing_and_the_run_is_the_same_as_without(probed, tiny_comparison) -> None:
    plain = {(run["arm"], run["seed"]): run["matrix"] for run in tiny_comparison[0].runs}
    assert {(run["arm"], run["seed"]): run["matrix"] for run in probed.runs} == plain
    changed = []
    for run in probed.runs:
        (first,) = run["measures"]["linear_probe"]
        assert run["metrics"]["probe_p_o"] == first["retained"]["accuracy"]
        lost = first["learned"]["accuracy"] - first["retained"]["accuracy"]
        assert run["metrics"]["probe_forgetting"] == pytest.approx(lost)
        if run["arm"] == FROZEN:
            assert first["learned"] == first["retained"]
        else:
            changed.append(first["learned"] != first["retained"])
    assert any(changed)


def test_a_head_that_is_lost_is_not_the_encoders_fault(tiny_model) -> None:
    comparison = Comparison.prepare(config_of(tiny_model, distributions=(FLAT,), seeds=(0,)))
    (arm,) = comparison.arms.values()

    class LosesTheFirstHead(Observer):
        needs_training = False

        def stage_ended(self, run, stage):
            if stage.index == 1:
                head = next(iter(run.module.heads.values()))
                torch.nn.init.zeros_(head.weight)
                torch.nn.init.constant_(head.bias[:1], 1.0)

    whole, lost = LinearProbe(), LinearProbe()
    run_sequence(comparison.bench, arm, 0, TestAfterStages(), [whole])
    run_sequence(comparison.bench, arm, 0, TestAfterStages(), [LosesTheFirstHead(), lost])
    assert lost.result() == whole.result()


def test_the_columns_are_shown_where_they_were_measured(probed, tiny_comparison) -> None:
    printed = StringIO()
    print_comparison(probed, Console(file=printed, width=200))
    assert "the encoder forgets" in printed.getvalue()
    assert "the encoder forgets" in render_report(probed)
    assert "the encoder forgets" not in render_report(tiny_comparison[0])


def test_the_same_folder_takes_runs_with_and_without(tiny_model, tmp_path) -> None:
    config = config_of(tiny_model, distributions=(FLAT,), seeds=(0,), epochs=1)
    compare(config, tmp_path, listener=Listener(), command="test")
    again = compare(replace(config, linear_probe=True), tmp_path, listener=Listener(), command="test")
    assert "probe_p_o" in again.runs[0]["metrics"]
    idle = Listener()
    compare(config, tmp_path, listener=idle, command="test")
    assert idle.ran == []
