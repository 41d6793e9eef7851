"""Whatever regexes a user writes: every parameter is in one group, where the rules say, or an error is ours."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import tiny
from generated import WILD, distributions
from harness import cases, ours
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from lr_dist import LRDistribution, assign_layers, param_groups
from lr_dist.errors import InvalidNoDecayError, InvalidOverrideError, LRDistError, UnplacedParametersError
from lr_dist.layers import LayerMap, clean_name
from lr_dist.names import NO_DECAY, group_names


class Wrapped(nn.Module):
    """A transformer of torch beside modules that no rule places."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.mystery = nn.Linear(8, 8)
        self.scale = nn.Parameter(nn.init.ones_(nn.Parameter(tiny.torch.empty(1))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": tiny.bert,
    "gpt2, tied": lambda: GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20, n_positions=8)),
    "t5, two stacks": lambda: T5ForConditionalGeneration(
        T5Config(num_layers=2, d_model=8, d_kv=4, d_ff=8, num_heads=2, vocab_size=20, decoder_start_token_id=0)
    ),
    "unplaced": Wrapped,
}


@functools.cache
def model(kind: str) -> nn.Module:
    return MODELS[kind]()


def names_of(module: nn.Module) -> dict[str, set[str]]:
    """Every parameter's name in `named_parameters()` -> all names that rules are searched in."""
    aliases: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), set()).add(clean_name(name))
    return {name: aliases[id(parameter)] for name, parameter in module.named_parameters()}


def thaw(module: nn.Module) -> None:
    """As the model was before any case."""
    for parameter in module.parameters():
        parameter.requires_grad_(True)
        vars(parameter).pop("_lr_dist_frozen", None)


KINDS = st.sampled_from([*MODELS])
_NAMES = sorted({name for kind in MODELS for names in names_of(model(kind)).values() for name in names})
_WORDS = sorted({word for name in _NAMES for word in name.split(".")})
_META = [
    *".*+?^$|()[]{}\\",
    "(?:",
    "(?i)",
    "(?=",
    "(?!",
    "(?P<a>",
    "(?P=a)",
    "\\1",
    "\\d",
    "\\b",
    "[^.]",
    "{2}",
    "{,3}",
    "[a-",
]
_META += [
    "{99999999999999999999}",
    "(?#",
    "(?a",
    "(?L)",
    "\\N{",
    "\\ud800",
    "\ud800",
    "\0",
    "(" * 300,
    "[[",
    "&&",
    "é",
    "\n",
]
# Regexes as people write them, and ones that are nearly so.
REGEXES = st.one_of(
    st.sampled_from(_WORDS),
    st.sampled_from(_NAMES).map(lambda name: f"^{re.escape(name)}$"),
    st.sampled_from(_WORDS).map(lambda word: rf"(^|\.){word}(\.|$)"),
    st.lists(st.sampled_from([*_WORDS, *_META, *_META]), min_size=1, max_size=5).map("".join),
    st.sampled_from(
        ["", ".", ".*", "bias$", "weight", r"\.\d\.", "encoder|decoder", "nowhere", "(?i)LAYERNORM", "mystery|scale"]
    ),
)
GROUPS = st.one_of(
    st.sampled_from([*group_names(3), "layers.-1", "layers.-2", "embeddings", "head"]),
    st.sampled_from(
        ["layers.9", "layers.-9", "layers.01", "layers.", "Head", "", "layers.1e1", "layers.९", "embedding"]
    ),
)
PAIRS = st.lists(st.tuples(REGEXES, GROUPS), max_size=4)


@functools.cache
def fitting_regexes(kind: str) -> st.SearchStrategy[str]:
    """Regexes that match something in the model."""
    names = sorted({name for aliases in names_of(model(kind)).values() for name in aliases})
    words = sorted({word for name in names for word in name.split(".") if not word.isdigit()})
    one = st.sampled_from(names)
    return st.one_of(
        one.map(lambda name: f"^{re.escape(name)}$"),
        one.map(lambda name: re.escape(name.rpartition(".")[0]) or "."),
        st.sampled_from(words),
        st.sampled_from(words).map(lambda word: rf"(^|\.){word}(\.|$)"),
        st.tuples(one, st.integers(0, 20), st.integers(1, 12)).map(lambda n: re.escape(n[0][n[1] :][: n[2]]) or "."),
    )


@st.composite
def overrides_of(draw: st.DrawFn, kind: str) -> Any:
    """Rules as a mapping, pairs or lists: two in three fit the model."""
    pairs = draw(
        PAIRS
        if draw(st.integers(0, 2)) == 2
        else st.lists(
            st.tuples(
                fitting_regexes(kind), st.sampled_from(["embeddings", "head", "layers.0", "layers.1", "layers.-1"])
            ),
            max_size=3,
        )
    )
    if kind == "unplaced" and draw(st.booleans()):
        pairs = [*pairs, ("mystery|scale", "head")]
    return draw(st.sampled_from([dict, list, lambda pairs: [list(pair) for pair in pairs] or None]))(pairs)


@st.composite
def no_decay_of(draw: st.DrawFn, kind: str) -> Any:
    """Regexes of undecayed parameters, most of them fitting; or the default."""
    regexes = REGEXES if draw(st.integers(0, 3)) == 3 else fitting_regexes(kind)
    return draw(st.one_of(st.none(), st.lists(regexes, max_size=3), st.lists(regexes, max_size=3).map(tuple)))


