"""The schedules that plans are shown with and that task sequences are trained with, by name."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "constant")


def schedule_factor(step: int, steps: int, schedule: str, warmup_steps: int) -> float:
    """The factor of transformers' `get_scheduler` in a step, from 0 to 1.

    Args:
        step: counted from 0.
        steps: length of the schedule.
        schedule: one of `SCHEDULES`: after the warm-up, `cosine` and `linear` fall to 0, `constant` stays at 1.
        warmup_steps: steps with a linearly rising factor.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return max(0.0, 1.0 - progress) if schedule == "linear" else 1.0
