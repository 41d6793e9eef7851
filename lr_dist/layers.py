"""Which parameter of a model sits at which depth.

Depth 0 is the input end: `embeddings`, `layers.0` ... `layers.N-1`, `head`. The layers are found in the module tree
and checked against the config. Other parameters are placed by the data flow in the source of `forward` (before the
first layer: embeddings, after the last: head), and by their name only if the source does not show it. If a parameter
still has no place, the error shows the override to use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from lr_dist._layers import advice
from lr_dist._layers.places import depth_of, guess, nearness
from lr_dist._layers.sides import side_of
from lr_dist._layers.stacks import SeveralStacksError, find_stacks
from lr_dist._layers.tree import Parameter, Stack, Tree, clean_name, is_below
from lr_dist.errors import (
    InvalidOverrideError,
    InvalidStacksError,
    LayersNotFoundError,
    LRDistError,
    UnplacedParametersError,
    shown,
)
from lr_dist.names import group_depth, group_names

__all__ = ["LayerMap", "Overrides", "Stacks", "assign_layers", "clean_name", "group_names", "layer_modules"]

Overrides = Mapping[str, str] | Sequence[tuple[str, str]]
# Submodules that each have their own depth ("towers"): their paths, or name -> path.
Stacks = Sequence[str] | Mapping[str, str]

_Rules = list[tuple[re.Pattern[str], str]]


@dataclass(frozen=True)
class LayerMap:
    """The parameters of a model by depth.

    Attributes:
        num_layers: N; an encoder-decoder counts its encoder's layers, then its decoder's. With several towers, the sum.
        groups: All N+2 groups from the input to the output -> names as in `model.named_parameters()`. A tied weight is
            listed once, at the shallowest of its places. A group may be empty. With several towers, each has its own
            N+2 groups (`vision/embeddings`, `vision/layers.0`, ...), and the last group, `head`, is common to them.
        towers: Name of a tower -> its number of layers; empty without `stacks`.
    """

    num_layers: int
    groups: dict[str, tuple[str, ...]]
    towers: dict[str, int] = field(default_factory=dict)

    @property
    def group_of(self) -> dict[str, str]:
        """Name of a parameter -> its group."""
        return {name: group for group, names in self.groups.items() for name in names}

    @property
    def deepest(self) -> int:
        """The number of layers on the longest path through the model."""
        return max(self.towers.values(), default=self.num_layers)

    def rates(self, rates_of: Callable[[int], Mapping[str, float]]) -> dict[str, float]:
        """The rate of every group; each tower has the rates for its own number of layers.

        Args:
            rates_of: `LRDistribution.rates`: a number of layers -> the rate of each group.
        """
        if not self.towers:
            return dict(rates_of(self.num_layers))
        rates = {
            f"{tower}/{group}": rate for tower, depth in self.towers.items() for group, rate in rates_of(depth).items()
        }
        # The head has the same relative depth in every tower.
        return rates | {"head": rates_of(next(iter(self.towers.values())))["head"]}


def assign_layers(model: nn.Module, overrides: Overrides | None = None, stacks: Stacks | None = None) -> LayerMap:
    """Finds the depth of every parameter of a transformer.

    Works for any module that holds one stack of layers, or an encoder's and a decoder's, wherever it is: bare, with
    a task head, in a LightningModule, compiled, with PEFT adapters. Nothing is run, so meta tensors are fine.

    Args:
        model: The model.
        overrides: Ordered map of regular expression -> group (`embeddings`, `layers.K`, `head`; a negative K counts
            from the last layer). Searched in the clean names (`clean_name`); the first match wins, before all other
            rules. A stack whose parameters are all overridden no longer counts as a stack.
        stacks: Submodules that each have their own depth (CLIP's towers, the two encoders of DPR): their paths, as
            `("vision_model", "text_model")`, or names for them, as `{"vision": "vision_model", ...}`. Groups are then
            called `vision_model/layers.0`; parameters that act after several of them are in `head`.

    Returns:
        The map. Every trainable parameter is in exactly one group; a frozen one that cannot be placed is left out.

    Raises:
        LayersNotFoundError: No stack of layers, or several that do not follow each other (CLIP's two towers).
        UnplacedParametersError: Trainable parameters whose depth is not known.
        InvalidOverrideError: An override that is malformed, names no group of the model, or matches nothing.
        InvalidStacksError: `stacks` names no submodule, one inside another, or is malformed.

    Example:
        >>> layers = assign_layers(BertForSequenceClassification(config))
        >>> layers.group_of["bert.pooler.dense.weight"]
        'head'
    """
    if not isinstance(model, nn.Module):
        raise LayersNotFoundError(f"expected a torch.nn.Module, got {type(model).__name__}: {model!r:.80}")
    rules = _compile(overrides)
    tree = Tree(model)
    roots = _roots(tree, stacks)
    given = [(pattern.pattern, group) for pattern, group in rules]

    def is_right(other_rules: advice.Rules, paths: Sequence[str] | None) -> bool:
        try:
            _assign(tree, _compile(other_rules), _roots(tree, paths))
        except UnplacedParametersError:
            return True  # the next error names them
        except LRDistError:
            return False
        return True

    try:
        return _assign(tree, rules, roots)
    except SeveralStacksError as error:
        message = advice.several(tree, error.stacks, given, is_right)
        raise LayersNotFoundError(message) from None


def layer_modules(
    model: nn.Module, overrides: Overrides | None = None, stacks: Stacks | None = None
) -> dict[str, tuple[nn.Module, ...]]:
    """The modules that compute each layer, for hooks on them.

    Args:
        model: as `assign_layers` takes it.
        overrides: see `assign_layers`.
        stacks: see `assign_layers`.

    Returns:
        `layers.0` ... `layers.N-1` (with towers `vision/layers.0`, ...) -> the entries of the list of layers, in the
        order in which they are called: one, or several where attention and feed-forward sublayers alternate. The
        wrapped modules themselves: those that are called.

    Raises:
        LRDistError: what `assign_layers` raises.
    """
    assign_layers(model, overrides, stacks)  # for its errors
    rules, tree = _compile(overrides), Tree(model)
    modules: dict[str, tuple[nn.Module, ...]] = {}
    for name, root in _roots(tree, stacks).items():
        tower = _Tower(name, root, *find_stacks(tree, lambda p: _overriding(p, rules) is not None, root))
        layers = iter(tower.groups[1:-1])
        for stack in tower.stacks:
            entries = list(stack.module.children())
            for first in range(0, stack.depth * stack.period, stack.period):
                modules[next(layers)] = tuple(entries[first : first + stack.period])
    return modules


class _Tower(NamedTuple):
    """A part of the model with its own depth; without `stacks`, the whole model, with an empty name."""

    name: str
    root: str
    stacks: list[Stack]
    ignored: list[Stack]

    @property
    def depth(self) -> int:
        return sum(stack.depth for stack in self.stacks)

    @property
    def groups(self) -> list[str]:
        return group_names(self.depth, self.name)


def _assign(tree: Tree, rules: _Rules, roots: Mapping[str, str]) -> LayerMap:
    towers = [
        _Tower(name, root, *find_stacks(tree, lambda parameter: _overriding(parameter, rules) is not None, root))
        for name, root in roots.items()
    ]
    groups: dict[str, list[str]] = {group: [] for tower in towers for group in tower.groups}
    groups.setdefault("head", [])
    targets = [_resolve(group, towers, pattern.pattern) for pattern, group in rules]
    _check_all_match(tree, rules)
    unplaced = []
    for parameter in tree.parameters:
        rule = _overriding(parameter, rules)
        place = targets[rule] if rule is not None else _group(tree, parameter, towers)
        if place is not None:
            groups[place].append(parameter.name)
        elif parameter.value.requires_grad:
            unplaced.append(clean_name(parameter.name))
    if unplaced:
        paths = [stack for tower in towers for stack in tower.stacks]
        raise UnplacedParametersError(
            advice.unplaced(
                unplaced,
                {name: _guess(tree, name, towers) for name in unplaced},
                lambda name: nearness(name, paths),
                [(pattern.pattern, group) for pattern, group in rules],
            )
        )
    depths = {tower.name: tower.depth for tower in towers if tower.name}
    return LayerMap(sum(tower.depth for tower in towers), {k: tuple(v) for k, v in groups.items()}, depths)


def _group(tree: Tree, parameter: Parameter, towers: list[_Tower]) -> str | None:
    """The group of a parameter; None if it is not known."""
    if len(towers) == 1:
        (tower,) = towers
        depth = depth_of(tree, parameter, tower.stacks, tower.ignored)
        return None if depth is None else tower.groups[depth]
    inside = [tower for tower in towers if any(is_below(alias, tower.root) for alias in parameter.aliases)]
    depths = [(tower, depth_of(tree, parameter, tower.stacks, tower.ignored)) for tower in inside or towers]
    known = [(tower, depth) for tower, depth in depths if depth is not None]
    if inside or len(known) == 1:
        # A weight that towers share belongs to the first of them.
        return known[0][0].groups[known[0][1]] if known else None
    return "head" if known and all(depth == tower.depth + 1 for tower, depth in known) else None


def _guess(tree: Tree, name: str, towers: list[_Tower]) -> str | None:
    """The group that the error's override suggests for a parameter; None if nothing suggests one."""
    if len(towers) > 1:
        inside = [tower for tower in towers if is_below(name, tower.root)]
        if not inside:
            # Between two towers: in the head of the one that it follows.
            parameter = Parameter(name, (name,), nn.Parameter())
            after = [tower for tower in towers if depth_of(tree, parameter, tower.stacks, []) == tower.depth + 1]
            paths = {tower.name: tower.stacks[0].paths[0] for tower in after}
            for tower in after:
                earlier = [paths[other.name] for other in after if other is not tower]
                if all(side_of(tree, path, paths[tower.name]) == "before" for path in earlier):
                    return tower.groups[-1]
            return None
        towers = inside
    depth = guess(tree, name, towers[0].stacks)
    return None if depth is None else towers[0].groups[depth]


def _roots(tree: Tree, stacks: Stacks | None) -> dict[str, str]:
    """Name of each tower -> its path; without `stacks`, an empty name -> the whole model."""
    if stacks is None:
        return {"": ""}
    if isinstance(stacks, str) or not isinstance(stacks, Mapping | Sequence) or len(stacks) < 2:
        raise InvalidStacksError(
            f"stacks must name at least two submodules, got {shown(stacks)}; "
            'for example stacks=("vision_model", "text_model"). For one submodule, pass it as the model'
        )
    roots = dict(stacks) if isinstance(stacks, Mapping) else {path: path for path in stacks}
    for name, path in roots.items():
        if not isinstance(path, str) or path not in tree.modules or not path:
            children = [child for child in tree.modules if child and child.count(".") == str(path).count(".")]
            raise InvalidStacksError(
                f"stacks names {shown(path)}, which is not a submodule of {type(tree.modules['']).__name__}; "
                f"its submodules are {', '.join(children[:10])}"
            )
        if not isinstance(name, str) or not name or "/" in name:
            raise InvalidStacksError(f"a name in stacks is a text without a slash, not {shown(name)}")
    for path in roots.values():
        if inner := [other for other in roots.values() if other.startswith(path + ".")]:
            raise InvalidStacksError(
                f"stacks names {path!r} and, inside it, {inner[0]!r}; name submodules that do not contain each other"
            )
    if len(set(roots.values())) < len(roots) or len(roots) < len(stacks):
        raise InvalidStacksError(f"stacks names a submodule twice: {shown(stacks)}")
    return roots


# Overrides -----------------------------------------------------------------------------------------------


def _compile(overrides: Overrides | None) -> _Rules:
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
            raise InvalidOverrideError(
                f"override {shown(item[0])} is not a regular expression: {error!s:.300}"
            ) from None
    return rules


def _overriding(parameter: Parameter, rules: _Rules) -> int | None:
    for index, (pattern, _) in enumerate(rules):
        if any(pattern.search(alias) for alias in parameter.aliases):
            return index
    return None


def _resolve(group: str, towers: list[_Tower], pattern: str) -> str:
    """The group that a name means: `layers.-1` is the last layer."""
    if group == "head":
        return group
    for tower in towers:
        prefix = f"{tower.name}/" if tower.name else ""
        if not group.startswith(prefix):
            continue
        depth = group_depth(group.removeprefix(prefix), tower.depth)
        if depth is not None:
            return tower.groups[depth]
    first = towers[0].groups
    raise InvalidOverrideError(
        f"override {shown(pattern)} names the group {shown(group)}; this model has {first[0]}, {first[1]} to "
        f"{first[-2]} (layers.-1 is the last) and {first[-1]}"
        + (f", the same of {', '.join(tower.name for tower in towers[1:])}, and head" if len(towers) > 1 else "")
    )


def _check_all_match(tree: Tree, rules: _Rules) -> None:
    aliases = [alias for parameter in tree.parameters for alias in parameter.aliases]
    for pattern, _ in rules:
        if not any(pattern.search(alias) for alias in aliases):
            raise InvalidOverrideError(
                f"override {shown(pattern.pattern)} matches no parameter; the names look like {', '.join(aliases[:3])}"
            )
