"""The case that is exact: linear regression, from weights that prototypes have set.

Gradient descent on |Xw - y|^2 / 2n from w_p: w_t = w* + (I - lr X'X/n)^t (w_p - w*), with w* = w_p + X^+ (y - X w_p).
What lies in the null space of X is never changed. So with y = X w0, without noise and with isotropic test inputs, the
start w_p ends with a lower error than the start 0 exactly where |P_null (w_p - w0)| < |P_null w0|.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import ConfigurationError

Array = NDArray[np.float64]


def descended(inputs: Array, values: Array, start: Array, *, lr: float, steps: int) -> Array:
    """The weights [d] after some steps of full-batch gradient descent, in closed form.

    Args:
        inputs: [n, d].
        values: [n].
        start: [d], the weights after the prototypes.
        lr: the rate; the descent converges below 2 / (largest eigenvalue of X'X/n).
        steps: number of steps.

    Raises:
        ConfigurationError: a rate that is not positive, or a negative number of steps.
    """
    lr = check_finite("lr", lr, positive=True, error=ConfigurationError)
    check_whole("steps", steps, 0, error=ConfigurationError)
    end = limit(inputs, values, start)
    eigenvalues, vectors = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    return end + vectors @ ((1 - lr * eigenvalues) ** steps * (vectors.T @ (start - end)))


def limit(inputs: Array, values: Array, start: Array) -> Array:
    """The weights [d] to which the descent converges: the solution of least squares that is nearest to the start."""
    return start + np.linalg.pinv(inputs) @ (values - inputs @ start)


def null_part(inputs: Array, weights: Array) -> Array:
    """The part [d] of the weights that no step on these inputs changes."""
    return weights - np.linalg.pinv(inputs) @ (inputs @ weights)


def helps(inputs: Array, start: Array, true: Array) -> bool:
    """Whether the start ends nearer to the true weights than 0 does (no noise, isotropic test inputs, many steps)."""
    return bool(np.linalg.norm(null_part(inputs, start - true)) < np.linalg.norm(null_part(inputs, true)))
