"""Check that a model still computes the same when something is left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-5
_TOKENS = 7


@contextmanager
def trying_out(backbone: nn.Module) -> Iterator[None]:
    """Compute without gradients and without dropout, within a block."""
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        backbone.train(was_training)


def two_texts(backbone: Any, pad_token_id: int = 0) -> dict[str, Tensor]:
    """A batch for such a check: texts of seven and three tokens, the second one padded."""
    rows = backbone.get_input_embeddings().num_embeddings
    others = torch.tensor([number for number in range(min(rows, 100)) if number != pad_token_id])
    tokens = others[torch.arange(2 * _TOKENS) % len(others)].view(2, -1).to(backbone.device)
    attends = torch.ones_like(tokens)
    attends[1, _TOKENS // 2 :] = 0
    return {"input_ids": tokens.masked_fill(attends == 0, pad_token_id), "attention_mask": attends}


def same_states(states: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of hidden states are equal up to rounding."""
    return states.shape == expected.shape and torch.allclose(states, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
