"""Which optimizers hold the layers, and which trainable parameters none of them holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from lr_dist._regroup.placement import Placement, parameters_of
from lr_dist.errors import OptimizerCoverageError, UnsupportedOptimizerError, listed
from lr_dist.names import is_layer

# How many names an error lists.
MAX_NAMES = 5


def layer_optimizers(optimizers: Sequence[Optimizer], placement: Placement) -> list[Optimizer]:
    """The optimizers that hold parameters of the transformer's layers: usually one; two if Muon and AdamW share them.

    If every layer is frozen, the one that holds the embeddings or the head.

    Raises:
        UnsupportedOptimizerError: no optimizer at all.
        OptimizerCoverageError: no optimizer holds the transformer, several its embeddings and head alone, or two hold
            one parameter.
    """
    if not any(optimizer.param_groups for optimizer in optimizers):
        raise UnsupportedOptimizerError(
            "There is no optimizer with parameter groups, so no layer can get a learning rate. Make one from the "
            "model's parameters."
        )
    holders = [o for o in optimizers if any(is_layer(placement.layer.get(id(p), "")) for p in parameters_of(o))]
    if not holders:
        holders = [o for o in optimizers if any(id(p) in placement.layer for p in parameters_of(o))]
        if len(holders) > 1:
            raise OptimizerCoverageError(
                f"{len(holders)} optimizers ({_kinds(holders)}) hold the embeddings and the head, and none holds a "
                "layer, so it is not clear which rates the distribution replaces. Put them into one optimizer."
            )
    if not holders:
        raise OptimizerCoverageError(
            f"None of the optimizers ({_kinds(optimizers)}) holds a parameter of the transformer's layers. Make "
            "an optimizer from the model's parameters; to freeze layers, give them the rate 0 in the distribution."
        )
    _check_disjoint(holders, placement)
    return holders


def _kinds(optimizers: Sequence[Optimizer]) -> str:
    return ", ".join(type(optimizer).__name__ for optimizer in optimizers)


def _check_disjoint(optimizers: Sequence[Optimizer], placement: Placement) -> None:
    """Refuse two optimizers that train the same weights: each would have its own rate for them."""
    seen: set[int] = set()
    for optimizer in optimizers:
        held = {id(p) for p in parameters_of(optimizer)}
        if both := held & seen:
            names = [placement.name.get(key, "?") for key in both]
            raise OptimizerCoverageError(
                f"{len(optimizers)} optimizers ({_kinds(optimizers)}) each hold {listed(sorted(names))}, so it is not "
                "clear which rates the distribution replaces. Put a parameter into one optimizer only."
            )
        seen |= held


def check_replaced(optimizers: Sequence[Optimizer], placement: Placement, module: nn.Module) -> None:
    """Refuse optimizers that were made before a part of the model was replaced.

    Raises:
        OptimizerCoverageError: they hold parameters that are no longer in `module`, which has trainable ones that
            none of them holds.
    """
    gone = [p for o in optimizers for p in parameters_of(o) if id(p) not in placement.name]
    layers, others = uncovered(optimizers, placement, module)
    if gone and (layers or others):
        names = {name: tuple(p.shape) for name, p in module.named_parameters()}
        new = [f"{name} {names[name]}" for name in [*layers, *others]]
        raise OptimizerCoverageError(
            f"The optimizer ({_kinds(optimizers)}) holds {len(gone)} parameter(s) that are not in the model, of the "
            f"shape(s) {listed(tuple(p.shape) for p in gone)}, and {len(new)} trainable parameter(s) of the model are "
            f"in no group and would not be trained: {', '.join(new[:MAX_NAMES])}"
            f"{', ...' if len(new) > MAX_NAMES else ''}. A part of the model was replaced after the optimizer was "
            "made (`resize_token_embeddings`, a new head): change the model first, then make the optimizer."
        )


def uncovered(optimizers: Sequence[Optimizer], placement: Placement, module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of trainable parameters that no optimizer holds: those in layers, and those in embeddings and head."""
    held = {id(p) for optimizer in optimizers for p in parameters_of(optimizer)}
    free = [
        (name, placement.layer[id(p)])
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in held and id(p) in placement.layer
    ]
    return [n for n, layer in free if is_layer(layer)], [n for n, layer in free if not is_layer(layer)]
