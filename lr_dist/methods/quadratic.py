"""A quadratic pull, weighted by importances, toward the weights that earlier tasks left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._callback.scaling import gradient_scale
from lr_dist._lightning import L, isolate_rng
from lr_dist.errors import ConfigurationError, UnsupportedOptimizerError
from lr_dist.layers import clean_name
from lr_dist.methods.anchor import Anchor
from lr_dist.methods.base import Method
from lr_dist.methods.context import StageContext
from lr_dist.methods.importance import protected_parameters


class QuadraticPull:
    """The penalty sum_i F_i (theta_i - a_i)^2, with importances F and anchors a.

    The sum of several such penalties is one of them, up to a constant: F is the sum of theirs, and a the mean of their
    anchors weighted by F. So the gradient of one penalty for each task needs two copies of the weights, however many
    tasks there are.

    Attributes:
        importance, anchor: F and a, by name of the parameter.
        constant: the constant.
    """

    def __init__(self) -> None:
        self.importance = Anchor()
        self.anchor = Anchor()
        self.constant = 0.0

    def __bool__(self) -> bool:
        return bool(self.anchor.names())

    def place(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Bring F and a to the devices (and into the shards) of these parameters.

        Raises:
            ConfigurationError: a parameter of another shape.
        """
        for held in (self.importance, self.anchor):
            held.hold((name, parameter) for name, parameter in parameters.items() if name in held.names())

    @torch.no_grad()
    def add(self, importance: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the penalty sum_i F_i (theta_i - w_i)^2, w being the parameters' present values, to the others."""
        for name, new in importance.items():
            new, weight = new.to(parameters[name].dtype), parameters[name].detach()
            if name not in self.anchor:
                self.importance[name], self.anchor[name] = new, weight.clone()
                continue
            old, before = self.importance[name], self.anchor[name]
            total = old + new
            # Where neither counts, any anchor will do.
            share = torch.where(total > 0, new / total, torch.ones_like(total))
            self.constant += float((old * share * (weight - before).square()).sum())
            self.importance[name], self.anchor[name] = total, before + share * (weight - before)

    @torch.no_grad()
    def replace(self, importance: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], keep: float) -> None:
        """F becomes keep * F + the new importance, and the anchor the parameters' present values."""
        for name, new in importance.items():
            new = new.to(parameters[name].dtype)
            self.importance[name] = keep * self.importance[name] + new if name in self.importance else new
            self.anchor[name] = parameters[name].detach().clone()

    def value(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """The penalty, a scalar."""
        terms = [(self.importance[n] * (p - self.anchor[n]).square()).sum() for n, p in parameters.items()]
        return torch.stack(terms).sum() + self.constant

    def state_dict(self) -> dict[str, Any]:
        return {
            "importance": self.importance.state_dict(),
            "anchor": self.anchor.state_dict(),
            "constant": self.constant,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance.load_state_dict(state["importance"])
        self.anchor.load_state_dict(state["anchor"])
        self.constant = state["constant"]


class QuadraticMethod(Method):
    """Base class of EWC, SI and MAS: adds factor * sum_i F_i (theta_i - a_i)^2 to the loss, as a closed-form gradient.

    The gradient is added before each step of the optimizer: once for a window of accumulated batches, and before
    gradients are clipped. The logged loss is that of the task alone.

    Subclasses set `self.pull` and `self.exclude`, and learn in `learn`.
    """

    pull: QuadraticPull
    exclude: str | None = None
    _names: dict[nn.Parameter, str]

    def factor(self) -> float:
        """The factor of the penalty in the loss."""
        raise NotImplementedError

    def learn(self, module: L.LightningModule, loader: Any, head: str | None) -> None:
        """Add what the module's weights know of the loader's task to `self.pull`."""
        raise NotImplementedError

    def protected(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters with importances."""
        return protected_parameters(module, self.exclude)

    def penalty(self, module: nn.Module) -> Tensor:
        """The penalty's value, a scalar; 0 before a task was learned."""
        parameters = {clean_name(name): p for name, p in module.named_parameters()}
        self._place(parameters)
        held = {name: p for name, p in parameters.items() if name in self.pull.anchor}
        return self.factor() * self.pull.value(held) if held else torch.zeros(())

    @override
    def trains_in(self, context: StageContext) -> bool:
        """Not in the first stage, unless it has learned something before."""
        return context.index > 0 or bool(self.pull)

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        self._names = {parameter: clean_name(name) for name, parameter in module.named_parameters()}
        self._place({name: parameter for parameter, name in self._names.items()})

    def _place(self, parameters: Mapping[str, nn.Parameter]) -> None:
        try:
            self.pull.place(parameters)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error} If it is the head of a new task, leave it out: {type(self).__name__}(exclude='classifier')."
            ) from error

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        self._place({clean_name(name): p for name, p in module.named_parameters()})
        self.learn(module, loader, self.context.head)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient."""
        if not self.pull or not self.factor():
            return
        scale = 2 * self.factor() * gradient_scale(trainer, optimizer)
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad):
            name = self._names.get(parameter, "")
            if name in self.pull.anchor:
                gradient = gradient_of(parameter, name, self.name)
                gradient.addcmul_(self.pull.importance[name], parameter - self.pull.anchor[name], value=scale)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model; what was learned stays for the next stage."""
        self._names = {}

    @override
    def state(self) -> dict[str, Any]:
        return {"pull": self.pull.state_dict()}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self.pull.load_state_dict(state["pull"])


class LearnsFromData(QuadraticMethod):
    """One whose importances come from examples at the end of a stage, so that any module can be protected at once."""

    def learn_from(self, module: L.LightningModule, loader: Any, *, head: str | None = None) -> None:
        """Protect what a module knows already, before its first fit: call it with data on which it is good.

        For a pre-trained masked language model these are texts with masked tokens, see docs/methods.md. Random
        numbers that are drawn leave no trace.

        Args:
            module: with the weights to protect, on the device to compute on.
            loader: batches of the task that it knows.
            head: the task's head, for modules with several.

        Raises:
            ConfigurationError: no example, or a batch of unknown form.
        """
        self._place({clean_name(name): p for name, p in module.named_parameters()})
        with isolate_rng():
            self.learn(module, loader, head)

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        if not self.context.last:
            super().stage_ended(module, loader)


def gradient_of(parameter: nn.Parameter, name: str, method: str) -> Tensor:
    """The parameter's gradient, zeros where it has none.

    Raises:
        UnsupportedOptimizerError: a sparse one, which cannot hold a pull on every weight.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    elif parameter.grad.is_sparse:
        raise UnsupportedOptimizerError(
            f"{method} pulls every weight, and the gradient of {name} is sparse. Use nn.Embedding(sparse=False)."
        )
    return parameter.grad
