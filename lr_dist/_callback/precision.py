"""A warning for steps that bfloat16 or float16 weights round away (precisions `bf16-true` and `16-true`)."""

from __future__ import annotations

import torch
from torch.optim import Adam, Adamax, AdamW, NAdam, Optimizer, RAdam

from lr_dist.errors import LostStepsWarning

# Optimizers whose steps are about as long as the rate. For others, the length of a step is not known.
STEPS_OF_THE_RATE = (Adam, AdamW, Adamax, NAdam, RAdam)
_FEW_DIGITS = (torch.bfloat16, torch.float16)


def lost_steps(optimizer: Optimizer) -> list[UserWarning]:
    """A warning for groups in which a step of the group's rate is rounded away in most weights.

    bfloat16 has 8 significant bits: a step below |w| / 512 does not change a weight w (round to nearest), however often
    it is taken. With layer-wise rates the low layers stop learning, unnoticed because the head still learns.

    Args:
        optimizer: its groups were split by `regroup`.
    """
    if not isinstance(optimizer, STEPS_OF_THE_RATE):
        return []
    lost = {}
    for group in optimizer.param_groups:
        weights = [local(p) for p in group["params"] if p.dtype in _FEW_DIGITS and p.requires_grad]
        total = sum(weight.numel() for weight in weights)
        if total and group["layer_lr"]:
            same = sum(unchanged(weight, float(group["layer_lr"])) for weight in weights)
            if same > total / 2:
                lost[group["name"]] = (same / total, group["layer_lr"], str(weights[0].dtype).removeprefix("torch."))
    if not lost:
        return []
    shown = [f"{name} ({share:.0%} at {rate:.3g})" for name, (share, rate, _) in lost.items()]
    more = f" and {len(shown) - 5} more groups" if len(shown) > 5 else ""
    return [
        LostStepsWarning(
            f"The weights are in {next(iter(lost.values()))[2]}, which has too few digits for these rates: a step of "
            f"the rate leaves most weights as they are in {', '.join(shown[:5])}{more}. Keep the weights in float32: "
            "dtype=torch.float32 where they are loaded, and in Lightning precision='bf16-mixed' instead of "
            "'bf16-true'; or raise the rates."
        )
    ]


def local(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The parameter's weights; of a sharded parameter, this process's shard."""
    weight = parameter.detach()
    return weight.to_local() if hasattr(weight, "to_local") else weight


def unchanged(weight: torch.Tensor, rate: float) -> int:
    """How many weights are the same number after a step of `rate` towards 0; zeros always move."""
    return int((weight - rate * weight.sign() == weight).logical_and(weight != 0).sum())
