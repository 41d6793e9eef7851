"""Compute only the real tokens of a batch: its texts are joined in one row, and separated only in attention.

Padding is a fifth of the tokens in a training batch of short texts, and most of them in a batch with one long text.
Everything except attention treats each token separately, so the results are the same without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.sequence.fast.probe import same_states, trying_out, two_texts


@dataclass(frozen=True)
class Packing:
    """The positions of a packed row's tokens in the padded batch.

    Attributes:
        mask: bool [texts, longest], true for tokens, false for padding.
        places: int64 [tokens], each token's position in the flattened `mask`.
        firsts: int64 [texts], position of each text's first token in the packed row.
    """

    mask: Tensor
    places: Tensor
    firsts: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> Packing:
        """From a mask [texts, longest] of texts that are padded on the right."""
        mask = attention_mask.bool()
        lengths = mask.sum(dim=1)
        return cls(mask, mask.flatten().nonzero().squeeze(1), lengths.cumsum(0) - lengths)

    def pack(self, padded: Tensor) -> Tensor:
        """[texts, longest, ...] to [1, tokens, ...]."""
        return _Rows.apply(padded.flatten(0, 1), self.places)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """[1, tokens, ...] to [texts, longest, ...], 0 where there is no token."""
        return _Places.apply(packed[0], self.places, self.mask.numel()).unflatten(0, self.mask.shape)

    def first(self, packed: Tensor) -> Tensor:
        """[1, tokens, ...] to [1, texts, ...]: each text's first token."""
        return _Rows.apply(packed[0], self.firsts)[None]


def active_packing() -> Packing | None:
    """The packing of the batch that a model is computing; None if it is padded."""
    return _ACTIVE.get()


def first_states(backbone: nn.Module, batch: Mapping[str, Tensor], first_position: int) -> Tensor:
    """The last hidden state [texts, hidden] of each text's first token.

    Args:
        backbone: reduced to the first token (`keep_first_token`), with attention that supports packing.
        batch: `input_ids`, `attention_mask` and perhaps `token_type_ids`, each [texts, longest].
        first_position: the number of a text's first position, see `first_position`.
    """
    packing = Packing.of(batch["attention_mask"])
    inputs = {name: packing.pack(values) for name, values in batch.items() if name != "attention_mask"}
    numbers = torch.arange(packing.mask.shape[1], device=packing.mask.device) + first_position
    with _active(packing):
        return backbone(**inputs, position_ids=packing.pack(numbers.expand_as(packing.mask))).last_hidden_state[0]


def first_position(backbone: Any, pad_token_id: int) -> int | None:
    """The number of a text's first position if `first_states` equals the padded batch's result; otherwise None.

    BERT counts from 0, RoBERTa from the id of its padding token. The model is tried out.
    """
    batch = two_texts(backbone, pad_token_id)
    offset = getattr(backbone.config, "pad_token_id", None)
    with trying_out(backbone):
        padded = backbone(**batch).last_hidden_state[:, 0]
        for first in (0, *([offset + 1] if isinstance(offset, int) else [])):
            try:
                packed = first_states(backbone, batch, first)
            except Exception:  # whatever a model's own code raises on inputs that it does not know
                continue
            if same_states(packed, padded):
                return first
    return None


_ACTIVE: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def _active(packing: Packing) -> Iterator[None]:
    token = _ACTIVE.set(packing)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


class _Rows(torch.autograd.Function):
    """Some rows, each at most once; so the gradient is copied back, where torch's own would add it row by row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = len(values)
        return values.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return _placed(gradient, rows, ctx.size), None


class _Places(torch.autograd.Function):
    """The other way round: rows put to their places among zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return _placed(values, places, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None


def _placed(values: Tensor, places: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, places, values)
