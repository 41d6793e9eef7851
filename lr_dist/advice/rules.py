"""The rules: the nearest known setting, or a flat rate to tune where none is near."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lr_dist.advice.case import Case, case_of
from lr_dist.advice.known import Known, known
from lr_dist.advice.recommendation import Recommendation
from lr_dist.distribution import LRDistribution
from lr_dist.rate_plan import RatePlan

# In doublings (see `Known.distance`): twice or half the layers, and a little more.
NEAR = 2.5
# The default `learning_rate` of transformers' TrainingArguments.
UNTUNED = 5e-5
# Where nothing was measured: it needs no earlier data, no other rates, and no setting that depends on the model's size.
KEEP = ("interpolate:alpha=0.7",)


def recommend(
    model: str, tasks: Sequence[str], examples: int, *, start: str | Path | None = None, batch_size: int = 32
) -> Recommendation:
    """Name a preset or a rate to begin with, the evidence behind it, and how far the case is from it.

    Args:
        model: `minilm`, a name on the hub, or a folder; only its configuration is read.
        tasks: names of the tasks in the order of learning.
        examples: training examples of each task.
        start: folder of a fine-tuned model whose task is to be kept; it takes the place of `model`.
        batch_size: examples in each step of the optimizer.

    Raises:
        ModelLoadError: no such model, or one that cannot be read.
        ConfigurationError: no task, or a number that is not a whole number from 1.
    """
    return choose(case_of(model, tasks, examples, start=start, batch_size=batch_size))


def choose(case: Case) -> Recommendation:
    """The recommendation for a case; see `recommend`."""
    nearest = min(known(), key=lambda setting: _far(setting, case))
    if case.family not in nearest.families or nearest.distance(case) > NEAR:
        return Recommendation(
            case,
            RatePlan((LRDistribution.flat(UNTUNED),)),
            None,
            KEEP if case.in_sequence else (),
            None,
            (),
            nearest.differences(case),
            f"The nearest setting that is known is {_name(nearest)}; it is too far to take its rates. {UNTUNED:g} is "
            "only the default learning rate of transformers.",
            (
                "Tune the flat rate first, on held-out examples: five rates from 1e-5 to 1e-3, or the scan.",
                *_advice(case),
            ),
        )
    return Recommendation(
        case,
        nearest.plan,
        None if nearest.preset is None else nearest.preset.name,
        (nearest.methods or KEEP) if case.in_sequence else (),
        None if nearest.preset is None else nearest.preset.schedule,
        nearest.evidence,
        nearest.differences(case),
        nearest.limits,
        _advice(case),
    )


def _far(setting: Known, case: Case) -> tuple[bool, float, bool]:
    """The family first: rates of another one say little, however close the sizes are."""
    keeps = bool(setting.methods)
    return case.family not in setting.families, setting.distance(case), keeps != case.in_sequence


def _name(setting: Known) -> str:
    return f"the preset {setting.preset.name}" if setting.preset is not None else f"{setting.plan} on MiniLM"


def _advice(case: Case) -> tuple[str, ...]:
    tune = "Compare with a tuned flat rate: in our runs it tied with distributions that were searched for."
    if not case.in_sequence:
        return (tune,)
    keep = (
        "interpolate:alpha=0.7 goes 70% of the way to the new weights; a smaller alpha keeps more and learns less. "
        "Rates that fall with depth gain more by it than flat ones (docs/evidence.md)."
    )
    replay = (
        "If one pass over the earlier examples is allowed, ewc with interpolate:alpha=0.8 kept more in our runs; if 5% "
        "of them may be kept, + replay:ratio=0.1,size=NUMBER with both kept most (docs/methods.md)."
    )
    return (tune, keep, replay)
