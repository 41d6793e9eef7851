"""Linear centred kernel alignment (CKA), unbiased: how alike two representations of the same inputs are.

CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) (Kornblith et al. 2019, arXiv 1905.00414) is 1 if Y is X rotated,
shifted and scaled. With the usual estimator of HSIC it is also large for independent data with few rows: .39 on average
for 12 rows of 7 normal numbers each. The unbiased one of Song et al. 2012 (JMLR 13, equation 5), which Nguyen et al.
2021 (arXiv 2010.15327) took for minibatches, is 0 on average:

    HSIC = 1 / (n (n - 3)) [ tr(K~ L~) + 1'K~1 1'L~1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K~L~1 ],

K = XX', L = YY', and K~, L~ the same with zeros on the diagonal. For linear kernels every term is a function of sums
over rows, so here batches accumulate to exactly the value for all rows at once, rather than to a mean over minibatches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lr_dist.errors import ConfigurationError, DivergedError, shown

LEAST_ROWS = 4
# A representation that varies less than this share of its size is constant, but for rounding.
_CONSTANT = 1e-6


class LinearCKA:
    """Unbiased linear CKA of two representations, batch by batch; any division into batches gives the same value.

        cka = LinearCKA()
        for batch in loader:
            cka.update(states_before(batch), states_after(batch))
        cka.compute()

    Memory: three matrices in float64, features x features.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sums: dict[str, Tensor] = {}
        # The estimate does not depend on the origin; near the data's mean it loses no digits.
        self._origins: tuple[Tensor, Tensor] | None = None
        self._scale = [0.0, 0.0]

    def update(self, first: Tensor, second: Tensor) -> None:
        """Add rows.

        Args:
            first: [rows, features], floating-point.
            second: [rows, other features]: the same inputs in the same order.

        Raises:
            ConfigurationError: no matrices, another number of rows, or other features than before.
            DivergedError: NaN or infinite values.
        """
        x, y = _checked(first, second)
        if not len(x):
            return
        if self._origins is None:
            self._origins = x.mean(0), y.mean(0)
        for index, each in enumerate((x, y)):
            if each.shape[1] != len(self._origins[index]):
                raise ConfigurationError(
                    f"Batches must have the same number of features: {each.shape[1]} now, {len(self._origins[index])} "
                    "in an earlier one."
                )
            self._scale[index] += float(each.square().sum())
        x, y = x - self._origins[0], y - self._origins[1]
        self.rows += len(x)
        for key, value in _sums(x, y).items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value

    def compute(self) -> float:
        """CKA of all rows so far, at most 1; for independent data around 0, so also below. NaN if one of them is
        constant: what does not vary is not alike to anything.

        Raises:
            ConfigurationError: fewer than 4 rows.
        """
        if self.rows < LEAST_ROWS:
            raise ConfigurationError(
                f"The unbiased CKA needs at least {LEAST_ROWS} rows (texts, or tokens), and there are {self.rows}. "
                "Give more texts."
            )
        own = [self._hsic("x", "x"), self._hsic("y", "y")]
        if any(value <= (_CONSTANT**2 * scale / self.rows) ** 2 for value, scale in zip(own, self._scale, strict=True)):
            return math.nan
        return min(1.0, self._hsic("x", "y") / math.sqrt(own[0] * own[1]))

    def _hsic(self, a: str, b: str) -> float:
        """Unbiased HSIC of two of the representations, from the sums over rows."""
        n, sums = self.rows, self._sums
        cross = sums[f"{a}'{b}"]
        together = sums[f"|{a}|2|{b}|2"]
        trace = cross.square().sum() - together
        totals = [sums[each] @ sums[each] - sums[f"|{each}|2"] for each in (a, b)]
        # 1'K~L~1: the sum over rows i of (K~1)_i (L~1)_i, with (K~1)_i = x_i.s - |x_i|^2, s the sum of all rows.
        path = sums[a] @ cross @ sums[b] - sums[f"{a}|{b}|2"] @ sums[a] - sums[f"{b}|{a}|2"] @ sums[b] + together
        value = trace + totals[0] * totals[1] / ((n - 1) * (n - 2)) - 2 / (n - 2) * path
        return float(value) / (n * (n - 3))


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Unbiased linear CKA of two representations of the same inputs; see `LinearCKA` and the top of this file.

    Args:
        first: [rows, features].
        second: [rows, other features].

    Returns:
        1 if one is the other rotated, shifted and scaled; around 0 if they are independent; NaN if one is constant.

    Raises:
        ConfigurationError: no matrices with equally many rows, or fewer than 4.
        DivergedError: NaN or infinite values.
    """
    cka = LinearCKA()
    cka.update(first, second)
    return cka.compute()


def cka_by_layer(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """Unbiased linear CKA of every layer's hidden states in two models, as `hidden_states` returns them.

    Args:
        before: layer -> [rows, features].
        after: the same layers, and the same rows in the same order.

    Raises:
        ConfigurationError: other layers, another number of rows, or fewer than 4.
        DivergedError: NaN or infinite states.
    """
    if set(before) != set(after):
        raise ConfigurationError(
            f"The two models have other layers: {', '.join(before) or 'none'}, and {', '.join(after) or 'none'}. "
            "Compare models of one architecture."
        )
    return {layer: linear_cka(before[layer], after[layer]) for layer in before}


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    for each in (first, second):
        if not isinstance(each, Tensor) or each.ndim != 2 or not each.is_floating_point():
            form = f"{each.dtype} {tuple(each.shape)}" if isinstance(each, Tensor) else shown(each)
            raise ConfigurationError(f"A representation is a floating-point matrix [rows, features], not {form}.")
    if len(first) != len(second):
        raise ConfigurationError(
            f"The representations have {len(first)} and {len(second)} rows. Both models must read the same inputs."
        )
    x, y = (each.detach().cpu().double() for each in (first, second))
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise DivergedError("Hidden states are NaN or infinite: the training has diverged. Lower the rates.")
    return x, y


def _sums(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What the three HSICs need of some rows."""
    squares = {"x": x.square().sum(1), "y": y.square().sum(1)}
    values = {"x": x, "y": y}
    sums: dict[str, Tensor] = {}
    for a in ("x", "y"):
        sums[a] = values[a].sum(0)
        sums[f"|{a}|2"] = squares[a].sum()
    for a, b in (("x", "x"), ("y", "y"), ("x", "y")):
        sums[f"{a}'{b}"] = values[a].T @ values[b]
        sums[f"|{a}|2|{b}|2"] = squares[a] @ squares[b]
        sums[f"{a}|{b}|2"] = values[a].T @ squares[b]
        sums[f"{b}|{a}|2"] = values[b].T @ squares[a]
    return sums
