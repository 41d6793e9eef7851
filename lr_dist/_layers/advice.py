"""The remedies in errors about layers: overrides that work when they are pasted, or the reason why there are none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from lr_dist._layers.sides import side_of
from lr_dist._layers.stacks import follows
from lr_dist._layers.tree import Stack, Tree, common_prefix

Rules = Sequence[tuple[str, str]]

_MAX_NAMED = 10
# Names of towers that usually feed another model, such as an image encoder.
_INPUT_TOWERS = re.compile(
    r"vision|visual|image|img|audio|speech|video|pixel|acoustic|perceiver|resampler|connector|qformer|projector|teacher",
    re.IGNORECASE,
)


def unplaced(
    names: Sequence[str], guesses: Mapping[str, str | None], depth_of_path: Callable[[str], int], given: Rules
) -> str:
    """The message for parameters whose depth is not known.

    Args:
        names: Their clean names.
        guesses: Name -> the group that the source suggests; None if it suggests none.
        depth_of_path: Name -> how many of its leading parts it shares with the nearest stack.
        given: The user's overrides, which are repeated in the printed ones.
    """
    branches: dict[str, list[str]] = {}
    for name in names:
        branches.setdefault(".".join(name.split(".")[: depth_of_path(name) + 1]), []).append(name)
    rules: list[tuple[str, str]] = []
    unknown: list[str] = []
    for branch, members in branches.items():
        groups = {guesses[name] for name in members}
        if len(groups) > 1 and len(members) > _MAX_NAMED:
            groups = {None}  # a network with several layers of depth: no guess
        parts = [(branch, groups.pop())] if len(groups) == 1 else [(name, guesses[name]) for name in members]
        for path, group in parts:
            pattern = f"^{re.escape(path)}{'$' if path in names else chr(92) + '.'}"
            if group is None:
                unknown.append(pattern)
            else:
                rules.append((pattern, group))
    text = f"no depth is known for {len(names)} trainable parameter(s): {_listed(names)}. Say where they belong"
    if rules:
        text += f': {_printed([*given, *rules])} ("embeddings", "layers.K" or "head")'
    if unknown:
        patterns = ", ".join(f'r"{pattern}"' for pattern in unknown[:_MAX_NAMED])
        text += (". " if rules else " in `overrides`. ") + (
            "The source does not show "
            f'where {patterns} act: map each of these regular expressions to "embeddings" (before the layers), '
            '"layers.K" or "head" (after them)'
        )
    return text


def several(
    tree: Tree, stacks: list[Stack], given: Rules, is_right: Callable[[Rules, Sequence[str] | None], bool]
) -> str:
    """The message for several stacks of layers that do not follow each other.

    Args:
        tree: The model.
        stacks: The stacks.
        given: The user's overrides.
        is_right: (overrides, paths of towers) -> whether the model can then be placed.
    """
    listed = ", ".join(map(str, stacks[:8])) + (f" and {len(stacks) - 8} more" if len(stacks) > 8 else "")
    text = f"{len(stacks)} stacks of layers, and no known order of depth between them: {listed}."
    choices = []
    towers = _towers(stacks)
    if is_right(given, towers):
        choices.append(f"to give each its own depth: stacks=({', '.join(map(repr, towers))})")
    kept, rules = _sides(tree, stacks)
    inside = [tower for tower in towers if kept is None or kept.paths[0].startswith(tower + ".")]
    if inside and inside != [""]:
        choices.append(f'to train one alone: pass that submodule, such as model.get_submodule("{inside[0]}")')
    if kept is not None and is_right([*given, *rules], None):
        choices.append(
            f"to use the depth of {kept}, and count the others as what comes before it (embeddings) or after it "
            f"(head): {_printed([*given, *rules])}"
        )
    if not choices:
        choices.append("pass the submodule whose depth is wanted, or place the others with `overrides`")
    return f"{text} {'; or '.join(choices)[0].upper()}{'; or '.join(choices)[1:]}"


def _towers(stacks: list[Stack]) -> list[str]:
    """The shortest paths that tell the stacks apart; a path that contains stages covers several stacks."""
    parts = [stack.paths[0].split(".") for stack in stacks]
    shared = min(common_prefix(parts[0], other) for other in parts[1:])
    return list(dict.fromkeys(".".join(path[: shared + 1]) for path in parts))


def _sides(tree: Tree, stacks: list[Stack]) -> tuple[Stack | None, list[tuple[str, str]]]:
    """A stack for which the source shows on which side of it every other one is, and overrides that place those."""
    best: tuple[tuple[bool, int], Stack, list[tuple[str, str]]] | None = None
    for kept in stacks:
        rules: dict[str, str] = {}
        for other in stacks:
            if other is kept or follows(tree, other, kept) or follows(tree, kept, other):
                continue
            side = side_of(tree, other.paths[0], kept.paths[0])
            group = {"before": "embeddings", "after": "head"}.get(side or "")
            parts = other.paths[0].split(".")
            branch = ".".join(parts[: common_prefix(parts, kept.paths[0].split(".")) + 1])
            if group is None or rules.setdefault(rf"^{re.escape(branch)}\.", group) != group:
                break
        else:
            size = sum(parameter.value.numel() for parameter in tree.below(kept.paths[0]))
            rank = (not _INPUT_TOWERS.search(kept.paths[0]), size)
            if best is None or rank > best[0]:
                best = rank, kept, list(rules.items())
    return (None, []) if best is None else best[1:]


def _printed(rules: Rules) -> str:
    pairs = dict(rules)
    shown = ", ".join(f'r"{pattern}": "{group}"' for pattern, group in list(pairs.items())[: 3 * _MAX_NAMED])
    return f"overrides={{{shown}}}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
