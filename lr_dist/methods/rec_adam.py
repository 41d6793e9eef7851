"""RecAdam: each step is followed by a pull toward the weights at the start, which fades as the task's loss sets in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._lightning import L, rank_zero_warn
from lr_dist.checks import check_finite, check_strength
from lr_dist.errors import InvalidRateError, LatePullWarning
from lr_dist.layers import Overrides, assign_layers, clean_name
from lr_dist.methods.anchor import Anchor
from lr_dist.methods.base import Method, MethodInfo, Setting
from lr_dist.methods.steps import AfterSteps


class RecAdam(Method):
    """Recall and learn: replaces a step of the optimizer, theta -> theta + d, for the weights below the head by

        theta' = theta + lambda(t) d,    theta'' = theta' - lr (1 - lambda(t)) gamma (theta' - theta_0)
        lambda(t) = 1 / (1 + exp(-k (t - t0)))

    for step t = 1, 2, ... of the stage (Chen et al. 2020, arXiv 2004.12651, algorithm 1 and section 3.3; the authors'
    code applies both in this order, with lr being the group's rate at this step). theta_0 are the weights at the start
    of the stage. The pull is decoupled: it does not pass through Adam's moments, nor is it clipped. The head takes the
    optimizer's steps unchanged. Any optimizer of torch will do; with AdamW, d includes weight decay, which the authors
    apply in full. Layers have the rates of `LayerwiseLR`.

    In most models lr * gamma is far below 1; at 2 or more the pull makes the weights explode. Choose t0 well below the
    number of steps, or the task is hardly learned.

    Memory: one copy of the weights, in checkpoints too, and another one during a step. Works under DDP and FSDP2, with
    gradient accumulation (t counts steps of the optimizer), clipping and mixed precision.

    Args:
        gamma: strength of the pull, 0 or more; the paper has 5000.
        k: how fast it fades, above 0.
        t0: the step at which lambda is 1/2.
        overrides: regex -> group name for parameters that `assign_layers` cannot place (what is the head).

    Warns:
        LatePullWarning: at the start of a fit with fewer than t0 steps.

    Raises:
        InvalidRateError: a number that is negative or not finite; a k of 0.
        UnsupportedOptimizerError: at the start of a fit, an optimizer that is none of torch's.
        UnsupportedStrategyError: FSDP1, DeepSpeed.
        ResumeMismatchError: a checkpoint that was written without this method, or with other settings.
    """

    name: ClassVar[str] = "rec-adam"
    info: ClassVar[MethodInfo] = MethodInfo(
        "pulls the weights toward those before the task, less and less as steps go by",
        "Chen et al. 2020, arXiv 2004.12651",
        stores="one copy of the weights during a task",
    )

    def __init__(
        self, gamma: float = 5000.0, k: float = 0.1, t0: float = 250.0, *, overrides: Overrides | None = None
    ) -> None:
        self.gamma = check_strength("gamma", gamma, error=InvalidRateError)
        self.k = check_finite("k", k, error=InvalidRateError, positive=True)
        self.t0 = check_finite("t0", t0, error=InvalidRateError)
        self.overrides = overrides
        self._anchor = Anchor()
        self._step = 0
        self._resumed = False
        self._names: dict[nn.Parameter, str] = {}
        self._before: list[tuple[nn.Parameter, str, float, Tensor]] = []
        self._after_steps = AfterSteps(self._stepped)

    @override
    def settings(self) -> dict[str, Setting]:
        return {"gamma": self.gamma, "k": self.k, "t0": self.t0}

    def share(self, step: int) -> float:
        """lambda(t), the optimizer's share in step t, counted from 1."""
        return 0.5 * (1 + math.tanh(self.k * (step - self.t0) / 2))  # the same, without overflow

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        """Copy theta_0, unless it is in a checkpoint."""
        if not self._resumed:
            self._anchor, self._step = Anchor(), 0
        self._resumed = False
        group_of = assign_layers(module, self.overrides).group_of
        named = {parameter: clean_name(name) for name, parameter in module.named_parameters()}
        self._names = {p: name for p, name in named.items() if group_of[name] != "head"}
        self._anchor.hold((n, p) for p, n in self._names.items() if p.requires_grad or n in self._anchor.names())

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        steps = trainer.estimated_stepping_batches
        if 0 < steps < self.t0:
            rank_zero_warn(
                f"rec-adam's t0 is {self.t0:g}, and the fit has {steps:g} steps: the pull holds the weights until its "
                f"end, so that the task is hardly learned. Lower t0, for example to {steps / 4:g}.",
                category=LatePullWarning,
            )
        self._after_steps.attach(trainer, self.name)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Remember weights and rates."""
        self._before = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._names.get(parameter, "")
                if name and parameter.requires_grad and parameter.grad is not None:
                    # A layer that was frozen until now is still where it was.
                    self._anchor.hold([(name, parameter)] if name not in self._anchor else [])
                    self._before.append((parameter, name, float(group["lr"]), parameter.detach().clone()))

    @torch.no_grad()
    def _stepped(self, optimizer: Optimizer) -> None:
        if not self._before:
            return
        self._step += 1
        share = self.share(self._step)
        for parameter, name, rate, before in self._before:
            parameter.copy_(before + share * (parameter - before))
            parameter.sub_(parameter - self._anchor[name], alpha=rate * (1 - share) * self.gamma)
        self._before = []

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """The next task is anchored at other weights."""
        self._anchor, self._step, self._resumed = Anchor(), 0, False

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._after_steps.detach()
        self._names, self._before = {}, []

    @override
    def state(self) -> dict[str, Any]:
        return {"anchor": self._anchor.state_dict(), "step": self._step}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._anchor = Anchor()
        self._anchor.load_state_dict(state["anchor"])
        self._step = state["step"]
        self._resumed = True
