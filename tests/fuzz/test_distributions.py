"""Whatever a distribution is built from: its forms, its rates and its operations hold what they promise."""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import subprocess
import sys
from typing import Any

from generated import (
    DEPTHS,
    ENDS,
    MULTIPLES,
    NEAR_TEXTS,
    RATES,
    RATES_OR_ZERO,
    WILD,
    close,
    distributions,
    has_text_form,
    spoiled,
)
from harness import cases, ours
from hypothesis import assume, given
from hypothesis import strategies as st

from lr_dist import LRDistribution
from lr_dist._distribution.edits import Edit
from lr_dist._distribution.families import FAMILIES, grouped_layers
from lr_dist.distribution import MAX_NESTING
from lr_dist.errors import InvalidDistributionError, LRDistError
from lr_dist.names import group_names
from lr_dist.presets import resolve_distribution

# Rounding of a logarithm of 1e-300 and back.
LOG_ROUNDING = 1e-12


def rates_or_discard(distribution: LRDistribution, num_layers: int) -> list[float]:
    """The rates; cases that raise an error of ours (a layer that the model lacks, an overflow) do not count."""
    rates = ours(distribution.rates, num_layers)
    assume(not isinstance(rates, LRDistError))
    return list(rates.values())  # type: ignore[union-attr]


# Forms ---------------------------------------------------------------------------------------------------


@cases(300)
@given(distributions())
def test_every_form_reads_back_to_an_equal_distribution(distribution: LRDistribution) -> None:
    copies = [
        LRDistribution.from_dict(distribution.to_dict()),
        LRDistribution.from_dict(json.loads(json.dumps(distribution.to_dict()))),
        LRDistribution.from_yaml(distribution.to_yaml()),
        resolve_distribution(distribution.to_dict()),
        pickle.loads(pickle.dumps(distribution)),
    ]
    text = str(distribution)
    if has_text_form(distribution):
        copies += [LRDistribution.parse(text), resolve_distribution(f" {text}\n")]
    else:
        assert isinstance(ours(LRDistribution.parse, text), InvalidDistributionError)
    for copy in copies:
        assert copy == distribution
        assert hash(copy) == hash(distribution)
        assert copy.fingerprint == distribution.fingerprint
        assert str(copy) == text
    assert text.isprintable()


@cases(200)
@given(distributions(), distributions(), st.data())
def test_fingerprints_and_texts_are_equal_exactly_where_distributions_are(
    one: LRDistribution, other: LRDistribution, data: st.DataObject
) -> None:
    near = ours(LRDistribution.from_dict, data.draw(spoiled(st.just(one.to_dict()), RATES_OR_ZERO)))
    for left, right in itertools.combinations([one, other, near], 2):
        if isinstance(left, LRDistribution) and isinstance(right, LRDistribution):
            assert (left == right) == (left.fingerprint == right.fingerprint) == (left.to_dict() == right.to_dict())
            assert (left == right) == (left.to_yaml() == right.to_yaml())
            if has_text_form(left) or has_text_form(right):
                assert (left == right) == (str(left) == str(right))


class OtherProcess:
    """A Python with another hash seed that computes rates; one for the whole run, started on first use."""

    CODE = """
import json, sys
from lr_dist import LRDistribution
from lr_dist.errors import LRDistError
for line in sys.stdin:
    data, num_layers = json.loads(line)
    distribution = LRDistribution.from_dict(data)
    try:
        rates = [[name, rate.hex()] for name, rate in distribution.rates(num_layers).items()]
    except LRDistError as error:
        rates = str(error)
    print(json.dumps([distribution.fingerprint, str(distribution), distribution.to_yaml(), rates]), flush=True)
"""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []

    def answers(self, distribution: LRDistribution, num_layers: int) -> list[Any]:
        """What two processes with the hash seeds 1 and 2 say of the distribution."""
        if not self.processes:
            for seed in ("1", "2"):
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", self.CODE],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        encoding="utf-8",
                        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
                    )
                )
        found = []
        for process in self.processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([distribution.to_dict(), num_layers]) + "\n")
            process.stdin.flush()
            found.append(json.loads(process.stdout.readline()))
        return found


OTHER = OtherProcess()


@cases(80)
@given(distributions(), DEPTHS)
def test_another_process_with_another_hash_seed_finds_the_same(distribution: LRDistribution, num_layers: int) -> None:
    rates = ours(distribution.rates, num_layers)
    shown = str(rates) if isinstance(rates, LRDistError) else [[name, rate.hex()] for name, rate in rates.items()]
    expected = [distribution.fingerprint, str(distribution), distribution.to_yaml(), shown]
    assert OTHER.answers(distribution, num_layers) == [expected, expected]


# Rates ---------------------------------------------------------------------------------------------------


