"""A method's work just before and just after a step of the optimizer changes the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lr_dist._callback.changes import unwrapped
from lr_dist._lightning import L
from lr_dist.errors import UnsupportedOptimizerError


class AfterSteps:
    """Calls a function after every step of a Trainer's optimizers; not after one that a gradient scaler skips.

    Lightning has no hook there: after its `on_before_optimizer_step` comes `on_train_batch_end`, when schedulers have
    changed the rates, and with manual optimization further steps may have been taken.
    """

    def __init__(self, call: Callable[[Optimizer], None]) -> None:
        self._call = call
        self._handles: list[Any] = []

    def attach(self, trainer: L.Trainer, method: str) -> None:
        """Begin.

        Raises:
            UnsupportedOptimizerError: an optimizer that is none of torch's.
        """
        self.detach()
        for optimizer in map(unwrapped, trainer.optimizers):
            if not isinstance(optimizer, Optimizer):
                raise UnsupportedOptimizerError(
                    f"{method} works at every step of a torch.optim.Optimizer, and {type(optimizer).__name__} is none."
                )
            self._handles.append(optimizer.register_step_post_hook(self._stepped))

    def detach(self) -> None:
        """End."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _stepped(self, optimizer: Optimizer, arguments: Any, keywords: Any) -> None:
        self._call(optimizer)
