"""Which tokens of a text are hidden in each query of a masked model: a random plan with known weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lr_dist.checks import check_whole
from lr_dist.errors import InvalidMasksError

# All masks of 16 tokens are 65,535; of 20 they would be a million.
MOST_ENUMERATED = 16


@dataclass(frozen=True)
class Stratum:
    """Neighbouring mask sizes, of which some are drawn at random, without replacement.

    Attributes:
        count: number of sizes in it.
        sizes: those that were drawn, rising; all of them, or two or more.
    """

    count: int
    sizes: tuple[int, ...]

    @property
    def weight(self) -> float:
        """How many sizes each drawn one stands for."""
        return self.count / len(self.sizes)


@dataclass(frozen=True, eq=False)
class MaskPlan:
    """The masks of one text.

    Attributes:
        length: tokens that can be masked, D.
        strata: the sizes 1 ... D, in strata.
        masks: bool [rows, D], True where a token is hidden.
        sizes: int64 [rows], number of hidden tokens of each row; rows of one size are consecutive.
        complete: sizes of which every mask is in the plan, so that their mean has no sampling error.
    """

    length: int
    strata: tuple[Stratum, ...]
    masks: Tensor
    sizes: Tensor
    complete: frozenset[int]

    def __len__(self) -> int:
        return len(self.masks)


def draw_masks(length: int, *, masks: int | None = 4, sizes: int | None = None, seed: int = 0) -> MaskPlan:
    """Draw masks: `masks` of every size from 1 to `length`, or of a stratified random subset of the sizes.

    A size that has no more than `masks` masks is enumerated. A subset of n sizes is drawn from n // 2 strata of
    neighbouring sizes, two (or three) from each, without replacement.

    Args:
        length: tokens that can be masked, D.
        masks: masks a size, K >= 2; None: every mask (at most 16 tokens).
        sizes: how many sizes to draw, 2 ... D; None: all.
        seed: of the draw.

    Raises:
        InvalidMasksError: no token, one mask a size (it has no standard error), more sizes than the text has tokens,
            or too many tokens to enumerate.
    """
    check_whole(
        "length", length, 1, error=InvalidMasksError, hint="A text without a token that can be masked has none."
    )
    if masks is not None:
        hint = "One mask a size has no standard error; give 2 or more, or None for every mask."
        check_whole("masks", masks, 2, error=InvalidMasksError, hint=hint)
    elif length > MOST_ENUMERATED:
        raise InvalidMasksError(
            f"{length} tokens have 2^{length} masks, too many to try them all (at most {MOST_ENUMERATED} tokens). "
            "Give a number of masks a size, such as masks=4."
        )
    if sizes is not None and length > 1:
        hint = f"A text of {length} tokens has the mask sizes 1 ... {length}; None takes all of them."
        check_whole("sizes", sizes, 2, length, error=InvalidMasksError, hint=hint)
    generator = torch.Generator().manual_seed(seed)
    strata = _strata(length, sizes, generator)
    parts, complete = [], set()
    for size in (size for stratum in strata for size in stratum.sizes):
        if masks is None or math.comb(length, size) <= masks:
            parts.append(_all_masks(length, size))
            complete.add(size)
        else:
            parts.append(_random_masks(length, size, masks, generator))
    rows = torch.cat(parts)
    return MaskPlan(length, strata, rows, rows.sum(dim=1), frozenset(complete))


def _strata(length: int, sizes: int | None, generator: torch.Generator) -> tuple[Stratum, ...]:
    if sizes is None or sizes >= length:
        return tuple(Stratum(1, (size,)) for size in range(1, length + 1))
    count = sizes // 2
    bounds = [round(length * i / count) for i in range(count + 1)]
    blocks = [range(low + 1, high + 1) for low, high in itertools.pairwise(bounds)]
    drawn = [2] * count
    if sizes % 2:
        drawn[max(range(count), key=lambda i: len(blocks[i]))] += 1
    strata = []
    for block, number in zip(blocks, drawn, strict=True):
        chosen = torch.randperm(len(block), generator=generator)[:number].tolist()
        strata.append(Stratum(len(block), tuple(sorted(block[i] for i in chosen))))
    return tuple(strata)


def _all_masks(length: int, size: int) -> Tensor:
    chosen = torch.tensor(list(itertools.combinations(range(length), size)))
    return torch.zeros(len(chosen), length, dtype=torch.bool).scatter_(1, chosen, True)


def _random_masks(length: int, size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` independent masks, uniform over all of this size."""
    chosen = torch.rand(count, length, generator=generator).argsort(dim=1)[:, :size]
    return torch.zeros(count, length, dtype=torch.bool).scatter_(1, chosen, True)