@cases(300)
@given(distributions(), DEPTHS)
def test_rates_are_named_finite_and_zero_only_where_the_distribution_freezes(
    distribution: LRDistribution, num_layers: int
) -> None:
    rates = ours(distribution.rates, num_layers)
    if isinstance(rates, LRDistError):
        return
    assert list(rates) == group_names(num_layers)
    assert all(type(rate) is float and math.isfinite(rate) and rate >= 0 for rate in rates.values())
    assert all(math.copysign(1, rate) == 1 for rate in rates.values())
    assert distribution.can_freeze or min(rates.values()) > 0
    assert distribution.rates(num_layers) == rates


@cases(300)
@given(distributions(families=("from_layers", "grouped"), max_edits=0), DEPTHS)
def test_interpolation_keeps_the_ends_and_rises_or_falls_with_its_knots(
    distribution: LRDistribution, num_layers: int
) -> None:
    values = dict(distribution.values)
    rates = list(distribution.rates(num_layers).values())
    assert (rates[0], rates[-1]) == (values["embeddings"], values["head"])
    if distribution.family == "grouped" and num_layers >= 8:
        expected = [values[f"g{i + 1}"] for i, members in enumerate(grouped_layers(num_layers)) for _ in members]
        assert rates[1:-1] == expected
        return
    knots = values["layers"] if distribution.family == "from_layers" else [values[f"g{i}"] for i in range(1, 9)]
    middle = rates[1:-1]
    if num_layers > 1:
        assert (middle[0], middle[-1]) == (knots[0] if len(knots) > 1 else knots[-1], knots[-1])
    for j, rate in enumerate(middle):
        # Where layer j lies among the knots, as a fraction of whole numbers.
        over, under = (j * (len(knots) - 1), num_layers - 1) if num_layers > 1 else (len(knots) - 1, 2)
        low, high = knots[over // under], knots[-(-over // under)]
        if 0 in (low, high):
            # Nothing to interpolate in log space: the nearer one, the shallower at equal distance.
            assert rate == (low if 2 * (over % under) <= under else high)
        assert min(low, high) <= rate <= max(low, high)
        if j and (j - 1) * (len(knots) - 1) // under == over // under and 0 not in (low, high) and over % under:
            before = middle[j - 1]
            assert (rate - before) * (high - low) >= 0 or close(rate, before, LOG_ROUNDING)


@cases(200)
@given(distributions(), st.lists(st.tuples(ENDS, ENDS, RATES_OR_ZERO), max_size=4), DEPTHS)
def test_edits_set_exactly_their_range_and_the_later_one_wins(
    distribution: LRDistribution, changes: list[tuple[Any, Any, float]], num_layers: int
) -> None:
    expected = rates_or_discard(distribution, num_layers)
    names = group_names(num_layers)
    depths = [-1.0, *([j / max(num_layers - 1, 1) for j in range(num_layers)] if num_layers > 1 else [0.5]), 2.0]
    edited = distribution
    for first, last, rate in changes:
        edit = ours(Edit, first, last, rate)
        if isinstance(edit, LRDistError):
            continue
        edited = LRDistribution(edited.family, edited.values, edited.relative, (*edited.edits, edit))

        def place(end: str | float) -> float:
            if isinstance(end, str):
                layer = end.removeprefix("layers.").removeprefix("-")
                index = int(end.removeprefix("layers.")) if layer.isdigit() else None
                name = end if index is None else f"layers.{index % num_layers}"
                assume(index is None or -num_layers <= index < num_layers)
                return depths[names.index(name)]
            return end

        low, high = place(first), place(last)
        assume(not (isinstance(first, str) and isinstance(last, str) and low > high))
        expected = [rate if low <= depth <= high else old for old, depth in zip(expected, depths, strict=True)]
    assert list(edited.rates(num_layers).values()) == expected


# Operations ----------------------------------------------------------------------------------------------


@cases(150)
@given(distributions(), MULTIPLES, DEPTHS)
def test_scaling_scales_every_rate_and_freezes_nothing(
    distribution: LRDistribution, factor: float, num_layers: int
) -> None:
    scaled = ours(distribution.scale, factor)
    assume(not isinstance(scaled, LRDistError))
    assert isinstance(scaled, LRDistribution)
    before, after = rates_or_discard(distribution, num_layers), rates_or_discard(scaled, num_layers)
    assert all(close(new, old * factor, LOG_ROUNDING) for old, new in zip(before, after, strict=True))
    assert (scaled.family, scaled.relative, scaled.can_freeze) == (
        distribution.family,
        distribution.relative,
        distribution.can_freeze,
    )


@cases(150)
@given(distributions(relative=True), MULTIPLES, DEPTHS)
def test_relative_times_the_base_is_absolute_and_back(
    distribution: LRDistribution, base: float, num_layers: int
) -> None:
    absolute = ours(distribution.absolute, base)
    assume(not isinstance(absolute, LRDistError))
    assert isinstance(absolute, LRDistribution)
    assert "relative" not in json.dumps(absolute.to_dict())
    assert absolute.absolute(base) is absolute
    assert distribution.relative_to(base) is distribution
    before, after = rates_or_discard(distribution, num_layers), rates_or_discard(absolute, num_layers)
    assert all(close(new, old * base, LOG_ROUNDING) for old, new in zip(before, after, strict=True))
    back = ours(absolute.relative_to, base)
    if isinstance(back, LRDistribution):
        assert back.relative
        again = rates_or_discard(back, num_layers)
        assert all(close(new, old, LOG_ROUNDING) for old, new in zip(before, again, strict=True))
        assert LRDistribution.from_yaml(back.to_yaml()) == back


@st.composite
def means(draw: st.DrawFn) -> tuple[list[LRDistribution], list[float]]:
    """Distributions of one kind, often of one family, and a weight for each."""
    relative = draw(st.booleans())
    families = draw(st.one_of(st.just(tuple(FAMILIES)), st.sampled_from([*FAMILIES]).map(lambda name: (name,))))
    parts = distributions(freezing=False, relative=relative, means=1, families=families, max_edits=1)
    found = draw(st.lists(parts, min_size=1, max_size=4))
    weights = draw(st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 100)), min_size=4, max_size=4))
    return found, [weights[0] or 1.0, *weights[1 : len(found)]]


