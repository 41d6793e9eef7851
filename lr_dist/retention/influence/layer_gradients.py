"""Gradients of single examples in the linear layers, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lr_dist.errors import UnsupportedModelError
from lr_dist.retention.influence.model_stage import ready
from lr_dist.retention.influence.objectives import Batch


def layer_gradients(
    model: nn.Module,
    layers: Sequence[str],
    batches: Iterator[Batch],
    losses: Callable[[nn.Module, Batch], Tensor],
    *,
    mixed: bool = False,
) -> Iterator[dict[str, Callable[[], Tensor]]]:
    """For each batch: path of a layer -> function that gives the gradients [rows, outputs, inputs (+ 1 for the bias)].

    Functions, so that only one layer's gradients are in memory at a time.

    Args:
        model: is only read.
        layers: paths of nn.Linear modules.
        batches: of rows.
        losses: (model, batch) -> what to differentiate, one number for each row [rows].
        mixed: compute the passes in bf16 autocast.

    Raises:
        UnsupportedModelError: a layer's input does not keep the rows apart.
    """
    modules = {name: model.get_submodule(name) for name in layers}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.setdefault(name, []).append((inputs[0].detach(), output))

    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    device = next(model.parameters()).device
    try:
        for batch in batches:
            seen.clear()
            with ready(model):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    values = losses(model, batch)
                calls = [(name, given, output) for name, pairs in seen.items() for given, output in pairs]
                slopes = torch.autograd.grad(values.sum(), [output for _, _, output in calls], allow_unused=True)
            parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
            for (name, given, output), slope in zip(calls, slopes, strict=True):
                if given.shape[0] != len(values):
                    raise UnsupportedModelError(
                        f"The layer {name} computes {given.shape[0]} rows for {len(values)} examples, so their "
                        "gradients cannot be told apart. Use a form of the model that pads batches."
                    )
                parts[name].append((given, torch.zeros_like(output) if slope is None else slope))
            yield {name: partial(_of_rows, modules[name], tuple(pairs), len(values)) for name, pairs in parts.items()}
    finally:
        for hook in hooks:
            hook.remove()


def _of_rows(module: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], rows: int) -> Tensor:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    # A layer that a measure does not use, such as another task's head, has no gradient.
    total = weight.new_zeros(rows, weight.shape[0], weight.shape[1] + (bias is not None))
    for given, slope in pairs:
        a, g = given.to(weight.dtype), slope.to(weight.dtype)
        if bias is not None:
            a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
        total += torch.bmm(g.reshape(len(g), -1, g.shape[-1]).transpose(1, 2), a.reshape(len(a), -1, a.shape[-1]))
    return total


def collected(gradients: Iterator[Mapping[str, Callable[[], Tensor]]], layers: Sequence[str]) -> dict[str, Tensor]:
    """All gradients in memory, for the few rows of queries: layer -> [rows, outputs, inputs]."""
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    for batch in gradients:
        for name in layers:
            parts[name].append(batch[name]())
    return {name: torch.cat(each) for name, each in parts.items()}
