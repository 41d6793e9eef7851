"""The depth of a parameter outside the stack of layers: from the data flow, or else from its name."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

from lr_dist._layers.chains import stages_around
from lr_dist._layers.sides import Side, joins_after, layer_beside, receives, side_of
from lr_dist._layers.tree import Parameter, Stack, Tree, common_prefix

_IN_DOUBT = -1
# Names with the same meaning in every model that we know. `norm` and `layer_norm` are not among them.
_EMBEDDING_NAME = re.compile(
    r"embed(?!_out)|(^|_)(wte|wpe|emb|shared|(cls|dist|mask|register)_tokens?|pos_enc\w*)$"
    r"|^(relative_attention_bias|prompt_encoder|feature_extractor|feature_projection)$"
)
_HEAD_NAME = re.compile(
    r"^(lm_head|classifier|score|pooler|heads?|qa_outputs|cls|fc_norm|ln_f|norm_f|ln_post|vocab_\w+|logit_scale"
    r"|final_(layer_?)?norm|post_layernorm|embed_out|lm_loss|\w+_head)$"
)
# Names of tables and positions; used only in guesses.
_TABLE_NAME = re.compile(r"(^|_)pos(ition)?(s|al)?(_|$)|embed(?!_out)|token|(^|_)(emb|wte|wpe)$")


def depth_of(tree: Tree, parameter: Parameter, stacks: list[Stack], ignored: list[Stack]) -> int | None:
    """The depth of a parameter; of a tied one, the shallowest of its names' depths. None if it is not known."""
    depths = [
        _depth_of_name(tree, alias, stacks)
        for alias in parameter.aliases
        if nearness(alias, ignored) <= nearness(alias, stacks)
    ]
    return min((depth for depth in depths if depth is not None), default=None)


def nearness(name: str, stacks: list[Stack]) -> int:
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
            # The next stack receives a norm's output, but perhaps not another's: a decoder gets no encoder's pooler.
            following = stacks[near.position + 1].paths[0]
            closes = len(parts) == shared + 2 or stages_around(tree, near.path, following) is not None
            return near.last if closes else None
        case "reused":
            # An output projection tied to the embeddings, or positions that are added again; anything else is unknown.
            return 0 if _by_name(tree, name, shared, head) == 0 else None
        case "between":
            return _beside_layer(tree, name, near)
        case None:
            return _by_name(tree, name, shared, head)
    return None


def _beside_layer(tree: Tree, name: str, near: _Near) -> int | None:
    """The depth of a module that is called in the loop over a stack's layers; None if it is not known."""
    where = layer_beside(tree, name, near.path)
    return near.first + where if isinstance(where, int) and near.first + where <= near.last else None


class _Near(NamedTuple):
    """A stack that shares the most leading parts with a name: its position and path, and the name's side of it."""

    position: int
    path: str
    side: Side | None
    first: int
    last: int


def _beside_several(tree: Tree, name: str, shared: int, nearest: list[_Near], head: int) -> int | None:
    """The depth of a parameter that is equally near to several stacks: an encoder and a decoder, or stages."""
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
    """Whether a module between two stacks is a small step that belongs to the first stack's last layer.

    A larger network (FastSpeech's duration predictors) has its own depth, unless it lies between two stages.
    """
    if stages_around(tree, first, second) is not None:
        return True
    return _is_small(tree, parts[: shared + 1])


def _alternating(tree: Tree, parts: list[str], nearest: list[_Near], head: int) -> int | None:
    """The depth of an entry of a list that alternates with layers (XLM's norms) or with stages (PVT's patches, Twins').

    Returns:
        None if it is not such an entry; _IN_DOUBT if it acts among the layers of a stage, but it is not known where.
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
            # Before a stage, an entry belongs to the layer before it; after a stage, to the stage's last layer.
            stages = {int(other.path.split(".")[at]): other for other in nearest}
            reached = [other.last for stage, other in stages.items() if stage < int(key) + (near.side == "between")]
            depth = max(reached, default=0)
            return head if depth == head - 1 else depth
    return None


def _by_name(tree: Tree, name: str, shared: int, head: int) -> int | None:
    """The depth by the name alone, from the outermost part that is not shared with the stack."""
    parts = name.split(".")
    for part in parts[shared:]:
        if _EMBEDDING_NAME.search(part):
            return 0
        if _HEAD_NAME.search(part):
            return head
    return 0 if isinstance(tree.modules[".".join(parts[:-1])], nn.Embedding) else None


def guess(tree: Tree, name: str, stacks: list[Stack]) -> int | None:
    """A likely depth of a parameter whose depth is not known; None if nothing suggests one.

    It is printed as an override in the error, and never used.
    """
    parts = name.split(".")
    near = nearness(name, stacks)
    last = 0
    sides: list[Side | None] = []
    for stack in stacks:
        last += stack.depth
        side = side_of(tree, name, stack.paths[0])
        if side == "after" and nearness(name, [stack]) == near and stack is not stacks[-1]:
            return last  # between an encoder and a decoder
        sides.append(side)
    if "reused" in sides:
        # Used on both sides, like a tied weight: the shallowest place.
        return 0 if (sides[0] == "reused" and near > 0) or len(stacks) == 1 else None
    if "between" in sides:
        return None
    table = isinstance(tree.modules.get(".".join(parts[:-1])), nn.Embedding)
    if all(joins_after(tree, name, stack.paths[0]) for stack in stacks):
        return last + 1 if not table and _is_small(tree, parts[: near + 1]) else None
    table = table or any(_TABLE_NAME.search(part) for part in parts[near:])
    return 0 if table and "after" not in sides else None


def _is_small(tree: Tree, path: list[str]) -> bool:
    """Whether a module holds no network of several layers, which would have its own depth."""
    module = tree.modules.get(".".join(path))
    inside = module.modules() if module is not None else ()
    return not any(isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1 for m in inside)
