"""The settings of a comparison that measures retention, too; imports no torch, for `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lr_dist.sequence.base_config import MEASURES
from lr_dist.sequence.compare_config import CompareConfig


@dataclass(frozen=True)
class RetentionCompareConfig(CompareConfig):
    """`CompareConfig` with what `measures_of` and `retention_of` of `lr_dist.retention` read."""

    drift: bool = field(default=False, kw_only=True, metadata=MEASURES)
    """Measure how far each layer's weights go in each stage, and how alike its hidden states stay; in the result, and
    as heat maps in the report (true or false)."""

    layer_probe: bool = field(default=False, kw_only=True, metadata=MEASURES)
    """Measure which layer did the forgetting, too: after each later stage, put one layer back to where the stage found
    it, and score the earlier tasks. Costs a test of the earlier tasks for each layer (true or false)."""

    retention: str | None = field(default=None, kw_only=True, metadata=MEASURES)
    """Measure what each run loses of the pre-training: a file of plain text, one text a line, such as a part of the
    pre-training text. With settings as in FILE,texts=50,fit_texts=1000; see lr-dist retention."""

    def to_dict(self) -> dict[str, Any]:
        # A setting at its default must not change what earlier versions wrote.
        asked = {"drift": self.drift, "layer_probe": self.layer_probe, "retention": self.retention}
        return {**super().to_dict(), **{name: value for name, value in asked.items() if value}}
