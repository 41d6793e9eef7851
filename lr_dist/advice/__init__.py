"""Advice: which preset or rate to begin with, what speaks for it, and how far the case at hand is from that.

from lr_dist.advice import recommend

print(recommend("minilm", ["sst2", "qqp"], examples=1500).text())
"""

from __future__ import annotations

from lr_dist.advice.case import Case, case_of
from lr_dist.advice.recommendation import Recommendation
from lr_dist.advice.rules import choose, recommend

__all__ = ["Case", "Recommendation", "case_of", "choose", "recommend"]
