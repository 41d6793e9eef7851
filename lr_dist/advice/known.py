"""What is known: settings in which a plan was used or measured, and how far a case is from each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lr_dist.advice.case import Case
from lr_dist.distribution import LRDistribution
from lr_dist.presets import Preset, list_presets
from lr_dist.rate_plan import RatePlan

# Distances are in doublings: another family counts as much as 16 times as many layers.
_OTHER_FAMILY = 4.0
_NOT_IN_SEQUENCE = 0.5
_UNKNOWN = 0.5


@dataclass(frozen=True)
class Known:
    """A plan and the setting in which it was used or measured.

    Attributes:
        plan: its rates.
        preset: its name, or None for a rate that was measured here.
        families: of the models, as transformers names them.
        layers: numbers of layers of the models.
        batch_size: examples in each step of the optimizer, or None.
        examples: training examples of the smallest and the largest task, or None.
        in_sequence: whether tasks were learned one after the other.
        evidence: what speaks for it, and where that is written.
        limits: what was not shown.
        methods: those that were measured with it, in their text form; they keep earlier tasks.
    """

    plan: RatePlan
    preset: Preset | None
    families: tuple[str, ...]
    layers: tuple[int, ...]
    batch_size: int | None
    examples: tuple[int, int] | None
    in_sequence: bool
    evidence: tuple[str, ...]
    limits: str
    methods: tuple[str, ...] = ()

    def distance(self, case: Case) -> float:
        """In doublings, summed over layers, batch size and examples; another family and one task alone add to it."""
        total = 0.0 if case.family in self.families else _OTHER_FAMILY
        total += min(abs(math.log2(case.layers / layers)) for layers in self.layers)
        total += abs(math.log2(case.batch_size / self.batch_size)) / 2 if self.batch_size else _UNKNOWN
        total += math.log2(_outside(case.examples, self.examples)) / 2 if self.examples else _UNKNOWN
        return total + (_NOT_IN_SEQUENCE if case.in_sequence and not self.in_sequence else 0.0)

    def differences(self, case: Case) -> tuple[str, ...]:
        """In words, what of the case differs from this setting."""
        found = []
        if case.family not in self.families:
            found.append(f"model family: {case.family} here, {' or '.join(self.families)} there")
        if case.layers not in self.layers:
            found.append(f"layers: {case.layers} here, {' or '.join(map(str, self.layers))} there")
        if self.batch_size is None:
            found.append("batch size: not known there")
        elif case.batch_size != self.batch_size:
            found.append(f"batch size: {case.batch_size:,} here, {self.batch_size:,} there")
        if self.examples is None:
            found.append("number of examples: not known there")
        elif _outside(case.examples, self.examples) > 1:
            smallest, largest = self.examples
            there = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
            found.append(f"examples: {case.examples:,} here, {there} there")
        if case.in_sequence and not self.in_sequence:
            found.append("order: something learned before is to be kept here, one task alone there")
        if not case.in_sequence and self.in_sequence:
            found.append("order: one task here, two tasks one after the other there")
        return tuple(found)


def known() -> Iterator[Known]:
    """What was measured here, and the presets that state their setting; not those with a caution."""
    yield from (MEASURED, KEEPING)
    for entry in list_presets():
        preset = entry.preset
        # Relative rates have no level of their own; a caution says that the rates fit few cases.
        if preset is None or preset.caution is not None or preset.distribution.relative:
            continue
        provenance = preset.provenance
        if not provenance.families or not provenance.layers:
            continue
        shown = (provenance.shown_for,) if provenance.shown_for else ()
        yield Known(
            preset.plan,
            preset,
            provenance.families,
            provenance.layers,
            provenance.batch_size,
            provenance.examples,
            provenance.in_sequence,
            (*shown, f"Source: {provenance.source}."),
            provenance.not_shown_for or "not stated",
            preset.methods,
        )


def _outside(count: int, span: tuple[int, int]) -> float:
    """By which factor a count is outside of a range; 1 within it."""
    return max(1.0, span[0] / count, count / span[1])


# docs/search.md, "Evidence"; configs/evidence/search.
MEASURED = Known(
    plan=RatePlan((LRDistribution.flat(1.34e-4),)),
    preset=None,
    families=("bert",),
    layers=(6,),
    batch_size=32,
    examples=(1500, 1500),
    in_sequence=True,
    evidence=(
        "Measured by us: MiniLM (6 layers), two GLUE tasks one after the other, 1,500 examples each, five seeds, on "
        "six pairs that nothing was tuned on. The tuned flat rate 1.34e-4 and a searched distribution are equal "
        "within the interval (p_o +.005 +- .015, p_s +.002 +- .009), and flat 2e-5 is far below both (p_o -.107 +- "
        ".047, p_s -.177 +- .041).",
        "Source: docs/search.md, 'Evidence'; python tests/benchmarks/search_evidence.py.",
    ),
    limits="Larger models, other families, more examples, one task alone. No distribution beat the flat rate.",
)

# docs/evidence.md; configs/evidence/forgetting-v2.
KEEPING = replace(
    MEASURED,
    plan=RatePlan((LRDistribution.flat(1.34e-4), LRDistribution.decay(4e-4, 0.7))),
    methods=("interpolate:alpha=0.7",),
    evidence=(
        "Measured by us: MiniLM (6 layers), two GLUE tasks one after the other, 1,500 examples each, on six pairs that "
        "nothing was tuned on: 72 % of what the tuned flat rate forgets is kept, and p_o at equal p_s is "
        "+.045 [+.003, +.098] (three seeds of five, preliminary). It needs no earlier examples; neither falling rates "
        "nor interpolation do it alone.",
        "With more: EWC and interpolation keep 89 % (at equal p_s +.066 [+.030, +.089]); with 75 rehearsed "
        "examples as well, 101 % (+.062 [+.038, +.083]).",
        "Source: docs/evidence.md; lr-dist evidence --config configs/evidence/forgetting-v2.yaml.",
    ),
    limits="Larger models, other families, more examples, more than two tasks.",
)
