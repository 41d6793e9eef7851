"""Weights between two sets of weights of one model, with one coefficient for every depth (pure torch)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.checks import as_float, is_number
from lr_dist.distribution import LRDistribution
from lr_dist.errors import InvalidAlphaError, LayerCountError, ModelMismatchError, shown
from lr_dist.layers import Overrides, Stacks, assign_layers, clean_name

Alpha = float | str | LRDistribution
HEADS = ("learned", "interpolated")
_HINT = "Write a number from 0 (as before) to 1 (as learned), or one for every depth: linear:first=0.4,last=0.9."


def interpolate_weights(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    alpha: float | Mapping[str, float],
    *,
    heads: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The weights `before + alpha (after - before)`: 0 gives those before, 1 those after, both to the bit.

    WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) with one alpha for all weights, or one for each:

        model = AutoModelForSequenceClassification.from_pretrained("after")
        old = AutoModelForSequenceClassification.from_pretrained("before").state_dict()
        alphas = layer_alphas(model, "linear:first=0.4,last=0.9")
        model.load_state_dict(interpolate_weights(old, model.state_dict(), alphas))

    Weights of 16 bits are computed in 32 and rounded once. Whole numbers (such as position ids) are taken from `after`.

    Args:
        before: a state dict.
        after: the state dict of the same model, trained further. Neither is changed.
        alpha: a number from 0 to 1 for all weights, or name -> number. Names that the mapping lacks (buffers such as
            BatchNorm's statistics, which `layer_alphas` leaves out) are taken from `after`.
        heads: names, or their beginnings up to a dot, that are taken from `after`, and may be missing in `before` or
            have another shape there, as the head of a new task does.

    Returns:
        New tensors under the names of `after`, with its dtypes and devices.

    Raises:
        InvalidAlphaError: a number that is not from 0 to 1.
        ModelMismatchError: a weight that only one of the two has, or with another shape: they are other architectures.
    """
    for_all = None if isinstance(alpha, Mapping) else check_alpha("alpha", alpha)
    by_name = {n: check_alpha(f"alpha of {n}", a) for n, a in alpha.items()} if isinstance(alpha, Mapping) else {}
    unknown = next((name for name in by_name if name not in after), None)
    if unknown is not None:
        raise ModelMismatchError(f"There is an alpha for {unknown}, and the weights after have no such name.")
    _check_same_model(before, after, heads)
    result = {}
    for name, weight in after.items():
        share = by_name.get(name, 1.0) if for_all is None else for_all
        if share == 1 or not weight.is_floating_point() or _is_of(name, heads):
            result[name] = weight.detach().clone()
        else:
            result[name] = between(before[name].detach().to(weight.device), weight.detach(), share)
    return result


def layer_alphas(
    model: nn.Module,
    alpha: Alpha | Mapping[str, float],
    *,
    head: str = "learned",
    overrides: Overrides | None = None,
    stacks: Stacks | None = None,
) -> dict[str, float]:
    """The coefficient of every parameter, by its depth.

    Args:
        model: a transformer; only its structure is read.
        alpha: a number, or a distribution (`LRDistribution` or its text form) whose rates are the coefficients. It
            serves any number of layers as rates do: what lies between given layers is interpolated in log space. Or
            a mapping of each group (`embeddings`, `layers.0`, ..., `head`) to its coefficient.
        head: `learned` leaves what comes after the last layer as it was learned, because a new task's head has no
            weights before; `interpolated` interpolates it, too, for a head that was trained before.
        overrides: regex -> group name for parameters that `assign_layers` cannot place.
        stacks: towers with a depth of their own (see `assign_layers`).

    Returns:
        Name -> coefficient for each parameter, tied ones under every name.

    Raises:
        InvalidAlphaError: a number that is not from 0 to 1, at any depth, or another `head`.
        InvalidDistributionError: a text that is no distribution.
        LRDistError: what `assign_layers` raises.
    """
    layers = assign_layers(model, overrides, stacks)
    if isinstance(alpha, Mapping):
        of_group = {group: check_alpha(f"alpha of {group}", alpha.get(group, 1.0)) for group in layers.groups}
    else:
        profile = alpha_profile(alpha)
        of_group = layers.rates(profile.rates)
        for group, share in of_group.items():
            check_alpha(f"alpha of {group} in {profile}", share)
    if check_head(head) == "learned":
        of_group["head"] = 1.0
    group_of = layers.group_of
    of_parameter = {parameter: of_group[group_of[n]] for n, parameter in model.named_parameters() if n in group_of}
    aliases = model.named_parameters(remove_duplicate=False)
    return {name: of_parameter[parameter] for name, parameter in aliases if parameter in of_parameter}


