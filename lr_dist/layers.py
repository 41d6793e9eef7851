"""Which parameter of a model sits at which depth.

Depth 0 is the input end: `embeddings`, `layers.0` ... `layers.N-1`, `head`. The layers are found in the module tree
and checked against the config; what lies outside them is placed by the flow of data in the source of `forward`
(before the first layer: embeddings, after the last: head), and by its name only where the source is silent. What
stays in doubt is an error that shows the override.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from lr_dist._layers.stacks import (
    Parameter,
    Side,
    Stack,
    Tree,
    clean_name,
    common_prefix,
    find_stacks,
    layer_beside,
    receives,
    side_of,
    stages_around,
)
from lr_dist.errors import InvalidOverrideError, LayersNotFoundError, UnplacedParametersError, shown
from lr_dist.names import group_names

__all__ = ["LayerMap", "Overrides", "assign_layers", "clean_name", "group_names"]

Overrides = Mapping[str, str] | Sequence[tuple[str, str]]

_MAX_NAMED = 10
_IN_DOUBT = -1
# Names that mean one thing in every model that we know. `norm` and `layer_norm` are not among them.
_EMBEDDING_NAME = re.compile(
    r"embed(?!_out)|(^|_)(wte|wpe|emb|shared|(cls|dist|mask|register)_tokens?|pos_enc\w*)$"
    r"|^(relative_attention_bias|prompt_encoder|feature_extractor|feature_projection)$"
)
_HEAD_NAME = re.compile(
    r"^(lm_head|classifier|score|pooler|heads?|qa_outputs|cls|fc_norm|ln_f|norm_f|ln_post|vocab_\w+|logit_scale"
    r"|final_(layer_?)?norm|post_layernorm|embed_out|lm_loss|\w+_head)$"
)


@dataclass(frozen=True)
class LayerMap:
    """The parameters of a model by depth.

    Attributes:
        num_layers: N; an encoder-decoder counts its encoder's layers, then its decoder's.
        groups: All N+2 groups from the input to the output -> names as in `model.named_parameters()`. A tied
            weight is in the shallowest of its places, once. A group may be empty.
    """

    num_layers: int
    groups: dict[str, tuple[str, ...]]

    @property
    def group_of(self) -> dict[str, str]:
        """Name of a parameter -> its group."""
        return {name: group for group, names in self.groups.items() for name in names}


def assign_layers(model: nn.Module, overrides: Overrides | None = None) -> LayerMap:
    """Finds the depth of every parameter of a transformer.

    Works for any module that holds one stack of layers, or an encoder's and a decoder's, wherever it is: bare, with
    a task head, in a LightningModule, compiled, with PEFT adapters. Nothing is run, so meta tensors are fine.

    Args:
        model: The model.
        overrides: Ordered map of regular expression -> group (`embeddings`, `layers.K`, `head`; a negative K counts
            from the last layer). Searched in the clean names (`clean_name`); the first that matches decides, before
            everything else. A stack of layers that overrides cover is no longer one.

    Returns:
        The map. Every trainable parameter is in exactly one group; a frozen one that cannot be placed is left out.

    Raises:
        LayersNotFoundError: No stack of layers, or several that do not follow each other (CLIP's two towers).
        UnplacedParametersError: Trainable parameters whose depth is in doubt.
        InvalidOverrideError: An override that is malformed, names no group of the model, or matches nothing.

    Example:
        >>> layers = assign_layers(BertForSequenceClassification(config))
        >>> layers.group_of["bert.pooler.dense.weight"]
        'head'
    """
    if not isinstance(model, nn.Module):
        raise LayersNotFoundError(f"expected a torch.nn.Module, got {type(model).__name__}: {model!r:.80}")
    rules = _compile(overrides)
    tree = Tree(model)
    stacks, ignored = find_stacks(tree, lambda parameter: _overriding(parameter, rules) is not None)
    num_layers = sum(stack.depth for stack in stacks)
    names = group_names(num_layers)
    targets = [_resolve(group, num_layers, pattern.pattern) for pattern, group in rules]
    _check_all_match(tree, rules)

    groups: dict[str, list[str]] = {name: [] for name in names}
    unplaced = []
    for parameter in tree.parameters:
        rule = _overriding(parameter, rules)
        depth = targets[rule] if rule is not None else _depth(tree, parameter, stacks, ignored)
        if depth is not None:
            groups[names[depth]].append(parameter.name)
        elif parameter.value.requires_grad:
            unplaced.append(parameter)
    if unplaced:
        raise UnplacedParametersError(_unplaced(unplaced, stacks))
    return LayerMap(num_layers, {name: tuple(members) for name, members in groups.items()})


# Places --------------------------------------------------------------------------------------------------


def _depth(tree: Tree, parameter: Parameter, stacks: list[Stack], ignored: list[Stack]) -> int | None:
    """The shallowest of the depths of a parameter's names; None if all are in doubt."""
    depths = [
        _depth_of_name(tree, alias, stacks)
        for alias in parameter.aliases
        if _nearness(alias, ignored) <= _nearness(alias, stacks)
    ]
    return min((depth for depth in depths if depth is not None), default=None)


def _nearness(name: str, stacks: list[Stack]) -> int:
    """How many leading parts a name shares with the nearest of the stacks."""
    paths = [path for stack in stacks for path in stack.paths]
    return max((common_prefix(name.split("."), path.split(".")) for path in paths), default=0)


def _depth_of_name(tree: Tree, name: str, stacks: list[Stack]) -> int | None:
    head = 1 + sum(stack.depth for stack in stacks)
    parts = name.split(".")
    last, shared = 0, -1
    nearest: list[_Near] = []
    for position, stack in enumerate(stacks):
        first, last = last + 1, last + stack.depth
        for path in stack.paths:
            stack_parts = path.split(".") if path else []
            prefix = common_prefix(parts, stack_parts)
            if prefix == len(stack_parts) and parts[prefix] in stack.keys:
                return first + stack.layer(parts[prefix])
            if prefix > shared:
                nearest, shared = [], prefix
            if prefix == shared and position not in [near.position for near in nearest]:
                nearest.append(_Near(position, path, side_of(tree, name, path), first, last))

    alternating = _alternating(tree, parts, nearest, head)
    if alternating is not None:
        return alternating if alternating != _IN_DOUBT else None
    if len(nearest) > 1:
        return _beside_several(tree, name, shared, nearest, head)
    (near,) = nearest
    match near.side:
        case "before":
            previous = stacks[near.position - 1].paths[0] if near.position else None
            if previous is None or not receives(tree, name, previous):
                return 0
            return near.first - 1 if _is_step(tree, parts, shared, previous, near.path) else None
        case "after" if near.last == head - 1:
            return head
        case "after":
            # That the next stack gets it is not known (it does not get an encoder's pooler), except of a norm.
            following = stacks[near.position + 1].paths[0]
            closes = len(parts) == shared + 2 or stages_around(tree, near.path, following) is not None
            return near.last if closes else None
        case "reused":
            # An output projection that is the embedding matrix, a position added again; anything else is in doubt.
            return 0 if _by_name(tree, name, shared, head) == 0 else None
        case "between":
            return _beside_layer(tree, name, near)
        case None:
            return _by_name(tree, name, shared, head)
    return None


def _beside_layer(tree: Tree, name: str, near: _Near) -> int | None:
    """The depth of what is called among the layers of a stack, by a loop over them; None if that is not known."""
    where = layer_beside(tree, name, near.path)
    return near.first + where if isinstance(where, int) and near.first + where <= near.last else None


class _Near(NamedTuple):
    """A stack that shares the most leading parts with a name: which one, its path, and the name's side of it."""

    position: int
    path: str
    side: Side | None
    first: int
    last: int


def _beside_several(tree: Tree, name: str, shared: int, nearest: list[_Near], head: int) -> int | None:
    """The depth of what stands beside an encoder and a decoder, or beside stages."""
    sides = [near.side for near in nearest]
    if sides[0] == "before":
        return 0
    if sides[-1] == "after" or (sides[-1] == "unrelated" and "after" in sides and "before" not in sides):
        return head
    if sides[0] in (None, "unrelated") and "before" in sides and "after" not in sides:
        return 0
    passed = sides.count("after")
    if sides == ["after"] * passed + ["before"] * (len(sides) - passed):
        closed, following = nearest[passed - 1 : passed + 1]
        return closed.last if _is_step(tree, name.split("."), shared, closed.path, following.path) else None
    return _by_name(tree, name, shared, head) if set(sides) == {None} else None


def _is_step(tree: Tree, parts: list[str], shared: int, first: str, second: str) -> bool:
    """Whether what comes between two stacks is a mere step, which belongs to the last layer of the first.

    A whole network there (FastSpeech's duration predictors) has a depth of its own, unless it lies between two stages.
    """
    if stages_around(tree, first, second) is not None:
        return True
    module = tree.modules.get(".".join(parts[: shared + 1]))
    inside = module.modules() if module is not None else ()
    return not any(isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1 for m in inside)


def _alternating(tree: Tree, parts: list[str], nearest: list[_Near], head: int) -> int | None:
    """The depth of an entry of a list that alternates with layers (XLM's norms) or with stages (PVT's patches, Twins').

    Returns:
        None: it is no such entry. _IN_DOUBT: it acts among the layers of a stage, it is not known where.
    """
    for at, key in enumerate(parts):
        entries = tree.modules.get(".".join(parts[:at]))
        if at == 0 or not isinstance(entries, nn.ModuleList | nn.ParameterList) or not key.isdigit():
            continue
        for near in nearest:
            partner = near.path.split(".")[:at]
            layers = tree.modules.get(".".join(partner))
            same = partner[:-1] == parts[: at - 1] and partner != parts[:at] and isinstance(layers, nn.ModuleList)
            missing = len(layers) - len(entries) if same and isinstance(layers, nn.ModuleList) else None
            if (missing, near.side) not in ((0, "reused"), (0, "between"), (1, "between")):
                continue
            if len(partner) == len(near.path.split(".")):
                return near.first + int(key)
            stage = next((other for other in nearest if other.path.split(".")[at] == key), None)
            if stage is not None and layer_beside(tree, ".".join(parts), stage.path) is not None:
                return _beside_layer(tree, ".".join(parts), stage) or _IN_DOUBT
            # Of a stage: what comes before it belongs to the layer before it, what comes after it to its last one.
            stages = {int(other.path.split(".")[at]): other for other in nearest}
            reached = [other.last for stage, other in stages.items() if stage < int(key) + (near.side == "between")]
            depth = max(reached, default=0)
            return head if depth == head - 1 else depth
    return None


def _by_name(tree: Tree, name: str, shared: int, head: int) -> int | None:
    """What the name says, from the outermost part on that is not shared with the stack."""
    parts = name.split(".")
    for part in parts[shared:]:
        if _EMBEDDING_NAME.search(part):
            return 0
        if _HEAD_NAME.search(part):
            return head
    return 0 if isinstance(tree.modules[".".join(parts[:-1])], nn.Embedding) else None


def _unplaced(parameters: list[Parameter], stacks: list[Stack]) -> str:
    names = [clean_name(parameter.name) for parameter in parameters]
    listed = ", ".join(names[:_MAX_NAMED])
    if len(names) > _MAX_NAMED:
        listed += f" and {len(names) - _MAX_NAMED} more"
    rules: dict[str, None] = {}
    for name in names:
        path = ".".join(name.split(".")[: _nearness(name, stacks) + 1])
        rules[f"^{re.escape(path)}{'$' if path == name else chr(92) + '.'}"] = None
    shown = ", ".join(f'r"{rule}": "head"' for rule in list(rules)[:_MAX_NAMED])
    return (
        f"no depth is known for {len(names)} trainable parameter(s): {listed}. Say where they belong "
        f'("embeddings", "layers.K" or "head"), for example overrides={{{shown}}}'
    )


# Overrides -----------------------------------------------------------------------------------------------


def _compile(overrides: Overrides | None) -> list[tuple[re.Pattern[str], str]]:
    if overrides is None:
        return []
    if isinstance(overrides, str) or not isinstance(overrides, Mapping | Sequence):
        raise InvalidOverrideError(f"overrides must map a regular expression to a group, got {shown(overrides)}")
    rules = []
    for item in overrides.items() if isinstance(overrides, Mapping) else overrides:
        if not isinstance(item, list | tuple) or len(item) != 2 or not all(isinstance(x, str) for x in item):
            raise InvalidOverrideError(f"an override is a pair (regular expression, group), got {shown(item)}")
        try:
            rules.append((re.compile(item[0]), item[1]))
        except (re.error, ValueError, OverflowError, RecursionError) as error:
            raise InvalidOverrideError(f"override {shown(item[0])} is no regular expression: {error!s:.300}") from None
    return rules


def _overriding(parameter: Parameter, rules: list[tuple[re.Pattern[str], str]]) -> int | None:
    for index, (pattern, _) in enumerate(rules):
        if any(pattern.search(alias) for alias in parameter.aliases):
            return index
    return None


def _resolve(group: str, num_layers: int, pattern: str) -> int:
    """Depth of a group's name: 0 for embeddings, 1 + K for `layers.K`, N + 1 for the head."""
    if group in ("embeddings", "head"):
        return 0 if group == "embeddings" else num_layers + 1
    match = re.fullmatch(r"layers\.(-?\d{1,9})", group, re.ASCII)
    if match is not None and -num_layers <= int(match[1]) < num_layers:
        return 1 + int(match[1]) % num_layers
    raise InvalidOverrideError(
        f"override {shown(pattern)} names the group {shown(group)}; this model has embeddings, layers.0 to "
        f"layers.{num_layers - 1} (layers.-1 is the last) and head"
    )


def _check_all_match(tree: Tree, rules: list[tuple[re.Pattern[str], str]]) -> None:
    aliases = [alias for parameter in tree.parameters for alias in parameter.aliases]
    for pattern, _ in rules:
        if not any(pattern.search(alias) for alias in aliases):
            raise InvalidOverrideError(
                f"override {shown(pattern.pattern)} matches no parameter; the names look like {', '.join(aliases[:3])}"
            )
