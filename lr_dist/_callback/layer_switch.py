"""`LayerSwitch`: the layers of an optimizer that wait in some steps and train in others (pure torch)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lr_dist.names import layer_of


class LayerSwitch:
    """Keeps the gradients of waiting layers from the optimizer, so that these get no moments and no weight decay.

    Attributes:
        parameters: layer -> its parameters, for the layers that train in some step; those with rate 0 and those that
            the user froze are not among them.
    """

    def __init__(self) -> None:
        self.parameters: dict[str, list[nn.Parameter]] = {}
        self._switched_off: dict[str, list[nn.Parameter]] = {}

    def attach(self, optimizer: Optimizer) -> None:
        """Use an optimizer whose groups have been split by layer; call it again after every further split."""
        switched_off = {id(p) for parameters in self._switched_off.values() for p in parameters}
        self.parameters = {}
        for group in optimizer.param_groups:
            if group["layer_lr"] and any(p.requires_grad or id(p) in switched_off for p in group["params"]):
                self.parameters.setdefault(_layer(group), []).extend(group["params"])

    def release(self) -> None:
        """Restore `requires_grad` everywhere, and let go of the parameters."""
        self.switch_all_on()
        self.parameters = {}

    def switch(self, training: Collection[str]) -> None:
        """Set `requires_grad`: True in the layers that train, False in those that wait."""
        self.switch_on(training)
        self.switch_off(layer for layer in self.parameters if layer not in training)

    def switch_on(self, layers: Iterable[str]) -> None:
        """Restore `requires_grad` in these layers."""
        for layer in layers:
            for parameter in self._switched_off.pop(layer, ()):
                parameter.requires_grad_(True)

    def switch_off(self, layers: Iterable[str]) -> None:
        """Set `requires_grad` to False in these layers, and drop their gradients."""
        for layer in layers:
            if layer not in self._switched_off:
                self._switched_off[layer] = [p for p in self.parameters[layer] if p.requires_grad]
                for parameter in self._switched_off[layer]:
                    parameter.requires_grad_(False)
                    parameter.grad = None

    def switch_all_on(self) -> None:
        """Restore `requires_grad` everywhere."""
        self.switch_on(list(self._switched_off))

    def drop_gradients(self, training: Collection[str]) -> None:
        """Drop the gradients of the layers that wait; works under every strategy."""
        for layer, parameters in self.parameters.items():
            if layer not in training:
                for parameter in parameters:
                    parameter.grad = None


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` was applied; by name, because importing its class loads the compiler."""
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def recomputes(module: nn.Module) -> bool:
    """Whether it checkpoints activations; the reentrant kind drops gradients if its input needs none."""
    return bool(getattr(module, "gradient_checkpointing", False))


def _layer(group: Mapping[str, Any]) -> str:
    return layer_of(group["name"])
