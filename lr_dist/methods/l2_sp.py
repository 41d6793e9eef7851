"""L2-SP: a quadratic pull toward the weights at the start of the first stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._callback.scaling import gradient_scale
from lr_dist._lightning import L
from lr_dist.checks import check_strength
from lr_dist.errors import InvalidRateError
from lr_dist.layers import Overrides, assign_layers, clean_name
from lr_dist.methods.anchor import Anchor
from lr_dist.methods.base import Method, MethodInfo, Setting
from lr_dist.methods.quadratic import gradient_of


class L2SP(Method):
    """Adds to the loss, for the weights theta below the head and the head's weights w,

        alpha / 2 |theta - theta_0|^2 + beta / 2 |w|^2

    (Li, Grandvalet and Davoine 2018, arXiv 1802.01483, equations 2 and 3). theta_0 are the weights at the start of the
    first fit of this instance; later fits keep them. The gradient, alpha (theta - theta_0), is added in closed form
    before each step of the optimizer: once for a window of accumulated batches, and before gradients are clipped. The
    logged loss is that of the task alone. Frozen weights are not changed.

        trainer = L.Trainer(callbacks=[LayerwiseLR("decay:lr=4e-4,factor=0.7"), L2SP(alpha=0.01)])

    Memory: one copy of the trained weights, in checkpoints too. Works under DDP and FSDP2, with gradient accumulation,
    clipping and mixed precision.

    Args:
        alpha: strength of the pull toward theta_0, 0 or more.
        beta: strength of the head's pull toward 0, 0 or more.
        overrides: regex -> group name for parameters that `assign_layers` cannot place (what is the head).

    Raises:
        InvalidRateError: a strength that is not from 0 to 1e30.
        ConfigurationError: at the start of a fit, another model than that of an earlier fit.
        UnsupportedOptimizerError: in training, a sparse gradient, which cannot hold a pull on every weight.
        ResumeMismatchError: a checkpoint that was written without this method, or with other settings.
    """

    name: ClassVar[str] = "l2-sp"
    info: ClassVar[MethodInfo] = MethodInfo(
        "pulls the weights toward those before the first task",
        "Li et al. 2018, arXiv 1802.01483",
        stores="one copy of the weights",
    )

    def __init__(self, alpha: float = 0.01, beta: float = 0.0, *, overrides: Overrides | None = None) -> None:
        self.alpha = check_strength("alpha", alpha, error=InvalidRateError)
        self.beta = check_strength("beta", beta, error=InvalidRateError)
        self.overrides = overrides
        self._anchor = Anchor()
        self._names: dict[nn.Parameter, str] = {}
        self._head: set[str] = set()

    @override
    def settings(self) -> dict[str, Setting]:
        return {"alpha": self.alpha, "beta": self.beta}

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        """Copy theta_0, unless it is known from an earlier fit or a checkpoint."""
        group_of = assign_layers(module, self.overrides).group_of
        self._names = {parameter: clean_name(name) for name, parameter in module.named_parameters()}
        self._head = {name for name in self._names.values() if group_of[name] == "head"}
        self._anchor.hold((n, p) for p, n in self._names.items() if p.requires_grad and n not in self._head)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Add the penalty's gradient."""
        scale = gradient_scale(trainer, optimizer)
        for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.requires_grad):
            name = self._names.get(parameter, "")
            if name in self._head:
                if self.beta:
                    gradient_of(parameter, name, self.name).add_(parameter, alpha=self.beta * scale)
            elif name:
                # A layer that was frozen until now is still where it was.
                self._anchor.hold([(name, parameter)] if name not in self._anchor else [])
                pull = parameter - self._anchor[name]
                gradient_of(parameter, name, self.name).add_(pull, alpha=self.alpha * scale)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the model; the anchor stays for the next stage."""
        self._names = {}

    @override
    def state(self) -> dict[str, Any]:
        return {"anchor": self._anchor.state_dict()}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._anchor.load_state_dict(state["anchor"])
