"""Warnings about implausible rates: far too high, far too low, or far below the other layers'."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from lr_dist.errors import SHORT, NothingToTrainError, RateRangeWarning, StuckLayersWarning

if TYPE_CHECKING:
    from lr_dist.distribution import LRDistribution

LOWEST, HIGHEST = 1e-8, 1e-1
# The least plausible share of the highest rate below the head.
LEAST_SHARE = 1e-3
# A multiple of the optimizer's own rate outside these bounds was probably meant as a rate, or is a typing error.
_LEAST_MULTIPLE, _LARGEST_MULTIPLE = 1e-2, 1e2
_AT_EVERY_DEPTH = "`decay:lr=4e-4,total=0.02` has the same ratio from head to embeddings at every depth"


def check_trains(distribution: LRDistribution, rates: Mapping[str, float]) -> None:
    """Refuse rates that are all 0, which freeze the whole model.

    Raises:
        NothingToTrainError: no rate is above 0.
    """
    if not any(rates.values()):
        raise NothingToTrainError(
            f"The distribution {_text(distribution)} has the rate 0 everywhere, which freezes the whole model. Give at "
            "least one group a rate above 0, such as head=1e-3; to measure a model without training it, leave the "
            "training out."
        )


def rate_warnings(
    distribution: LRDistribution,
    rates: Mapping[str, float],
    *,
    base_lr: float | None = None,
    optimizer: str | None = None,
    highest: float = HIGHEST,
    step_is_rate: bool = True,
) -> list[UserWarning]:
    """Warnings about implausible rates of a model's groups; empty if there are none. A rate of 0 (frozen) is fine.

    Args:
        distribution: the distribution of the rates; the text names it, and the likely cause in it.
        rates: the rate of each group in the order of depth, as set in the optimizer.
        base_lr: the optimizer's own rate, if the distribution is relative and the rate is known.
        optimizer: the name of the optimizer's class, if it is known.
        highest: the highest plausible rate for that optimizer.
        step_is_rate: whether a step of the optimizer is about as long as the rate, as in Adam.
    """
    high = [group for group, rate in rates.items() if rate > highest * (1 + 1e-9)]
    low = [group for group, rate in rates.items() if 0 < rate < LOWEST * (1 - 1e-9)]
    gives = f"The distribution {_text(distribution)} gives"
    issues: list[UserWarning] = []
    if high:
        worst = max(high, key=lambda group: rates[group])
        if optimizer is None:
            why = "A step of Adam moves each weight by about the rate; only optimizers such as SGD tolerate more."
        elif step_is_rate:
            why = f"A step of {optimizer} moves each weight by about the rate, so the pre-trained weights are lost."
        else:
            why = f"With {optimizer} that is far above what is usual."
        issues.append(
            RateRangeWarning(
                f"{gives} {named(high, rates)} a learning rate above {brief(highest)} (the highest: "
                f"{brief(rates[worst])}, {worst}). {why} "
                f"{_cause_of_high(distribution, rates[worst], base_lr)}"
            )
        )
    if low:
        worst = min(low, key=lambda group: rates[group])
        issues.append(
            RateRangeWarning(
                f"{gives} {named(low, rates)} a learning rate below {brief(LOWEST)} (the lowest: "
                f"{brief(rates[worst])}, {worst}), at which next to nothing is learned. "
                f"{_cause_of_low(distribution, rates, base_lr)}"
            )
        )
    # If a rate is far too high, the ratios to it say nothing.
    return issues if high else [*issues, *_far_below(distribution, rates, except_for=low)]


def multiple_warnings(distribution: LRDistribution, multiples: Mapping[str, float]) -> list[UserWarning]:
    """The same for a relative distribution, if the optimizer's own rate is not known yet.

    Args:
        distribution: a relative distribution.
        multiples: the multiple of the optimizer's own rate for each group, in the order of depth.
    """
    largest = max(multiples.values())
    says = (
        f"The distribution {_text(distribution)} is relative, and its largest multiple of the optimizer's own rate is "
    )
    if 0 < largest < _LEAST_MULTIPLE:
        return [
            RateRangeWarning(
                f"{says}{brief(largest)}: with an optimizer at 1e-5, a rate of {brief(largest * 1e-5)}. If its numbers "
                "are rates, leave relative=true out."
            )
        ]
    if largest > _LARGEST_MULTIPLE:
        return [
            RateRangeWarning(
                f"{says}{brief(largest)}. {_growth(distribution) or 'Lower it, unless the optimizer is very slow.'}"
            )
        ]
    return _far_below(distribution, multiples, in_multiples=True)


def warn_of_rates(distribution: LRDistribution, num_layers: int, base_lr: float | None, optimizer: str | None) -> None:
    """Warn about implausible rates of a distribution on a model, before anything is trained with it.

    Args:
        distribution: the distribution.
        num_layers: the model's number of layers.
        base_lr: the optimizer's own rate, which a relative distribution multiplies; None if it is not known.
        optimizer: the name of the optimizer's class, one such as Adam; None if it is not known.

    Raises:
        NothingToTrainError: every rate is 0.
        LayerCountError: see `LRDistribution.rates`.
    """
    rates = distribution.rates(num_layers)
    check_trains(distribution, rates)
    if distribution.relative and base_lr is None:
        issues = multiple_warnings(distribution, rates)
    else:
        known = distribution.absolute(base_lr).rates(num_layers) if base_lr is not None else rates
        issues = rate_warnings(distribution, known, base_lr=base_lr, optimizer=optimizer)
    for issue in issues:
        warnings.warn(issue, stacklevel=3)


def brief(number: float) -> str:
    """Three digits, small numbers as they are written by hand: `5.36e-8`, `4e-4`, `0.343`."""
    if 0.01 <= abs(number) < 1e4 or number == 0:
        return f"{number:.3g}"
    digits, _, exponent = f"{number:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def readable(text: str) -> str:
    """A text of rates for people: what arithmetic has made long, such as 4.3695899999999996e-05, in three digits."""
    return re.sub(r"\b\d+\.\d{3,}(e[-+]?\d+)?", lambda found: brief(float(found[0])), text)


def named(groups: Sequence[str], order: Collection[str]) -> str:
    """`groups` as text, consecutive ones as a range: `embeddings to layers.3 and head`."""
    if len(groups) == len(order) > 1:
        return "every group"
    runs: list[list[str]] = []
    previous = False
    for name in order:
        if name in groups:
            if previous:
                runs[-1].append(name)
            else:
                runs.append([name])
        previous = name in groups
    texts = []
    for run in runs:
        texts += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else run
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _far_below(
    distribution: LRDistribution,
    rates: Mapping[str, float],
    except_for: Sequence[str] = (),
    in_multiples: bool = False,
) -> list[UserWarning]:
    # Without the head: it is usually new, and meant to have a rate far above the others.
    layers = {group: rate for group, rate in rates.items() if rate and group.rpartition("/")[2] != "head"}
    if not layers:
        return []
    fastest = max(layers, key=lambda group: layers[group])
    stuck = [group for group, rate in layers.items() if rate < LEAST_SHARE * layers[fastest]]
    if set(stuck) <= set(except_for):
        return []
    lowest = min(stuck, key=lambda group: layers[group])
    unit = " times the optimizer's rate" if in_multiples else ""
    text = named(stuck, rates)
    freeze = "rate 0" if " and " in text and len(stuck) > 2 else f"freeze={stuck[0]}..{stuck[-1]}"
    return [
        StuckLayersWarning(
            f"The distribution {_text(distribution)} gives {text} (the lowest: {brief(layers[lowest])}{unit}, "
            f"{lowest}) less than a thousandth of the rate of {fastest} ({brief(layers[fastest])}{unit}), so they "
            f"hardly move in comparison. Freeze them, which also saves time ({freeze}), or raise them"
            f"{'; ' + _AT_EVERY_DEPTH if _shrinks(distribution) else ''}."
        )
    ]


def _cause_of_high(distribution: LRDistribution, rate: float, base_lr: float | None) -> str:
    growth = _growth(distribution)
    if growth:
        return growth
    if distribution.relative:
        times = "" if not base_lr else f": {brief(rate / base_lr)} times {brief(base_lr)}"
        return f"It is relative, so it multiplies the optimizer's own rate{times}. Lower one of the two."
    return "If its numbers are multiples of the optimizer's own rate, add relative=true; if not, lower them."


def _cause_of_low(distribution: LRDistribution, rates: Mapping[str, float], base_lr: float | None) -> str:
    if max(rates.values()) >= LOWEST and _shrinks(distribution):
        return (
            f"It is lower by the same factor in every layer, {len(rates) - 1} times from head to embeddings; "
            f"{_AT_EVERY_DEPTH}. A layer that is not to learn gets the rate 0 (freeze=embeddings)."
        )
    if distribution.relative:
        highest = max(rates.values())
        times = "" if not base_lr else f": {brief(highest / base_lr)} times {brief(base_lr)}, at most"
        return (
            f"It is relative, so it multiplies the optimizer's own rate{times}. If its numbers are rates, leave "
            "relative=true out."
        )
    return "Raise it; a layer that is not to learn gets the rate 0 (freeze=embeddings)."


def _growth(distribution: LRDistribution) -> str:
    """A hint if the family's factor makes the rates grow towards the input; empty otherwise."""
    values = dict(distribution.values)
    key = "total" if "total" in values else "factor"
    if distribution.family == "decay" and values[key] > 1:
        share = {
            "total": "that the embeddings have of the head's rate, such as 0.02",
            "factor": "that each layer has of the rate of the one above, such as 0.7",
        }[key]
        return f"Its {key}={values[key]:g} is above 1, so rates grow towards the input. Write the share {share}."
    if distribution.family == "discriminative" and values["factor"] < 1:
        return (
            f"Its factor={values['factor']:g}, by which each layer's rate is divided for the layer below, is under 1, "
            "so rates grow towards the input. Write a factor above 1, such as 2.6, or use decay."
        )
    return ""


def _shrinks(distribution: LRDistribution) -> bool:
    """Whether rates fall by a factor in every layer, so that the lowest depend on the number of layers."""
    values = dict(distribution.values)
    if distribution.family == "geometric_mean":
        return any(_shrinks(part) for part in values["of"])
    return distribution.family in ("decay", "discriminative") and "total" not in values


def _text(distribution: LRDistribution) -> str:
    text = str(distribution)
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."