@cases(150)
@given(means(), DEPTHS)
def test_a_geometric_mean_lies_between_its_parts_at_every_depth(
    case: tuple[list[LRDistribution], list[float]], num_layers: int
) -> None:
    parts, weights = case
    mean = LRDistribution.geometric_mean(parts, weights)
    columns = list(zip(*(rates_or_discard(part, num_layers) for part in parts), strict=True))
    found = rates_or_discard(mean, num_layers)
    for rate, column in zip(found, columns, strict=True):
        counted = [x for x, weight in zip(column, weights, strict=True) if weight]
        assert min(counted) * (1 - LOG_ROUNDING) <= rate <= max(counted) * (1 + LOG_ROUNDING)
        log = math.fsum(w * math.log(x) for w, x in zip(weights, column, strict=True)) / math.fsum(weights)
        assert close(rate, math.exp(log), 1e-10)
    backwards = LRDistribution.geometric_mean(parts[::-1], weights[::-1])
    assert all(close(a, b, 1e-10) for a, b in zip(found, list(backwards.rates(num_layers).values()), strict=True))
    assert mean.relative == parts[0].relative
    assert mean.nesting <= MAX_NESTING


# Wrong input ---------------------------------------------------------------------------------------------


def holds_what_it_promises(distribution: object, num_layers: int = 12) -> None:
    """What is accepted is a distribution like any other."""
    assert isinstance(distribution, LRDistribution)
    assert LRDistribution.from_dict(distribution.to_dict()) == distribution
    assert LRDistribution.from_yaml(distribution.to_yaml()) == distribution
    assert type(distribution.family) is str
    if has_text_form(distribution):
        assert LRDistribution.parse(str(distribution)) == distribution
    rates = ours(distribution.rates, num_layers)
    if not isinstance(rates, LRDistError):
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates.values())


@cases(400)
@given(st.one_of(spoiled(distributions().map(LRDistribution.to_dict)), WILD))
def test_no_data_raises_anything_but_an_error_of_ours(data: Any) -> None:
    for read in (LRDistribution.from_dict, resolve_distribution):
        distribution = ours(read, data)
        if not isinstance(distribution, LRDistError):
            holds_what_it_promises(distribution)


@cases(400)
@given(NEAR_TEXTS)
def test_no_text_raises_anything_but_an_error_of_ours(text: str) -> None:
    distribution = ours(LRDistribution.parse, text)
    if not isinstance(distribution, LRDistError):
        holds_what_it_promises(distribution)
    distribution = ours(resolve_distribution, text)
    if not isinstance(distribution, LRDistError):
        holds_what_it_promises(distribution)


VALUES = st.one_of(WILD, WILD, RATES, ENDS, distributions(means=1), st.lists(WILD, max_size=3), st.lists(RATES))


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, list[Any], dict[str, Any]]:
    """A public method's name and arguments, of which some are wild."""
    name = draw(
        st.sampled_from(
            [
                *("flat:1", "decay:2", "discriminative:2", "linear:2", "cosine:2", "grouped:1", "from_layers:3"),
                *("geometric_mean:2", "from_dict:1", "from_yaml:1", "parse:1", "rates:1", "scale:1", "freeze:2"),
                *("override:2", "absolute:1", "relative_to:1", "new:4"),
            ]
        )
    )
    method, _, count = name.partition(":")
    constructors = ("flat", "decay", "discriminative", "linear", "cosine", "grouped", "from_layers")
    options = {"relative": draw(VALUES)} if method in constructors and draw(st.booleans()) else {}
    return method, [draw(VALUES) for _ in range(int(count))], options


@cases(400)
@given(distributions(), calls())
def test_no_argument_of_a_method_raises_anything_but_an_error_of_ours(
    distribution: LRDistribution, call: tuple[str, list[Any], dict[str, Any]]
) -> None:
    method, arguments, options = call
    bound = LRDistribution if method == "new" else getattr(distribution, method)
    result = ours(bound, *arguments, **options)
    if isinstance(result, LRDistribution):
        holds_what_it_promises(result)
