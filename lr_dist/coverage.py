"""Parameters that are in no group, because the model changed after the groups were split (pure torch)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lr_dist._regroup.holders import check_replaced
from lr_dist._regroup.placement import Placement, parameters_of
from lr_dist.errors import UncoveredParametersWarning, listed


class Coverage:
    """Compares the model with its optimizers before the first step and in each epoch.

    Reading all parameters takes a fraction of a millisecond, so this is not done at every step.

    Args:
        module: all that learns.
        optimizers: all that train it.
        placement: makes the placement of the model as it is now; called only where the model has changed.
    """

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer], placement: Callable[[], Placement]) -> None:
        self._module, self._optimizers, self._placement = module, list(optimizers), placement
        # What was said, or left alone, when the groups were split.
        self._known = {id(p) for p in module.parameters() if p.requires_grad}
        self._lost: set[int] = set()

    def warning(self, *, started: bool) -> UncoveredParametersWarning | None:
        """What is to be said, if the model has changed since the last call.

        Args:
            started: whether steps were taken; then a warning is all that is left.

        Raises:
            OptimizerCoverageError: before the first step, a part of the model was replaced.
        """
        held = {id(p) for o in self._optimizers for p in parameters_of(o)}
        present = {id(p): p for p in self._module.parameters()}
        fresh = [p for key, p in present.items() if p.requires_grad and key not in held and key not in self._known]
        gone = held - present.keys() - self._lost
        if not fresh and not gone:
            return None
        if fresh and gone and not started:
            check_replaced(self._optimizers, self._placement(), self._module)
        self._known |= {id(p) for p in fresh}
        self._lost |= gone
        return UncoveredParametersWarning(_said(self._module, fresh, len(gone)))


def _said(module: nn.Module, fresh: Sequence[nn.Parameter], gone: int) -> str:
    names = {id(p): name for name, p in module.named_parameters()}
    parts: list[Any] = []
    if fresh:
        parts.append(
            f"{len(fresh)} trainable parameter(s), which came into the model or were unfrozen after the optimizer's "
            f"groups were split by layer, are in no group and not trained: {listed(names[id(p)] for p in fresh)}"
        )
    if gone:
        parts.append(f"{gone} parameter(s) of the optimizer are no longer in the model")
    return (
        f"{'; '.join(parts)}. Change the model before its optimizer is made (in Lightning: in `__init__`, `setup` or "
        "`configure_model`), or add new parameters with `optimizer.add_param_group`."
    )
