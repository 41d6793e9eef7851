"""SI: importances from the path of the training, without a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._callback.scaling import gradient_scale
from lr_dist._lightning import L
from lr_dist.checks import check_finite, check_strength
from lr_dist.errors import InvalidRateError
from lr_dist.methods.anchor import Anchor
from lr_dist.methods.base import MethodInfo, Setting
from lr_dist.methods.context import StageContext
from lr_dist.methods.quadratic import QuadraticMethod, QuadraticPull, gradient_of
from lr_dist.methods.steps import AfterSteps


class SI(QuadraticMethod):
    """Synaptic intelligence: adds to the loss, for the weights theta,

        strength sum_i Omega_i (theta_i - theta*_i)^2
        Omega_i = sum over earlier tasks of max(0, omega_i) / (Delta_i^2 + xi),   omega_i = sum over steps of -g_i d_i

    (Zenke, Poole and Ganguli 2017, arXiv 1703.04200, equations 3 to 5). theta* are the weights after the last task, d
    is what a step changed, g the gradient at the step, and Delta what the task changed. g is the gradient of the
    task's loss as the optimizer receives it: the mean over accumulated batches and processes, without a gradient
    scaler's factor, before this penalty is added and before gradients are clipped. (Pulls of methods that come earlier
    in the list of callbacks are in it.) A negative omega would push a weight away; it counts as 0.

    The first stage only records. Steps that a gradient scaler skips do not count.

    Memory: two copies of the weights (Omega, theta*), and in training four more (omega, the weights at the start, and
    the gradient and weights before a step). Works under DDP and FSDP2, with gradient accumulation, clipping and mixed
    precision.

    Args:
        strength: c, 0 or more.
        xi: keeps Omega finite for weights that hardly moved, above 0; in the order of Delta^2. The paper has 0.1 for
            networks trained from scratch; weights that are fine-tuned move by 1e-3 and less.
        exclude: regular expression for names of parameters that are not protected, as in `EWC`.

    Raises:
        InvalidRateError: a strength that is not from 0 to 1e30; an xi that is not above 0.
        ConfigurationError: at the start of a fit, another model than that of an earlier fit.
        UnsupportedOptimizerError: at the start of a fit, an optimizer that is none of torch's; a sparse gradient.
        UnsupportedStrategyError: FSDP1, DeepSpeed.
        ResumeMismatchError: a checkpoint that was written without this method, or with other settings.
    """

    name: ClassVar[str] = "si"
    info: ClassVar[MethodInfo] = MethodInfo(
        "pulls each weight toward its last value, by how much it lowered earlier losses",
        "Zenke et al. 2017, arXiv 1703.04200",
        stores="two copies of the weights",
    )
    records_training: ClassVar[bool] = True

    def __init__(self, strength: float = 1.0, xi: float = 1e-3, *, exclude: str | None = None) -> None:
        self.strength = check_strength("strength", strength, error=InvalidRateError)
        self.xi = check_finite("xi", xi, error=InvalidRateError, positive=True)
        self.exclude = exclude
        self.pull = QuadraticPull()
        self._names = {}
        self._start = Anchor()
        self._omega = Anchor()
        self._resumed = False
        self._before: dict[str, tuple[nn.Parameter, Tensor, Tensor]] = {}
        self._after_steps = AfterSteps(self._stepped)

    @override
    def settings(self) -> dict[str, Setting]:
        return {"strength": self.strength, "xi": self.xi}

    @override
    def factor(self) -> float:
        return self.strength

    @override
    def trains_in(self, context: StageContext) -> bool:
        """Always: it records."""
        return True

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        super().stage_started(module)
        parameters = self.protected(module)
        if not self._resumed:
            self._start, self._omega = Anchor(), Anchor()
        self._resumed = False
        self._hold_path(parameters)

    def _hold_path(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            if name not in self._omega.names():
                self._omega[name] = torch.zeros_like(parameter, requires_grad=False)
        self._omega.hold(parameters.items())
        self._start.hold(parameters.items())

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._after_steps.attach(trainer, self.name)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Remember gradient and weights, then add the penalty's gradient."""
        scale = gradient_scale(trainer, optimizer)
        self._before = {
            name: (parameter, gradient_of(parameter, name, self.name) / scale, parameter.detach().clone())
            for parameter in (p for group in optimizer.param_groups for p in group["params"])
            if parameter.grad is not None and (name := self._names.get(parameter, "")) in self._omega
        }
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    @torch.no_grad()
    def _stepped(self, optimizer: Optimizer) -> None:
        """Add -g d of the step."""
        for name, (parameter, gradient, before) in self._before.items():
            self._omega[name].sub_(gradient.mul_(parameter - before))
        self._before = {}

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        self._after_steps.detach()
        super().stage_ended(module, loader)

    @override
    def learn(self, module: L.LightningModule, loader: Any, head: str | None) -> None:
        """From the path; the loader is not read."""
        parameters = self.protected(module)
        self._hold_path(parameters)
        importance = {
            name: self._omega[name].clamp(min=0) / ((parameter.detach() - self._start[name]).square() + self.xi)
            for name, parameter in parameters.items()
        }
        self.pull.replace(importance, parameters, keep=1.0)
        self._start, self._omega, self._resumed = Anchor(), Anchor(), False

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._after_steps.detach()
        self._before = {}

    @override
    def state(self) -> dict[str, Any]:
        path = {"start": self._start.state_dict(), "omega": self._omega.state_dict()}
        return {**super().state(), "path": path}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        path = state["path"]
        self._resumed = True
        self._start.load_state_dict(path["start"])
        self._omega.load_state_dict(path["omega"])
