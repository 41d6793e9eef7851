"""Finds the stack of transformer layers in a module tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from lr_dist._layers.chains import stages_around
from lr_dist._layers.config_depth import config_around, depths_of_stages, is_of_whole, matches_config
from lr_dist._layers.layer_lists import has_attention, is_alike, is_layered, is_stack, period_of
from lr_dist._layers.sides import side_of
from lr_dist._layers.tree import Parameter, Stack, Tree, common_prefix, is_below, unwrap
from lr_dist.errors import LayersNotFoundError


class SeveralStacksError(LayersNotFoundError):
    """Several stacks of layers whose order is not known."""

    def __init__(self, stacks: list[Stack]) -> None:
        super().__init__(f"{len(stacks)} stacks of layers: {', '.join(map(str, stacks))}")
        self.stacks = stacks


def find_stacks(
    tree: Tree, is_overridden: Callable[[Parameter], bool], root: str = ""
) -> tuple[list[Stack], list[Stack]]:
    """The model's stack of layers, or its encoder's and its decoder's, or those of its stages.

    Args:
        tree: The model.
        is_overridden: Whether an override places this parameter; a stack with only such parameters is ignored.
        root: Path of the submodule in which to look.

    Returns:
        One stack, or several that follow each other, in the order of depth; and the frozen stacks that were ignored (a
        teacher, a frozen image tower), whose parameters get no depth.

    Raises:
        LayersNotFoundError: No stack was found.
        SeveralStacksError: Several were found, and their order is not known.
    """
    candidates = _drop_nested(tree, _candidates(tree, root, needs_attention=True))
    candidates = candidates or _drop_nested(
        tree, [s for s in _candidates(tree, root, needs_attention=False) if is_of_whole(tree, s, root)]
    )
    stacks = [s for s in candidates if not all(is_overridden(p) for p in tree.below(s.paths[0]))]
    ignored = _unrelated_frozen(tree, stacks)
    stacks = [s for s in stacks if s not in ignored]
    if len(stacks) == 1 and is_layered(tree, stacks[0]):
        return stacks, ignored
    if len(stacks) < 2:
        beside = [s for s in candidates if s not in stacks]
        raise LayersNotFoundError(
            f"no stack of transformer layers found in {type(tree.modules[root]).__name__}: there is no nn.ModuleList "
            "or nn.Sequential that applies layers of one class with attention, or alternating sublayers, one after the "
            "other, and none whose length is the depth in its config"
            + (f"; {stacks[0]} is a list of other modules" if stacks else "")
            + (f" (apart from the overridden {', '.join(map(str, beside))})" if beside else "")
            + ". Pass the transformer itself."
        )
    ordered = sorted(stacks, key=lambda stack: sum(follows(tree, other, stack) for other in stacks))
    if all(follows(tree, first, then) for k, first in enumerate(ordered) for then in ordered[k + 1 :]):
        return ordered, ignored
    raise SeveralStacksError(stacks)


def _unrelated_frozen(tree: Tree, stacks: list[Stack]) -> list[Stack]:
    """Frozen stacks that do not count towards the model's depth: a teacher, averaged weights, an image tower."""
    trained = [s for s in stacks if any(p.value.requires_grad for p in tree.below(s.paths[0]))]

    def is_unrelated(frozen: Stack, learner: Stack) -> bool:
        if follows(tree, frozen, learner) or follows(tree, learner, frozen):
            return False
        # Idefics' frozen layers alternate with its trained ones, so they count towards its depth.
        return side_of(tree, frozen.paths[0], learner.paths[0]) in ("before", "unrelated", None)

    return [s for s in stacks if trained and s not in trained and all(is_unrelated(s, other) for other in trained)]


