"""Whether a device has AdamW's fused step: one kernel for all weights instead of a dozen."""

from __future__ import annotations

import functools


@functools.cache
def has_fused_adamw(device: str) -> bool:
    """Whether torch has a fused AdamW for this kind of device, found by trying a step on one weight.

    It is not timed. Where it exists it was at least twice as fast (processors with AVX-512, with AVX2 and with neither;
    64 x 64 to 384 x 1536). It rounds differently, so if timing decided, two runs on one machine could differ.

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