def alpha_profile(alpha: Alpha) -> LRDistribution:
    """The coefficients as a distribution over depth, checked as far as is possible without a model.

    Raises:
        InvalidAlphaError: not from 0 to 1.
        InvalidDistributionError: a text that is no distribution.
    """
    if isinstance(alpha, str):
        number = _number(alpha)
        alpha = LRDistribution.parse(alpha) if number is None else number
    if not isinstance(alpha, LRDistribution):
        return LRDistribution.flat(check_alpha("alpha", alpha))
    if alpha.relative:
        raise InvalidAlphaError(f"alpha={shown(str(alpha))} is relative, and a coefficient is a number. {_HINT}")
    try:
        for group, share in alpha.rates(12).items():
            check_alpha(f"alpha of {group} in {alpha}", share)
    except LayerCountError:  # it names a layer; the model tells
        pass
    return alpha


def alpha_text(alpha: Alpha) -> float | str:
    """A coefficient as a setting: a number where it is the same everywhere."""
    profile = alpha_profile(alpha)
    return dict(profile.values)["lr"] if profile.family == "flat" and not profile.edits else str(profile)


def check_alpha(what: str, value: Any) -> float:
    """`value` as a float from 0 to 1.

    Raises:
        InvalidAlphaError: naming `what` and the value.
    """
    number = as_float(value) if is_number(value) else math.nan
    if not 0 <= number <= 1:
        raise InvalidAlphaError(f"{what} must be from 0 to 1, not {shown(value)}. {_HINT}")
    return number + 0.0


def check_head(head: Any) -> str:
    """`learned` or `interpolated`."""
    if head not in HEADS:
        raise InvalidAlphaError(f"head must be {' or '.join(HEADS)}, not {shown(head)}.")
    return head


def between(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    """`before + alpha (after - before)` in the dtype of `after`, exact for 0 and 1.

    `lerp` computes 16-bit weights in 32 bits and rounds once. Works on DTensors that are placed alike.
    """
    return torch.lerp(before.to(after.dtype), after, alpha)


def plain_name(name: str) -> str:
    """The name in the model without wrappers and adapters: peft puts an adapted layer into `base_layer`."""
    return ".".join(part for part in clean_name(name).split(".") if part != "base_layer")


def _check_same_model(before: Mapping[str, Tensor], after: Mapping[str, Tensor], heads: Sequence[str]) -> None:
    missing = [name for name in after if name not in before and not _is_of(name, heads)]
    extra = [name for name in before if name not in after and not _is_of(name, heads)]
    if missing or extra:
        where = [("after", "before", missing), ("before", "after", extra)]
        said = "; ".join(f"only {one} has {_few(names)}" for one, _, names in where if names)
        raise ModelMismatchError(
            f"The weights before and after are of other architectures: {said}. Interpolate between two states of one "
            'model; a head that only one has is named with heads=("classifier",).'
        )
    other = [
        f"{name} {tuple(before[name].shape)} before and {tuple(weight.shape)} after"
        for name, weight in after.items()
        if not _is_of(name, heads) and before[name].shape != weight.shape
    ]
    if other:
        raise ModelMismatchError(
            f"The weights before and after have other shapes: {_few(other)}. Interpolate between two states of one "
            'model; a head of another size is named with heads=("classifier",).'
        )


def _is_of(name: str, beginnings: Iterable[str]) -> bool:
    return any(name == each or name.startswith(f"{each.rstrip('.')}.") for each in beginnings)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
