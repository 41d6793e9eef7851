"""Solve with a damped Hessian: a full one, or conjugate gradients on Hessian-vector products.

Both hold the damping as a constant: nothing that is solved with them changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lr_dist.checks import check_finite
from lr_dist.errors import InfluenceError, SingularCurvatureError


class Curvature(Protocol):
    """Solves (H + damping * I) x = b."""

    damping: float

    def solve(self, right: Tensor) -> Tensor:
        """Solutions [size, columns] for right sides [size, columns]."""


class FullHessian:
    """A Hessian [size, size], decomposed once.

    Args:
        hessian: symmetric, float64.
        damping: added to its diagonal.

    Raises:
        SingularCurvatureError: the damped Hessian is not positive definite, so the parameters are not at a minimum
            that the data determine.
    """

    def __init__(self, hessian: Tensor, damping: float) -> None:
        self.damping = check_finite("damping", damping, error=InfluenceError)
        values, self._vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
        self._values = values + self.damping
        check_positive(float(self._values[0]), float(self._values[-1]), self.damping, len(values))

    def solve(self, right: Tensor) -> Tensor:
        return self._vectors @ ((self._vectors.T @ right) / self._values[:, None])


class ConjugateGradients:
    """Conjugate gradients; needs only products with the Hessian.

    Args:
        product: v [size] -> H v [size].
        damping: added to the Hessian's diagonal.
        tolerance: of the residual, relative to the right side.
        steps: most iterations a column; by default ten times the size of the vector.

    Raises:
        SingularCurvatureError: when solving, a direction without positive curvature.
        InfluenceError: when solving, no convergence within `steps`.
    """

    def __init__(
        self, product: Callable[[Tensor], Tensor], damping: float, *, tolerance: float = 1e-12, steps: int | None = None
    ) -> None:
        self.damping = check_finite("damping", damping, error=InfluenceError)
        self.tolerance = check_finite("tolerance", tolerance, positive=True, error=InfluenceError)
        self._product = product
        self._steps = steps

    def solve(self, right: Tensor) -> Tensor:
        return torch.stack([self._solve(column) for column in right.T], dim=1)

    def _solve(self, right: Tensor) -> Tensor:
        found = torch.zeros_like(right)
        residual, goal = right.clone(), self.tolerance * float(right.norm())
        direction, squared = residual.clone(), float(residual @ residual)
        steps = 10 * len(right) if self._steps is None else self._steps
        for _ in range(steps):
            if squared**0.5 <= goal:
                return found
            curved = self._product(direction) + self.damping * direction
            along, length = float(direction @ curved), float(direction @ direction)
            check_positive(along / length, float(curved.norm()) / length**0.5, self.damping, len(right))
            found = found + squared / along * direction
            residual = residual - squared / along * curved
            before, squared = squared, float(residual @ residual)
            direction = residual + squared / before * direction
        if squared**0.5 <= goal:
            return found
        raise InfluenceError(
            f"Conjugate gradients did not reach a residual of {self.tolerance:g} of the right side in {steps} steps "
            f"(it is {squared**0.5 / float(right.norm()):.2g}). Raise damping, tolerance or steps, or use the full "
            "Hessian."
        )


def check_positive(lowest: float, highest: float, damping: float, size: int) -> None:
    """Check a curvature, the lowest or one along a direction, against a highest one.

    Raises:
        SingularCurvatureError: it is not positive, or is lost in rounding.
    """
    if lowest > size * torch.finfo(torch.float64).eps * abs(highest):
        return
    cure = "Give damping > 0" if damping == 0 else f"Raise damping, which is {damping:g}"
    raise SingularCurvatureError(
        f"The curvature of the training loss has an eigenvalue of {lowest:.3g} (largest: {highest:.3g}), so it cannot "
        f"be inverted. {cure}, add a penalty to the loss, or train until the loss is at a minimum."
    )
