"""Decides from its entries whether a list of modules is a stack of transformer layers."""

from __future__ import annotations

import re

from torch import nn

from lr_dist._layers.chains import is_chained
from lr_dist._layers.config_depth import matches_config
from lr_dist._layers.tree import Stack, Tree, unwrap

_ATTENTION = re.compile(r"attn|attention|(^|_)mha($|_)|qkv|q_proj", re.IGNORECASE)


def is_stack(tree: Tree, stack: Stack, needs_attention: bool) -> bool:
    """Whether a list may be a stack of layers: several hold attention, or (without attention) it is layered."""
    layers = [unwrap(layer) for layer in stack.module.children()]
    if not layers or not all(any(True for _ in x.children()) and any(True for _ in x.parameters()) for x in layers):
        return False
    if not needs_attention:
        return is_layered(tree, stack)
    attention = [has_attention(layer) for layer in layers]
    # Several modules with attention make the list a candidate, even if it turns out not to be a stack.
    return sum(attention) > 1 or (any(attention) and (len(layers) == 1 or matches_config(tree, stack)))


def is_layered(tree: Tree, stack: Stack) -> bool:
    """Whether the list is a stack of layers: as long as the config says, or alike, with attention, and chained."""
    return matches_config(tree, stack) or stack.sublayers or (is_alike(stack) and is_chained(tree, stack) is not False)


def period_of(tree: Tree, stack: Stack) -> int:
    """After how many entries a list of sublayers repeats: 2 for attention, feed-forward, attention, feed-forward, ...

    1 if attention and feed-forward sublayers follow each other without a period (x-transformers' sandwich): each then
    counts as a layer, because depth is relative. 0 if the list does not hold sublayers.
    """
    entries = [unwrap(entry) for entry in stack.module.children()]
    kinds = [tuple((name, type(module)) for name, module in entry.named_modules()) for entry in entries]
    attention = [has_attention(entry) for entry in entries]
    if sum(attention) < 2 or all(attention) or is_chained(tree, stack) is False:
        return 0
    if any(isinstance(unwrap(entry), nn.Embedding) for entry in entries):
        return 0
    for period in range(2, len(kinds) // 2 + 1):
        if len(kinds) % period == 0 and all(kind == kinds[at % period] for at, kind in enumerate(kinds)):
            return period
    return 1 if all(kinds.count(kind) > 1 for kind in kinds) else 0


def is_alike(stack: Stack) -> bool:
    layers = [unwrap(layer) for layer in stack.module.children()]
    return len({type(layer) for layer in layers}) == 1 and all(has_attention(layer) for layer in layers)


def has_attention(layer: nn.Module) -> bool:
    return any(
        _ATTENTION.search(name.rpartition(".")[2]) or _ATTENTION.search(type(module).__name__)
        for name, module in layer.named_modules()
        if not isinstance(module, nn.Embedding)  # `relative_attention_bias`: a table
    )
