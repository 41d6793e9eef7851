"""The weights of two models of one architecture, parameter by parameter in the groups of their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import ConfigurationError, DivergedError, ModelMismatchError, UnsupportedWeightsError, shown
from lr_dist.layers import LayerMap, Overrides, Stacks, assign_layers, clean_name

Weights = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A parameter in two models.

    Attributes:
        group: its layer.
        name: its clean name.
        before: its value in the first model.
        after: its value in the second, of the same shape.
    """

    group: str
    name: str
    before: Tensor
    after: Tensor


def pairs(
    before: Weights,
    after: Weights,
    *,
    like: nn.Module | None = None,
    overrides: Overrides | None = None,
    stacks: Stacks | None = None,
) -> Iterator[Pair]:
    """Every parameter of two models, in the order of depth; a tied one once.

    Args:
        before: a model, or its state dict.
        after: another of the same architecture, or its state dict.
        like: a model of the architecture (on the meta device, too) that says which layer a parameter is in; needed
            only if both are state dicts.
        overrides: see `assign_layers`.
        stacks: see `assign_layers`.

    Raises:
        ConfigurationError: two state dicts without `like`.
        ModelMismatchError: parameters that one of them lacks, or of another shape.
        UnsupportedWeightsError: weights on the meta device, quantised, or sharded over processes (FSDP1).
        DivergedError: weights that are NaN or infinite.
        LRDistError: layers that cannot be found (see `assign_layers`).
    """
    model = next((each for each in (like, before, after) if isinstance(each, nn.Module)), None)
    if model is None:
        raise ConfigurationError(
            "Two state dicts do not say which layer a parameter is in. Give one of them as a model, or a model of "
            "their architecture: like=model."
        )
    layers = assign_layers(model, overrides, stacks)
    aliases = _aliases(model)
    first, second = tensors_of(before), tensors_of(after)
    _check_same(layers, aliases, first, second, {clean_name(name) for name, _ in model.named_buffers()})
    for group, names in layers.groups.items():
        for name in map(clean_name, names):
            one, other = first[_key(first, aliases[name])], second[_key(second, aliases[name])]
            yield Pair(group, name, plain_weights(name, one), plain_weights(name, other))


def tensors_of(weights: Weights) -> dict[str, Tensor]:
    """Clean name -> tensor, tied ones under each of their names; the tensors themselves, no copies.

    Raises:
        ConfigurationError: neither a model nor a mapping of names to tensors.
    """
    if isinstance(weights, nn.Module):
        return {clean_name(name): parameter.detach() for name, parameter in _every_name(weights)}
    if not isinstance(weights, Mapping) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise ConfigurationError(
            f"Weights are a torch.nn.Module or a state dict (name -> tensor), not {shown(weights)}."
        )
    return {clean_name(name): tensor.detach() for name, tensor in weights.items()}


def plain_weights(name: str, weights: Any) -> Tensor:
    """A parameter's numbers; a DTensor's (FSDP2) are gathered, for which every process has to call this.

    Raises:
        UnsupportedWeightsError: on the meta device, or quantised.
        DivergedError: NaN or infinite.
    """
    tensor: Tensor = weights.full_tensor() if hasattr(weights, "full_tensor") else weights
    if tensor.is_meta or not tensor.is_floating_point():
        where = "on the meta device" if tensor.is_meta else f"of the type {str(tensor.dtype).removeprefix('torch.')}"
        raise UnsupportedWeightsError(
            f"{name} is {where}, so it has no numbers to compare. Load both models unquantised, with their weights."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise DivergedError(f"{name} holds NaN or infinite weights: the training has diverged. Lower the rates.")
    return tensor


def _check_same(
    layers: LayerMap,
    aliases: Mapping[str, tuple[str, ...]],
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    buffers: set[str],
) -> None:
    wanted = [clean_name(name) for names in layers.groups.values() for name in names]
    known = {alias for names in aliases.values() for alias in names} | buffers
    shapes = [
        f"{name} {tuple(one.shape)} and {tuple(other.shape)}"
        for name in wanted
        if (one := first.get(_key(first, aliases[name]))) is not None
        and (other := second.get(_key(second, aliases[name]))) is not None
        and one.shape != other.shape
    ]
    missing = [
        [name for name in wanted if _key(weights, aliases[name]) not in weights]
        # A parameter that the map does not place (frozen, outside of the layers) may be in one of them only.
        + sorted(set(others) - set(weights) - known)
        for weights, others in ((first, second), (second, first))
    ]
    if not shapes and not any(missing):
        return
    parts = [
        *([f"the first lacks {_few(missing[0])}"] if missing[0] else []),
        *([f"the second lacks {_few(missing[1])}"] if missing[1] else []),
        *([f"the shapes differ: {_few(shapes)}"] if shapes else []),
    ]
    raise ModelMismatchError(
        f"The two models are not of one architecture: {'; '.join(parts)}. Compare models of the same class and size; "
        "of models that differ in their heads, compare what they have in common, such as model.base_model."
    )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _key(weights: Mapping[str, Tensor], names: tuple[str, ...]) -> str:
    """The name under which a parameter is held: of a tied one, a file may hold only one of its names."""
    return next((name for name in names if name in weights), names[0])


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Clean name of a parameter -> all names that it has, its own first."""
    names: dict[int, list[str]] = {}
    for name, parameter in _every_name(model):
        names.setdefault(id(parameter), []).append(clean_name(name))
    return {each[0]: tuple(dict.fromkeys(each)) for each in names.values()}


def _every_name(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return model.named_parameters(remove_duplicate=False)
