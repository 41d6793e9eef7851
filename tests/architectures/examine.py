"""One model class: built tiny, grouped by `assign_layers`, run, and compared with what the run showed."""

from __future__ import annotations

import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from build import build, tiny_configs
from inputs import argument_sets
from oracle import NothingSeen, Truth, all_lists, growing_lists, observe
from torch import nn
from transformers import PreTrainedConfig

from lr_dist.errors import LRDistError
from lr_dist.layers import LayerMap, assign_layers

_MAX_PARAMETERS = 150_000_000  # more would not be tiny; 600 MB in float32
_MAX_SIZES = 3  # that end in the same way; another size will not change it then


@dataclass
class Finding:
    """What became of one model class.

    Attributes:
        outcome: `right`: grouped, run, and every parameter that the run used is where the run says. `unchecked`:
            grouped, but not run here. `refused`: an error of ours. `unbuildable`: no tiny model could be made.
            `wrong`: grouped differently from the run. `crash`: any other exception out of `assign_layers`.
        reason: why it was refused, not run or not built; what is wrong.
        layers: N of the grouping.
        parameters: placed parameters.
        seen: those of them whose place the run confirmed.
        how: how far the config was shrunk.
    """

    outcome: str
    reason: str = ""
    layers: int = 0
    parameters: int = 0
    seen: int = 0
    how: str = ""
    wrong: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value}


def examine(model_type: str, class_name: str, progress: Callable[[Finding], object] = lambda finding: None) -> Finding:
    """Builds, groups, runs and compares; the smallest config with which all of this works counts.

    Args:
        model_type: As `bert`.
        class_name: As `BertModel`.
        progress: Called with what is known so far, for a caller that may lose patience.
    """
    best = Finding("unbuildable")
    sizes: dict[str, set[str]] = defaultdict(set)
    for how, config in tiny_configs(model_type):
        if isinstance(config, Exception):
            finding = Finding("unbuildable", _text(config))
        else:
            finding = _examine(class_name, config)
        finding.how = how
        if finding.outcome not in ("unbuildable", "unchecked"):
            return finding
        if best.outcome == "unbuildable" and (finding.outcome == "unchecked" or not best.reason):
            best = finding
            progress(best)
        if finding.outcome == "unchecked":
            sizes[finding.reason].add(how.partition(",")[0])
        if len(sizes[finding.reason]) == _MAX_SIZES:
            break
    return best


def compare(layers: LayerMap, truth: Truth) -> list[str]:
    """What a grouping says differently from a run, in words; empty if nothing."""
    wrong = list(truth.doubts)
    if layers.num_layers != truth.num_layers:
        wrong.append(f"{layers.num_layers} layers, the run has {truth.num_layers} in {truth.stacks}")
    names = list(layers.groups)
    depth_of = {name: names.index(group) for name, group in layers.group_of.items()}
    for name, allowed in truth.depths.items():
        if name in depth_of and depth_of[name] not in allowed:
            fitting = " or ".join(names[k] if k < len(names) else str(k) for k in allowed)
            wrong.append(f"{name} is in {names[depth_of[name]]}, the run says {fitting}")
    wrong += [f"{name} is in {layers.group_of[name]}, the run: beside" for name in truth.beside if name in depth_of]
    return wrong


def _examine(class_name: str, config: PreTrainedConfig) -> Finding:
    try:
        skeleton = build(class_name, config)
    except Exception as error:
        return Finding("unbuildable", _text(error))
    try:
        layers = assign_layers(skeleton)
    except LRDistError as error:
        return Finding("refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        return Finding("crash", traceback.format_exc(limit=-3) + _text(error))
    finding = Finding("unchecked", layers=layers.num_layers, parameters=len(layers.group_of))
    try:
        truth = _run(class_name, config, skeleton)
    except Exception as error:
        finding.reason = _text(error)
        return finding
    finding.wrong = compare(layers, truth)
    finding.outcome = "wrong" if finding.wrong else "right"
    finding.seen = len(truth.depths.keys() - set(truth.unused))
    return finding


def _run(class_name: str, config: PreTrainedConfig, skeleton: nn.Module) -> Truth:
    size = sum(parameter.numel() for parameter in skeleton.parameters())
    if size > _MAX_PARAMETERS:
        raise MemoryError(f"{size / 1e6:.0f} million parameters with the smallest config that can be built")
    growing = growing_lists(config, lambda changed: build(class_name, changed))
    model = build(class_name, config, "cpu")
    first: Exception | None = None
    for arguments in argument_sets(model):
        for lists in (growing, all_lists(model)):
            try:
                return observe(model, lambda: model(**arguments), lists)  # noqa: B023 - called at once
            except NothingSeen as error:
                first = first or error
            except Exception as error:
                first = first or error
                break
    raise first or NothingSeen("forward takes no input that is known here")


def _text(error: Exception) -> str:
    """The kind and the first line of an error, and where it arose."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].name}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}{place[:160]}"
