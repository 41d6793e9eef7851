"""Finds parameters that are in no group because the model changed after the groups were split (pure torch)."""

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

    Reading all parameters takes a fraction of a millisecond, so it is not done in every step.

    Args:
        module: the model that is trained, with everything that learns.
        optimizers: all its optimizers.
        placement: returns the model's current placement; called only if the model has changed.
        when: where in a training loop the model can still be changed, for the message.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: Sequence[Optimizer],
        placement: Callable[[], Placement],
        *,
        when: str = "",
    ) -> None:
        self._module, self._optimizers, self._placement = module, list(optimizers), placement
        self._when = when
        # These were checked when the groups were split.
        self._known = {id(p) for p in module.parameters() if p.requires_grad}
        self._lost: set[int] = set()

    def warning(self, *, started: bool) -> UncoveredParametersWarning | None:
        """The warning to issue if the model has changed since the last call; None otherwise.

        Args:
            started: whether a step was taken; from then on a replaced part is a warning, not an error.

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
        return UncoveredParametersWarning(_message(self._module, fresh, len(gone), self._when))


def _message(module: nn.Module, fresh: Sequence[nn.Parameter], gone: int, when: str) -> str:
    names = {id(p): name for name, p in module.named_parameters()}
    parts: list[Any] = []
    if fresh:
        parts.append(
            f"{len(fresh)} trainable parameter(s), added to the model or unfrozen after the optimizer's groups were "
            f"split by layer, are in no group and not trained: {listed(names[id(p)] for p in fresh)}"
        )
    if gone:
        parts.append(f"{gone} parameter(s) of the optimizer are no longer in the model")
    return (
        f"{'; '.join(parts)}. Change the model before its optimizer is made{when and f' ({when})'}, or add new "
        "parameters with `optimizer.add_param_group`."
    )
