"""Hypothesis strategies: distributions, presets, and what is nearly one."""

from __future__ import annotations

import copy
import datetime
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lr_dist import LRDistribution
from lr_dist._distribution.edits import Edit
from lr_dist._distribution.families import COMPOSED, FAMILIES, GROUPED_KEYS
from lr_dist._distribution.rates import LARGEST, SMALLEST
from lr_dist.presets import Preset, Provenance

# Numbers -------------------------------------------------------------------------------------------------

# Mostly rates as people use them; the edges of what is allowed as well.
RATES = st.one_of(
    st.floats(-9, 1).map(lambda exponent: 10.0**exponent),
    st.floats(SMALLEST, LARGEST),
    st.sampled_from([SMALLEST, LARGEST, 1.0, 1e-3, 2e-5]),
)
RATES_OR_ZERO = st.one_of(RATES, st.just(0.0))
FACTORS = st.one_of(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.floats(SMALLEST, LARGEST))
# Multiples that leave nearly every rate in range.
MULTIPLES = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
DEPTHS = st.one_of(st.integers(1, 30), st.sampled_from([1, 2, 7, 8, 9, 12, 24, 48, 300]))


class Text(str):
    """A text of another class, as NumPy, enums and OmegaConf have them."""


@dataclass(frozen=True)
class Made:
    """A value by how it is made: Hypothesis could not write it out, or would take it for what it is equal to."""

    code: str

    def value(self) -> Any:
        return eval(self.code, {"np": np, "Text": Text, "Fraction": Fraction, "Decimal": Decimal, "datetime": datetime})


_MADE = [
    # Python refuses to write out whole numbers of more than 4,300 digits.
    *(
        "10**5000",
        "-(10**5000)",
        "Fraction(10**5000, 3)",
        "Fraction(1, 10**5000)",
        "Fraction(-(10**5000), 10**5001 + 1)",
    ),
    *("10**400", "-(10**400)", "2**63", "Fraction(1, 3)", "Decimal('1e-5')", "Decimal('nan')", "1e-5 + 0j", "5e-324"),
    *("Text('flat')", "Text('head')", "Text('1e-5')", "np.str_('flat')", "np.float32(0.5)", "np.float64('nan')"),
    *("np.float64(0.25)", "np.float16(1e-3)", "np.int64(3)", "np.bool_(True)", "np.longdouble('1e400')"),
    *("np.longdouble('1e-4000')", "np.array(0.5)", "np.array([1.0, 2.0])", "np.array([])", "np.array(['flat', 'x'])"),
    *("datetime.date(2024, 4, 1)", "range(3)", "object", "bytearray(b'ab')", "...", "{1.0}", "()", "[]", "{}"),
]
WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=3),
    st.sampled_from(["1e-5", "1_000", "1e400", "1e-400", "nan", "0x10", "010", "\u0967", "\ud800", "\0", "x" * 5000]),
    st.sampled_from(_MADE).map(Made),
).map(lambda value: value.value() if isinstance(value, Made) else value)

# Distributions -------------------------------------------------------------------------------------------

_NAMES = ["embeddings", "head", "layers.0", "layers.1", "layers.7", "layers.-1", "layers.-2"]
ENDS = st.one_of(st.sampled_from([*_NAMES, 0.0, 0.5, 1.0]), st.floats(0, 1))
_MAYBE_ENDS = st.one_of(st.none(), ENDS)
_SPREAD = st.binary(min_size=1, max_size=16).map(lambda data: [10.0 ** (byte / 25 - 9) for byte in data])
# One draw for many rates in most cases: a draw for each would be most of a case's time.
# Neighbours, between which rounding alone could leave the range; also where that would be no rate any more.
_NEAR = st.sampled_from([SMALLEST, math.nextafter(SMALLEST, 1), 2e-5, math.nextafter(2e-5, 1), LARGEST])
LAYERS = st.one_of(_SPREAD, st.lists(_NEAR, min_size=1, max_size=4), _SPREAD, st.lists(RATES, min_size=1, max_size=8))
LAYERS_OR_ZERO = st.one_of(LAYERS, LAYERS, st.lists(RATES_OR_ZERO, min_size=1, max_size=8))


