"""Rates from the spectra of a model's weights: how heavy-tailed each layer is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lr_dist._distribution.rates import check_factor
from lr_dist.errors import InvalidRateError, UnsupportedWeightsError
from lr_dist.layers import Overrides, assign_layers, clean_name
from lr_dist.names import group_names

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Exponents whose relative difference is smaller are equal up to rounding.
_SAME = 1e-6


def spectral_rates(
    model: nn.Module, lr: float, s1: float = 0.5, s2: float = 1.5, overrides: Overrides | None = None
) -> list[float]:
    """The rate of each layer of `model` after LLR (arXiv 2605.22297), which follows TempBalance (arXiv 2312.00359).

    A layer's rate is `lr` x (s1 + (alpha - min) / (max - min) x (s2 - s1)), alpha being its exponent
    (`layer_alphas`), min and max those of all layers. The less heavy-tailed layer learns faster. Where the formula
    is undefined: if all exponents are equal, every layer gets the middle, lr x (s1 + s2) / 2; a layer without an
    exponent gets `lr`; if some exponents are infinite, their layers get lr x s2, and all others lr x s1.

    Raises:
        InvalidRateError: `lr`, `s1` or `s2` that is not finite and above 0, or s1 > s2.
        UnsupportedWeightsError: see `layer_alphas`.
    """
    check_factor("lr", lr)
    if check_factor("s1", s1) > check_factor("s2", s2):
        raise InvalidRateError(
            f"s1={s1!r} is above s2={s2!r}: s1 is the factor of the most heavy-tailed layer, s2 of the least."
        )
    alphas = list(layer_alphas(model, overrides).values())
    known = [alpha for alpha in alphas if alpha is not None]
    if not known:
        raise UnsupportedWeightsError(
            f"No layer of {type(model).__name__} holds a weight matrix with two eigenvalues above 0, so there is no "
            "spectrum to take rates from. Load the model's weights unquantised, or write the distribution yourself."
        )
    shares = _shares(alphas, min(known), max(known))
    return [lr if share is None else lr * (s1 + share * (s2 - s1)) for share in shares]


def layer_alphas(model: nn.Module, overrides: Overrides | None = None) -> dict[str, float | None]:
    """Each layer's exponent: the mean of `hill_exponent` over its weight matrices; None if it has none.

    A matrix is every parameter of two dimensions that is not an `nn.Embedding`; of three or more, every slice over
    the leading ones (a stack of experts); of a convolution, the first dimension x the rest.

    Args:
        model: a transformer. Adapters count as matrices of their layer: take the rates before they are added.
        overrides: see `assign_layers`.

    Raises:
        UnsupportedWeightsError: weights that are on the meta device, quantised, sharded, or NaN or infinite.
        LRDistError: what `assign_layers` raises.
    """
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    layer_map = assign_layers(model, overrides)
    owners = {
        id(parameter): type(module) for module in model.modules() for parameter in module.parameters(recurse=False)
    }
    alphas: dict[str, float | None] = {}
    for layer in group_names(layer_map.num_layers)[1:-1]:
        matrices = (
            matrix
            for name in layer_map.groups[layer]
            for matrix in _matrices(clean_name(name), parameters[name], owners[id(parameters[name])])
        )
        exponents = [alpha for alpha in map(hill_exponent, matrices) if alpha is not None]
        alphas[layer] = math.fsum(exponents) / len(exponents) if exponents else None
    return alphas


@torch.no_grad()
def hill_exponent(matrix: Tensor) -> float | None:
    """The Hill estimate of the tail exponent of the eigenvalues of W'W, over their upper half.

    alpha = 1 + k / sum_{i=1..k} ln(lambda_{n-i+1} / lambda_{n-k}), with the n eigenvalues above 0 in ascending order
    and k = floor(n / 2). Eigenvalues that are 0 up to rounding (of a matrix without full rank) are left out.

    Args:
        matrix: W, shape (rows, columns), of any floating-point type; computed in float64.

    Returns:
        alpha > 1, infinite if the upper half is all equal; None if fewer than two eigenvalues are above 0.
    """
    wide = matrix.to(torch.float64)
    # The smaller of W'W and WW', which have the same eigenvalues above 0; scaled, so that no square overflows.
    scale = wide.abs().max() if wide.numel() else wide.new_zeros(())
    if min(wide.shape) < 2 or scale == 0:
        return None
    wide = wide / scale
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    values = torch.linalg.eigvalsh(gram)
    values = values[values > values[-1] * max(wide.shape) * torch.finfo(torch.float64).eps]
    half = len(values) // 2
    if half < 1:
        return None
    total = (values[-half:] / values[-half - 1]).log().sum().item()
    return 1 + half / total if total > _SAME * half else math.inf


def _matrices(name: str, parameter: nn.Parameter, owner: type[nn.Module]) -> Iterator[Tensor]:
    """The weight matrices in a parameter of a module of class `owner`."""
    if parameter.ndim < 2 or issubclass(owner, nn.Embedding):
        return
    weights = _plain(name, parameter)
    if issubclass(owner, nn.modules.conv._ConvNd):
        yield weights.flatten(1)
    else:
        yield from weights.reshape(-1, *weights.shape[-2:])


def _plain(name: str, parameter: nn.Parameter) -> Tensor:
    """The parameter's numbers, on a device that computes in float64."""
    weights = parameter.detach()
    if weights.is_meta:
        raise UnsupportedWeightsError(
            f"{name} is on the meta device, so it has no numbers to take a spectrum of. Load the weights first, and "
            "take the distribution from that model."
        )
    # `data`, because a Parameter of a quantised or sharded tensor is a subclass, too.
    if type(parameter.data) is not Tensor or weights.dtype not in _FLOATS:
        raise UnsupportedWeightsError(
            f"{name} is a {type(parameter.data).__name__} of {str(weights.dtype).removeprefix('torch.')}: quantised or "
            "sharded, so its numbers are not those of the weight matrix. Load the model unquantised and on one device "
            "(dtype=torch.float32), and take the distribution from that."
        )
    if not torch.isfinite(weights).all():
        raise UnsupportedWeightsError(
            f"{name} holds NaN or infinite weights, which have no spectrum. Load a model that has not diverged."
        )
    return weights.cpu() if weights.device.type == "mps" else weights


def _shares(alphas: Sequence[float | None], least: float, most: float) -> list[float | None]:
    """Where each exponent lies between the least (0) and the most (1); None stays None."""
    if least == most or most - least <= _SAME * most < math.inf:
        return [None if alpha is None else 0.5 for alpha in alphas]
    if most == math.inf:
        return [None if alpha is None else float(alpha == math.inf) for alpha in alphas]
    return [None if alpha is None else (alpha - least) / (most - least) for alpha in alphas]
