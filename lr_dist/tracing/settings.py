"""`TraceSettings`: how influence is computed; without torch, because the command line reads its options from it."""

from __future__ import annotations

from dataclasses import dataclass

from lr_dist.checks import check_finite, check_whole
from lr_dist.errors import InfluenceError
from lr_dist.retention.influence.labels import check_labels


@dataclass(frozen=True)
class TraceSettings:
    """How influence is computed.

    Raises:
        InfluenceError: a value out of range.
    """

    top: int = 20
    """Examples to show on each side of a question."""

    candidates: int = 1000
    """Training examples of each stage (texts of the pre-training) to judge, drawn at random."""

    factor_examples: int = 256
    """How many of the candidates the factors are fitted on, which takes most of the time."""

    labels: str = "sampled"
    """Labels for the factors: sampled (one an example, from the model) or expected (the mean over all classes)."""

    damping: float = 0.1
    """Damping of a stage's curvature, as a share of the mean eigenvalue of each layer."""

    pull: float = 1.0
    """How strongly the later stage is held at the earlier one's weights, in units of its mean eigenvalue. Fine-tuning
    has no such term; it stands for the start and the few steps."""

    batch_size: int = 8
    """Training examples in one pass of influence."""

    masks: int = 4
    """With --pretraining: masks of each text, over which its gradient is averaged; each hides 15% of its tokens."""

    draw_seed: int = 0
    """Seed of the drawn candidates and of sampled labels."""

    def __post_init__(self) -> None:
        least = {"top": 1, "candidates": 2, "factor_examples": 2, "batch_size": 1, "masks": 1, "draw_seed": 0}
        for name, lowest in least.items():
            check_whole(name, getattr(self, name), lowest, error=InfluenceError)
        check_labels(self.labels)
        for name in ("damping", "pull"):
            check_finite(name, getattr(self, name), positive=True, error=InfluenceError)
