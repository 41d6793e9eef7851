"""Forgetting that is known in closed form: two quadratic tasks with diagonal Hessians under plain SGD.

From weights w0, t steps on (lambda/2) |w - a|^2 with rate r end at a + (1 - r lambda)^t (w0 - a), group by group.
"""

from __future__ import annotations

import pytest
import torch
from tiny import bert

from lr_dist import LRDistribution, assign_layers, param_groups
from lr_dist.layers import clean_name

STEPS = 7
CURVATURE = {"embeddings": 0.5, "layers.0": 1.0, "layers.1": 2.0, "layers.2": 3.0, "head": 4.0}
FIRST, SECOND = 0.3, -0.2


def learn(model: torch.nn.Module, distribution: LRDistribution, target: float) -> None:
    group_of = assign_layers(model).group_of
    optimizer = torch.optim.SGD(param_groups(model, distribution))
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sum(
            CURVATURE[group_of[name]] / 2 * ((p - target) ** 2).sum()
            for name, p in model.named_parameters()
            if p.requires_grad
        )
        loss.backward()
        optimizer.step()


def test_each_layer_moves_as_its_own_rate_says_and_a_frozen_one_forgets_nothing():
    model = bert().double()
    group_of = assign_layers(model).group_of
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    distribution = LRDistribution.decay(lr=0.2, factor=0.6).freeze("layers.1")
    rates = distribution.rates(3)

    learn(model, distribution, FIRST)
    after_first = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(model, distribution, SECOND)

    for name, p in model.named_parameters():
        group = group_of[name]
        left = (1 - rates[group] * CURVATURE[group]) ** STEPS
        once = FIRST + left * (start[name] - FIRST)
        twice = SECOND + left * (once - SECOND)
        torch.testing.assert_close(after_first[name], once, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(p.detach(), twice, rtol=1e-12, atol=1e-12)
        if group == "layers.1":
            assert rates[group] == 0.0
            assert torch.equal(p.detach(), start[name]), clean_name(name)
    # The first task's loss that the second adds is smallest where the rates are lowest.
    assert 1 - rates["embeddings"] * CURVATURE["embeddings"] == pytest.approx(1 - 0.2 * 0.6**4 * 0.5)
