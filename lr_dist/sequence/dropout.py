"""Dropout whose random numbers are cheap on a processor.

torch draws a double for every element, one after the other: about a sixth of a training step of MiniLM. Here one
64-bit draw decides four elements, each kept with probability 1 - round(65536 p) / 65536, from torch's global generator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = "lr_dist_attention"
_LANES = 65536


class BlockDropout(nn.Dropout):
    """`nn.Dropout` on a CPU tensor, with four elements a draw; anything else is left to torch."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero elements with probability `p` (to 1/65536) and divide the others by 1 - p, in training mode."""
        if not self.training or self.inplace or input.device.type != "cpu":
            return super().forward(input)
        return block_dropout(input, self.p)


def block_dropout(values: Tensor, p: float) -> Tensor:
    """`values` with elements zeroed with probability `p`, the others divided by 1 - p; same shape and dtype."""
    zeroed = round(p * _LANES)
    if zeroed == 0:
        return values
    if zeroed == _LANES:
        return torch.zeros_like(values)
    draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    # Over all 64 bits, so that each of the four 16-bit lanes is uniform.
    lanes = draws.random_(-(2**63), None).view(torch.int16)[: values.numel()]
    kept = (lanes >= zeroed - _LANES // 2).view(values.shape)
    return values * kept.to(values.dtype).mul_(1 / (1 - zeroed / _LANES))


def use_block_dropout(model: nn.Module) -> None:
    """Replace, in place, the dropout of a model by `BlockDropout`, that of its attention too where it is configurable.

    The modules stay the same objects, with their places and `p`; the model's function in evaluation mode stays.
    """
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = BlockDropout
    setter = getattr(model, "set_attn_implementation", None)
    config: Any = getattr(model, "config", None)
    # torch's attention with dropout takes its slow path on a CPU anyway, so nothing is lost by spelling it out.
    if setter is not None and getattr(config, "_attn_implementation", None) == "sdpa":
        from transformers import AttentionInterface
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        AttentionInterface.register(ATTENTION, _attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        setter(ATTENTION)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over [batch, heads, tokens, size per head]; torch's own unless it drops out on a CPU."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = bool(others.get("is_causal") or getattr(module, "is_causal", False))
    masked = not causal if attention_mask is None else attention_mask.dtype == torch.bool
    if dropout == 0 or query.device.type != "cpu" or query.shape[1] != key.shape[1] or not masked:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = block_dropout(scores.softmax(dim=-1).to(value.dtype), dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None
