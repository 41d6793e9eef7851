"""Dropout with cheap random numbers on a CPU.

torch draws a double for every element, one after the other: about a sixth of a training step of MiniLM. Here one
64-bit draw decides four elements, each kept with probability 1 - round(65536 p) / 65536, from torch's global generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LANES = 65536


class BlockDropout(nn.Dropout):
    """`nn.Dropout` on a CPU tensor, with one draw for four elements; for anything else torch's dropout is used."""

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
    """Replace, in place, the dropout of a model by `BlockDropout`.

    The modules stay the same objects, in the same places and with the same `p`; evaluation mode does not change.
    """
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = BlockDropout