@st.composite
def _edits(draw: st.DrawFn, rates: st.SearchStrategy[float]) -> Edit:
    """An edit that no number of layers is needed to accept."""
    first, last = draw(ENDS), draw(_MAYBE_ENDS)
    if last is None:
        last = first
    low, high = (end if isinstance(end, float) else _PLACES.get(end) for end in (first, last))
    if low is not None and high is not None and low > high:
        first, last = last, first
    return Edit(first, last, draw(rates))


_PLACES = {"embeddings": -1.0, "head": 2.0}


@functools.cache
def distributions(
    *,
    freezing: bool = True,
    relative: bool | None = None,
    means: int = 2,
    families: tuple[str, ...] = tuple(FAMILIES),
    max_edits: int = 2,
) -> st.SearchStrategy[LRDistribution]:
    """Distributions of any family.

    Args:
        freezing: whether rates of 0 may stand in them.
        relative: of which kind they are; None for either.
        means: how many levels of means within means there may be.
        families: the families to take.
        max_edits: how many edits one may have.
    """
    rates = RATES_OR_ZERO if freezing else RATES
    layers = LAYERS_OR_ZERO if freezing else LAYERS
    ten = st.one_of(
        st.binary(min_size=10, max_size=10).map(lambda data: [10.0 ** (byte / 25 - 9) for byte in data]),
        st.lists(rates, min_size=10, max_size=10),
    )
    edits = st.lists(_edits(rates), max_size=max_edits) if max_edits else st.just([])
    kinds = st.booleans() if relative is None else st.just(relative)
    names = st.sampled_from([name for name in families if name not in COMPOSED or means])

    @st.composite
    def build(draw: st.DrawFn) -> LRDistribution:
        family, kind = draw(names), draw(kinds)
        values: dict[str, Any] = {}
        if family in COMPOSED:
            parts = distributions(freezing=False, relative=kind, means=means - 1, max_edits=min(max_edits, 1))
            values["of"] = tuple(draw(_up_to_three(parts)))
            if family == "geometric_mean":
                values["weights"] = tuple(draw(_WEIGHTS)[: len(values["of"])])
        elif family == "grouped":
            values = dict(zip(GROUPED_KEYS, draw(ten), strict=True))
        else:
            for key in FAMILIES[family].rate_keys:
                values[key] = draw(layers if key == "layers" else rates)
            for key in FAMILIES[family].factor_keys:
                instead = [other for other, of in FAMILIES[family].instead.items() if of == key]
                values[draw(st.sampled_from([key, *instead]))] = draw(FACTORS)
        return LRDistribution(family, tuple(values.items()), kind, tuple(draw(edits)))

    return build()


@functools.cache
def _up_to_three(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(parts, min_size=1, max_size=3)


_WEIGHTS = st.one_of(
    st.just([1.0, 1.0, 1.0]), st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=3, max_size=3)
).map(lambda weights: [weights[0] or 1.0, *weights[1:]])


def has_text_form(distribution: LRDistribution) -> bool:
    """Every family has one, except those that are composed of others."""
    return distribution.family not in COMPOSED


# Presets -------------------------------------------------------------------------------------------------

_LINES = st.one_of(
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20),
    st.sampled_from(
        ["1e-5", "08", "null", "~", "12:30", "true", "- a", "a: b", "#", "<<", "'", '"', "a  b", "x" * 150]
    ),
)
_COUNTS = st.one_of(st.none(), st.integers(1, 10**9))
PRESETS = st.builds(
    Preset,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True),
    purpose=_LINES,
    distribution=distributions(means=1),
    provenance=st.builds(
        Provenance,
        source=_LINES,
        model=_LINES,
        tasks=st.lists(_LINES, min_size=1, max_size=3),
        trials=_COUNTS,
        seeds=_COUNTS,
        version=_LINES,
        date=st.dates().map(str),
        evidence=st.lists(_LINES, min_size=1, max_size=3),
    ),
)

_KEYS = st.one_of(
    st.text(max_size=4), st.integers(), st.sampled_from(["edits", "relative", "lr", "of", "weights", Made("10**5000")])
).map(lambda key: key.value() if isinstance(key, Made) else key)

# What is nearly right ------------------------------------------------------------------------------------