def _candidates(tree: Tree, root: str, needs_attention: bool) -> list[Stack]:
    by_module: dict[int, list[str]] = {}
    for path, module in tree.modules.items():
        if isinstance(module, nn.ModuleList | nn.Sequential) and is_below(path, root):
            by_module.setdefault(id(module), []).append(path)
    stacks = []
    for paths in by_module.values():
        module = tree.modules[paths[0]]
        stack = Stack(tuple(paths), module, tuple(module._modules))
        period = period_of(tree, stack) if needs_attention and not matches_config(tree, stack) else 0
        if period:
            stacks.append(replace(stack, period=period, sublayers=True))
        elif is_stack(tree, stack, needs_attention):
            stacks.append(stack)
    return stacks


def _drop_nested(tree: Tree, stacks: list[Stack]) -> list[Stack]:
    """Of nested stacks, keep the outer one, unless it is a list of whole models (an ensemble, a cascade)."""

    def inner_of(outer: Stack) -> list[Stack]:
        prefixes = tuple(path + "." if path else "" for path in outer.paths)
        return [s for s in stacks if s is not outer and s.paths[0].startswith(prefixes)]

    def is_wrapper(outer: Stack) -> bool:
        inner = inner_of(outer)
        if _is_list_of_stages(tree, outer, inner):
            return True
        if matches_config(tree, outer):
            return False
        if len(outer.keys) == 1:
            return bool(inner)
        return any(matches_config(tree, s) or (len(s.keys) > 1 and is_alike(s)) for s in inner)

    kept = [s for s in stacks if not is_wrapper(s)]
    nested = [s for outer in kept for s in inner_of(outer)]
    return [s for s in kept if s not in nested]


def _is_list_of_stages(tree: Tree, outer: Stack, inner: list[Stack]) -> bool:
    """Whether each entry of a list is a stage with its own layers, by the config's depths or by their attention."""
    stages: dict[str, list[Stack]] = {}
    for stack in inner:
        key = stack.paths[0].removeprefix(outer.paths[0] + "." if outer.paths[0] else "").partition(".")[0]
        if not any(stack.paths[0].startswith(other.paths[0] + ".") for other in inner):
            stages.setdefault(key, []).append(stack)
    if len(stages) < 2 or any(len(stacks) != 1 for stacks in stages.values()):
        return False
    layers = [stages[key][0] for key in outer.keys if key in stages]
    config = config_around(tree, outer.paths[0])
    if [len(stack.keys) for stack in layers] == depths_of_stages(config):
        return True
    return len(layers) == len(outer.keys) and any(_has_equals_with_attention(stack) for stack in layers)


def _has_equals_with_attention(stack: Stack) -> bool:
    kinds = [type(layer) for layer in map(unwrap, stack.module.children()) if has_attention(layer)]
    return len(kinds) > len(set(kinds))


def follows(tree: Tree, first: Stack, then: Stack) -> bool:
    """Whether two stacks are known to be one after the other in depth."""
    if _is_encoder_decoder(tree, first, then):
        return True
    if side_of(tree, first.paths[0], then.paths[0]) != "before":
        return False
    if not (is_layered(tree, first) and is_layered(tree, then)):
        return False
    if stages_around(tree, first.paths[0], then.paths[0]) is not None:
        return True
    # Layers of one class in one model with its own config; two towers, or a model on top of another, do not qualify.
    kinds = {type(unwrap(layer)) for stack in (first, then) for layer in stack.module.children()}
    parts = first.paths[0].split(".")
    around = [".".join(parts[:end]) for end in range(common_prefix(parts, then.paths[0].split(".")) + 1)]
    return len(kinds) == 1 and any(getattr(tree.modules[path], "config", None) is not None for path in around)


def _is_encoder_decoder(tree: Tree, encoder: Stack, decoder: Stack) -> bool:
    first, second = encoder.paths[0].split("."), decoder.paths[0].split(".")
    depth = common_prefix(first, second)
    if depth >= min(len(first), len(second)):
        return False
    # The names must differ only in enc/dec: an image encoder and a mask decoder are two models, not one.
    if "enc" not in first[depth] or first[depth].replace("enc", "dec") != second[depth]:
        return False
    return side_of(tree, encoder.paths[0], decoder.paths[0]) in ("before", None)
