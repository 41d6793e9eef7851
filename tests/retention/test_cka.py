"""The unbiased linear CKA: values that a biased or a wrong estimator would miss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lr_dist.errors import ConfigurationError, DivergedError
from lr_dist.retention.cka import LinearCKA, cka_by_layer, linear_cka


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x: Tensor, y: Tensor) -> float:
    """Equation 5 of Song et al. 2012, with the n x n matrices written out."""

    def hsic(k: Tensor, m: Tensor) -> Tensor:
        n = len(k)
        k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
        ones = torch.ones(n, dtype=k.dtype)
        return (
            (k @ m).trace()
            + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (ones @ k @ m @ ones)
        ) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())


def biased(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_it_is_the_estimator_of_song_et_al() -> None:
    x, y = drawn(9, 5, seed=0) + 3.0, drawn(9, 4, seed=1)
    y[:, 0] += x[:, 2]
    assert linear_cka(x, y) == pytest.approx(by_definition(x, y), abs=1e-12)
    assert abs(linear_cka(x, y) - biased(x, y)) > 0.05


def test_independent_data_have_0_on_average_where_the_biased_estimator_has_point_39() -> None:
    draws = [(drawn(12, 7, seed=2 * k), drawn(12, 7, seed=2 * k + 1)) for k in range(400)]
    values = [linear_cka(x, y) for x, y in draws]
    assert abs(sum(values) / len(values)) < 0.01
    assert sum(biased(x, y) for x, y in draws) / len(draws) == pytest.approx(0.39, abs=0.02)
    assert min(values) < 0 < max(values)


def test_equal_data_have_1_and_rotation_shift_and_scale_change_nothing() -> None:
    x, y = drawn(20, 6, seed=3), drawn(20, 6, seed=4) + drawn(20, 6, seed=3)
    rotation = torch.linalg.qr(drawn(6, 6, seed=5)).Q
    moved = 7.0 * y @ rotation - 100.0
    assert linear_cka(x, x) == 1.0
    assert linear_cka(y, moved) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, moved) == pytest.approx(linear_cka(x, y), abs=1e-10)
    assert 0.2 < linear_cka(x, y) < 0.95
    # It is not invariant to other linear maps.
    assert linear_cka(x, y @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1], dtype=y.dtype))) < linear_cka(x, y) - 0.05


@pytest.mark.parametrize("sizes", [(1, 1, 1, 17), (10, 10), (3, 7, 2, 8)])
def test_batches_accumulate_to_the_value_for_all_rows(sizes: tuple[int, ...]) -> None:
    # Far from the origin, in float32: sums of squares alone would lose every digit.
    x = (drawn(20, 6, seed=6) + 1000.0).float()
    y = (drawn(20, 5, seed=7) + (x[:, :5] - 1000.0).double()).float()
    cka = LinearCKA()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        cka.update(a, b)
    assert cka.rows == 20
    assert cka.compute() == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert cka.compute() == pytest.approx(by_definition(x.double() - 1000.0, y.double()), abs=1e-7)


def test_what_does_not_vary_is_not_alike_to_anything() -> None:
    x = drawn(8, 4, seed=8)
    constant = torch.full((8, 4), 0.1) + 1e-9 * drawn(8, 4, seed=9)
    assert math.isnan(linear_cka(x, constant.float()))
    assert math.isnan(linear_cka(torch.zeros(8, 4), x))
    assert linear_cka(x, constant + 1e-3 * x) > 0.9


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 2), "at least 4 rows"),
        (torch.zeros(5, 2), torch.zeros(6, 2), "5 and 6 rows"),
        (torch.zeros(5), torch.zeros(5, 2), r"\[rows, features\]"),
        (torch.zeros(5, 2, dtype=torch.long), torch.zeros(5, 2), "int64"),
    ],
)
def test_wrong_input_is_named(first: Tensor, second: Tensor, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        linear_cka(first, second)


def test_nan_states_and_other_layers_are_named() -> None:
    with pytest.raises(DivergedError, match="NaN"):
        linear_cka(torch.full((5, 2), math.nan), torch.zeros(5, 2))
    with pytest.raises(ConfigurationError, match="other layers"):
        cka_by_layer({"layers.0": torch.zeros(5, 2)}, {"layers.1": torch.zeros(5, 2)})
    cka = LinearCKA()
    cka.update(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ConfigurationError, match="features"):
        cka.update(torch.zeros(5, 3), torch.zeros(5, 2))