def assert_every_parameter_once(module: nn.Module, layers: LayerMap, overrides: Any) -> None:
    assert list(layers.groups) == group_names(layers.num_layers)
    placed = [name for members in layers.groups.values() for name in members]
    assert sorted(placed) == sorted(name for name, _ in module.named_parameters())
    rules = [*(overrides.items() if isinstance(overrides, dict) else overrides or ())]
    for name, aliases in names_of(module).items():
        for pattern, group in rules:
            if any(re.search(pattern, alias) for alias in aliases):
                index = re.fullmatch(r"layers\.(-\d+)", group)
                expected = f"layers.{layers.num_layers + int(index[1])}" if index else group
                assert layers.group_of[name] == (
                    f"layers.{int(expected[7:])}" if expected[:7] == "layers." else expected
                )
                break


@cases(180)
@given(KINDS.flatmap(lambda kind: st.tuples(st.just(kind), overrides_of(kind))))
def test_overrides_that_pass_place_every_parameter_exactly_once_and_the_first_match_decides(
    case: tuple[str, Any],
) -> None:
    kind, overrides = case
    module = model(kind)
    thaw(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # re warns of "[[", which will mean something else one day
        layers = ours(assign_layers, module, overrides)
        if isinstance(layers, LayerMap):
            assert_every_parameter_once(module, layers, overrides)
        elif not overrides:
            assert isinstance(layers, UnplacedParametersError)
            assert kind == "unplaced"


@cases(120)
@given(
    KINDS.flatmap(lambda kind: st.tuples(st.just(kind), overrides_of(kind), no_decay_of(kind))),
    distributions(means=1, max_edits=1),
    st.one_of(st.just(0.0), st.just(0.1), st.floats(0, 1)),
    st.one_of(st.floats(1e-6, 1), st.floats(1e-6, 1), st.none()),
)
def test_parameter_groups_hold_every_trainable_parameter_once_at_its_layers_rate(
    case: tuple[str, Any, Any], distribution: LRDistribution, weight_decay: float, lr: float | None
) -> None:
    kind, overrides, no_decay = case
    module = model(kind)
    thaw(module)
    options = {"overrides": overrides, "no_decay": no_decay, "weight_decay": weight_decay, "lr": lr}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        groups = ours(param_groups, module, distribution, **options)
        if isinstance(groups, LRDistError):
            return
        thaw(module)
        layers = assign_layers(module, overrides)
    rates = (distribution.absolute(lr) if distribution.relative else distribution).rates(layers.num_layers)
    param_groups(module, distribution, **options)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.parameters() if parameter.requires_grad)
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    for group in groups:
        layer = group["name"].removesuffix(NO_DECAY)
        assert group["lr"] == rates[layer] > 0
        assert all(layers.group_of[named[id(parameter)]] == layer for parameter in group["params"])
        assert group["weight_decay"] == (0.0 if group["name"].endswith(NO_DECAY) else weight_decay)
        for parameter in group["params"]:
            undecayed = (
                parameter.ndim < 2
                if no_decay is None
                else any(re.search(pattern, clean_name(named[id(parameter)])) for pattern in no_decay)
            )
            assert group["name"].endswith(NO_DECAY) == (undecayed and weight_decay > 0)
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (rates[layers.group_of[name]] > 0)


ANY_RULES = st.one_of(
    WILD,
    st.lists(st.one_of(WILD, st.tuples(WILD, WILD), st.tuples(REGEXES, WILD), st.tuples(WILD, GROUPS)), max_size=3),
    st.dictionaries(REGEXES, WILD, max_size=2),
    st.lists(REGEXES, max_size=2),
    REGEXES,
)


@cases(150)
@given(KINDS, ANY_RULES, ANY_RULES, WILD, WILD)
def test_no_argument_raises_anything_but_an_error_of_ours_or_changes_the_model(
    kind: str, overrides: Any, no_decay: Any, weight_decay: Any, lr: Any
) -> None:
    module = model(kind)
    thaw(module)
    flat, frozen = "flat:lr=1e-3,relative=true", "flat:lr=1e-3,freeze=embeddings"
    for call in (
        lambda: assign_layers(module, overrides),
        lambda: param_groups(module, frozen, overrides=overrides),
        lambda: param_groups(module, frozen, no_decay=no_decay),
        lambda: param_groups(module, frozen, weight_decay=weight_decay),
        lambda: param_groups(module, flat, lr=lr),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = ours(call)
        if isinstance(result, list):
            assert all(math.isfinite(group["lr"]) and math.isfinite(group["weight_decay"]) for group in result)
            thaw(module)
        else:
            assert all(parameter.requires_grad for parameter in module.parameters())


def test_each_kind_of_a_regex_that_cannot_work_is_named() -> None:
    for pattern in ("(", "[a-", "a{99999999999999999999}", "(?P=a)", "(" * 5000, "\\N{", "*"):
        for call in (
            lambda pattern=pattern: assign_layers(model("bert"), {pattern: "head"}),
            lambda pattern=pattern: param_groups(model("bert"), "flat:lr=1", weight_decay=0.1, no_decay=[pattern]),
        ):
            assert isinstance(ours(call), (InvalidOverrideError, InvalidNoDecayError)), pattern
