"""Attention on a CPU with cheap dropout, for padded and packed batches; otherwise transformers' own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.sequence.fast.dropout import block_dropout
from lr_dist.sequence.fast.packing import active_packing

NAME = "lr_dist_attention"


def use_own_attention(model: nn.Module) -> None:
    """Make a model use this attention, in place, if its attention is torch's and can be configured."""
    setter = getattr(model, "set_attn_implementation", None)
    config: Any = getattr(model, "config", None)
    if setter is None or getattr(config, "_attn_implementation", None) != "sdpa":
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    setter(NAME)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """Attention over [batch, heads, tokens, size per head], or over [1, heads, tokens, ...] of a packed batch."""
    packing = active_packing()
    if packing is None:
        return _padded(module, query, key, value, attention_mask, **others)
    # Dimension 1 is that of the tokens while they are moved.
    query, key, value = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    # [texts, 1, 1, longest]: the same keys for every head and query.
    return packing.pack(_padded(module, query, key, value, packing.mask[:, None, None], **others)[0]), None


def _padded(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over [batch, heads, tokens, size per head]; torch's own unless there is dropout on a CPU."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = bool(others.get("is_causal") or getattr(module, "is_causal", False))
    masked = not causal if attention_mask is None else attention_mask.dtype == torch.bool
    if dropout == 0 or query.device.type != "cpu" or query.shape[1] != key.shape[1] or not masked:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # torch's attention with dropout takes its slow path on a CPU anyway, so nothing is lost by spelling it out.
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = block_dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
