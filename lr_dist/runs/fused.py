"""Detects whether a device supports the fused step of AdamW: one kernel instead of a dozen."""

from __future__ import annotations

import functools


@functools.cache
def has_fused_adamw(device: str) -> bool:
    """Whether torch has a fused AdamW for this kind of device, found by trying a step on one weight.

    It is not timed: where it exists, it was at least twice as fast (on processors with AVX-512, with AVX2 and with
    neither; 64 x 64 to 384 x 1536). It rounds differently, so a choice by timing could make two runs on one machine
    differ.

    Args:
        device: `cpu`, `cuda`, `mps`, ...
    """
    import torch

    try:
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float32, device=device))
        weight.grad = torch.zeros_like(weight)
        with torch.inference_mode(False):
            torch.optim.AdamW([weight], fused=True).step()
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True
