"""The names of the groups in the order of depth: how they are made, and the only place where they are read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from lr_dist.errors import shown

_GROUP = re.compile(r"embeddings|head|layers\.(0|-?[1-9][0-9]{0,5})")
# `vision/layers.0/no_decay`: a tower, where there are several; the layer; a part of it.
_LAYER = re.compile(r"((?:[^/]+/)?(?:embeddings|layers\.\d+|head))(?:/|$)")
# Ends the name of the part of a layer that has no weight decay, where another part of it has.
NO_DECAY = "/no_decay"


def group_names(num_layers: int, prefix: str = "") -> list[str]:
    """The N + 2 group names from the input to the output: `embeddings`, `layers.0` ... `layers.N-1`, `head`.

    Args:
        num_layers: N.
        prefix: a tower's name, put before each with a slash: `vision/layers.0`.
    """
    names = ["embeddings", *(f"layers.{i}" for i in range(num_layers)), "head"]
    return [f"{prefix}/{name}" for name in names] if prefix else names


def is_group_name(name: Any) -> bool:
    """Whether it can be a group of some model: `embeddings`, `layers.K`, `layers.-K` (from the last), `head`."""
    return isinstance(name, str) and _GROUP.fullmatch(name) is not None


def group_depth(name: str, num_layers: int) -> int | None:
    """The position of a name that the user wrote among `group_names`: 0 for `embeddings`, N for `layers.-1`.

    Args:
        name: without a tower's name.
        num_layers: N.

    Returns:
        None for a layer that the model lacks, and for what is not a group's name.
    """
    if not is_group_name(name):
        return None
    if name in ("embeddings", "head"):
        return 0 if name == "embeddings" else num_layers + 1
    layer = int(name.removeprefix("layers."))
    return 1 + layer % num_layers if -num_layers <= layer < num_layers else None


def layer_of(group: str) -> str:
    """The layer that an optimizer's group belongs to: `vision/layers.0` of `vision/layers.0/no_decay`.

    A group's name is in every checkpoint. A key of its own for the layer would be missing in the groups that a
    checkpoint of an earlier version brings back, and torch.distributed.checkpoint refuses a flattened optimizer state
    without a key that the group has.
    """
    match = _LAYER.match(group)
    return match[1] if match else group.split("/")[0]


def is_layer(layer: str) -> bool:
    """Whether it is one of the transformer's layers, neither embeddings nor head."""
    return layer.rpartition("/")[2].startswith("layers.")


def one_of(known: Iterable[str], value: Any) -> str:
    """`one of cosine, linear, not 'cosin'. Did you mean cosine?`, the end of an error."""
    names = list(known)
    hint = did_you_mean(value, names)
    return f"one of {', '.join(names)}, not {shown(value)}.{hint}"


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """` Did you mean NAME?` if one of the known names is close, otherwise nothing."""
    close = close_names(name, known, most=1)
    return f" Did you mean {close[0]}?" if close else ""


def close_names(name: Any, known: Iterable[str], *, most: int) -> list[str]:
    """The known names that are closest to what was given, the closest first; case and hyphens do not count.

    Args:
        name: what was given; if it is no text, nothing is close.
        known: names.
        most: at most so many.
    """
    if not isinstance(name, str):
        return []
    written = {_folded(each): each for each in known}
    return [written[each] for each in difflib.get_close_matches(_folded(name), list(written), n=most, cutoff=0.5)]


def _folded(name: str) -> str:
    return name.lower().replace("-", "")
