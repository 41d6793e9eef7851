"""Steps that are lost in weights with few digits, as under the precisions `bf16-true` and `16-true`."""

from __future__ import annotations

import torch
from torch.optim import Adam, Adamax, AdamW, NAdam, Optimizer, RAdam

from lr_dist.errors import LostStepsWarning

# Their steps are about as long as the rate; of other optimizers' nothing is known here.
STEPS_OF_THE_RATE = (Adam, AdamW, Adamax, NAdam, RAdam)
_FEW_DIGITS = (torch.bfloat16, torch.float16)


def lost_steps(optimizer: Optimizer) -> list[UserWarning]:
    """A warning of groups in which most weights stay the same number when the group's rate is subtracted.

    bfloat16 has 8 significant bits: from a weight w, a step below |w| / 512 changes nothing (round to nearest), and no
    number of such steps does. With rates by layer it is the low layers that stop, and the head that hides it.

    Args:
        optimizer: with the groups of `regroup`.
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
    """This process's part of a sharded parameter."""
    weight = parameter.detach()
    return weight.to_local() if hasattr(weight, "to_local") else weight


def unchanged(weight: torch.Tensor, rate: float) -> int:
    """How many weights are the same number after a step of `rate` towards 0; zeros always move."""
    return int((weight - rate * weight.sign() == weight).logical_and(weight != 0).sum())
