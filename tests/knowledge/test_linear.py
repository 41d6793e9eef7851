"""Linear regression from weights that prototypes have set: exact to 1e-10."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lr_dist.errors import ConfigurationError
from lr_dist.knowledge.informed.linear import descended, helps, limit, null_part

N, D = 6, 9  # fewer examples than inputs


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, D)), rng.standard_normal(D)


def by_torch(inputs: np.ndarray, values: np.ndarray, start: np.ndarray, lr: float, steps: int) -> np.ndarray:
    """Plain SGD on |Xw - y|^2 / 2n, by autograd."""
    weights = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.SGD([weights], lr=lr)
    x, y = torch.from_numpy(inputs), torch.from_numpy(values)
    for _ in range(steps):
        optimizer.zero_grad()
        ((x @ weights - y) ** 2).sum().div(2 * len(x)).backward()
        optimizer.step()
    return weights.detach().numpy()


@pytest.mark.parametrize("steps", [0, 1, 7, 400])
@pytest.mark.parametrize("rows", [N, 30])
def test_descent_from_the_prototypes_weights_has_the_closed_form(rows: int, steps: int) -> None:
    rng = np.random.default_rng(rows)
    inputs, values = rng.standard_normal((rows, D)), rng.standard_normal(rows)
    prototypes = rng.standard_normal((4, D))
    informed = by_torch(prototypes, rng.standard_normal(4), np.zeros(D), 0.1, 50)
    for start in (np.zeros(D), informed):
        closed = descended(inputs, values, start, lr=0.1, steps=steps)
        assert np.abs(closed - by_torch(inputs, values, start, 0.1, steps)).max() < 1e-10
        # As written in the source, with a matrix power.
        end = limit(inputs, values, start)
        matrix = np.eye(D) - 0.1 * inputs.T @ inputs / rows
        assert np.abs(closed - (end + np.linalg.matrix_power(matrix, steps) @ (start - end))).max() < 1e-10


def test_the_null_space_part_of_the_start_survives(data: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, true = data
    start = np.random.default_rng(1).standard_normal(D)
    end = descended(inputs, inputs @ true, start, lr=0.1, steps=100_000)
    assert np.abs(null_part(inputs, end) - null_part(inputs, start)).max() < 1e-10
    assert np.abs(inputs @ end - inputs @ true).max() < 1e-10
    assert np.linalg.norm(null_part(inputs, start)) > 0.5


def test_informed_wins_exactly_where_its_null_part_is_nearer(data: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, true = data
    rng = np.random.default_rng(2)
    outcomes = []
    for scale in np.linspace(0.1, 3, 60):
        start = true + scale * rng.standard_normal(D)
        # The error on isotropic inputs is |w - w0|^2.
        informed, zero = (np.linalg.norm(limit(inputs, inputs @ true, w) - true) for w in (start, np.zeros(D)))
        assert helps(inputs, start, true) == (informed < zero)
        outcomes.append(bool(informed < zero))
    assert 5 < sum(outcomes) < 55  # both happen


def test_wrong_knowledge_hurts(data: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, true = data
    right, zero, wrong = (
        np.linalg.norm(descended(inputs, inputs @ true, start, lr=0.1, steps=20_000) - true)
        for start in (0.9 * true, np.zeros(D), -true)
    )
    assert right == pytest.approx(0.1 * zero, rel=1e-8)
    assert wrong == pytest.approx(2 * zero, rel=1e-8)


def test_wrong_settings_are_refused(data: tuple[np.ndarray, np.ndarray]) -> None:
    inputs, true = data
    for settings in ({"lr": 0.0, "steps": 1}, {"lr": float("nan"), "steps": 1}, {"lr": 0.1, "steps": -1}):
        with pytest.raises(ConfigurationError):
            descended(inputs, inputs @ true, true, **settings)