@st.composite
def spoiled(draw: st.DrawFn, plain: st.SearchStrategy[Any], wild: st.SearchStrategy[Any] = WILD) -> Any:
    """Plain data (dicts, lists, values) with one to three values replaced, removed, added or moved."""
    data = copy.deepcopy(draw(plain))
    for _ in range(draw(st.integers(1, 3))):
        boxes = _boxes(data)
        box = boxes[draw(st.integers(0, len(boxes) - 1))]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add", "swap", "nest"]))
        if isinstance(box, dict):
            keys = [*box] or ["family"]
            key = draw(st.sampled_from(range(len(keys))).map(keys.__getitem__))
            if action == "remove":
                box.pop(key, None)
            elif action == "add":
                box[draw(_KEYS)] = draw(wild)
            elif action == "swap":
                other = draw(st.sampled_from(range(len(keys))).map(keys.__getitem__))
                box[key], box[other] = box.get(other), box.get(key)
            else:
                box[key] = [box.get(key)] if action == "nest" else draw(wild)
        elif action == "remove" and box:
            del box[draw(st.integers(0, len(box) - 1))]
        elif action == "add" or not box:
            box.append(draw(wild))
        else:
            position = draw(st.integers(0, len(box) - 1))
            box[position] = [box[position]] if action == "nest" else draw(wild)
    return data


def _boxes(data: Any) -> list[Any]:
    """Every dict and list in `data`, itself first."""
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    own = [data] if isinstance(data, (dict, list)) else []
    return own + [box for value in inner for box in _boxes(value)]


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[str], pieces: Sequence[str]) -> str:
    """A text after one to five small changes: pieces put in, spans left out, doubled or moved."""
    text = draw(whole)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.integers(0, 12)))
        action = draw(st.sampled_from(["insert", "replace", "remove", "double", "move"]))
        if action in ("insert", "replace"):
            piece = draw(st.one_of(st.sampled_from(pieces), st.sampled_from(pieces), st.text(max_size=3)))
            text = text[:start] + piece + text[start if action == "insert" else stop :]
        elif action == "remove":
            text = text[:start] + text[stop:]
        elif action == "double":
            text = text[:stop] + text[start:]
        else:
            rest = text[:start] + text[stop:]
            place = draw(st.integers(0, len(rest)))
            text = rest[:place] + text[start:stop] + rest[place:]
    return text


TEXT_PIECES = [
    *FAMILIES,
    *("lr", "factor", "first", "last", "freeze", "relative", "true", "head", "embeddings", "layers", "layers.-1"),
    *(*":,=/- .", "..", "0", "0.5", "1e-4", "1e999", "1e-999", "nan", "inf", "1_0", "+", "٣", "\0", "\ud800", "e"),
    *("layers.99999999", "9" * 400, "0." + "0" * 400 + "1", "\n", "\u2028"),
]
NEAR_TEXTS = st.one_of(
    mutated(distributions().map(str), TEXT_PIECES),
    mutated(distributions().map(str), TEXT_PIECES),
    st.lists(st.sampled_from(TEXT_PIECES), max_size=14).map("".join),
    st.text(max_size=40),
)
YAML_PIECES = [
    *("a", "lr", "family", "flat", "edits", "from", "of", "relative: true", "<<", "<<: *a", "&a ", "*a", "? ", "- "),
    *("!!python/object/apply:os.system", "!!binary ", "!x ", "! ", "%YAML 1.1\n---\n", "%TAG ! a\n", "---", "..."),
    *("1_000", "0o17", "010", "0x1F", "1e400", "1e-400", "1e-5", ".nan", ".inf", "-.inf", "2024-01-01", "12:30:00"),
    *("yes", "~", "null", "true", "9" * 400, "1" + "0" * 5000, "|\n ", "|+2\n", ">-\n  ", "'", '"', "\\x00", "\\ud800"),
    *("\\U0001F600", "\\UFFFFFFFF", "\x85", "\u2028", "\ufeff", "\0", "\ud800", "\t", "\r", "\n", "\n  ", "\n- ", ": "),
    *(*"{}[],:#@`%&*!|>\\", "[" * 40, "{a: " * 40, "- " * 40, "a: &x [*x, *x]"),
]


def close(actual: float, expected: float, tolerance: float) -> bool:
    """Whether two rates are equal up to a relative rounding; 0 is only equal to 0."""
    return math.isclose(actual, expected, rel_tol=tolerance, abs_tol=0.0)
