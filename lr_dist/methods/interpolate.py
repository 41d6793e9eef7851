"""Interpolation (WiSE-FT): at a stage's end, weights between those before the stage and those that it learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.layers import Overrides
from lr_dist.methods.anchor import Anchor
from lr_dist.methods.base import Method, MethodInfo, Order, Setting
from lr_dist.methods.context import StageContext
from lr_dist.methods.interpolation import (
    Alpha,
    alpha_profile,
    alpha_text,
    between,
    check_head,
    layer_alphas,
    plain_name,
)


class Interpolate(Method):
    """Replaces, at the end of a fit, each weight theta below the head by

        theta_before + alpha (theta - theta_before)

    with the weights at the start of the fit, and an alpha for every depth (Wortsman et al. 2022, WiSE-FT,
    arXiv 2109.01903: one alpha for all). It does not change the training and costs none.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=2e-4"), Interpolate(0.7)])

    In a user's own Trainer every fit is interpolated. In a sequence (`lr_dist.sequence`) the first stage is left as it
    is: there is no earlier task. Buffers, such as BatchNorm's statistics, stay as learned. Weights of 16 bits are
    computed in 32. Checkpoints that a callback writes during the fit have the weights of the training;
    `trainer.save_checkpoint` after the fit has the interpolated ones. Adapters have to be merged before (`LoRA` does);
    then it interpolates the merged weights.

    Memory: one copy of the weights below the head, in checkpoints too. Works under DDP and FSDP2.

    Args:
        alpha: a number from 0 (as before) to 1 (as learned), or one for every depth, written as a distribution:
            `linear:first=0.4,last=0.9`.
        head: `learned` leaves what comes after the last layer (and every task's head) as it was learned;
            `interpolated` interpolates it, too, for a head that was trained before.
        overrides: regex -> group name for parameters that `assign_layers` cannot place (what is the head).

    Raises:
        InvalidAlphaError: an alpha that is not from 0 to 1, or another `head`.
        InvalidDistributionError: a text that is no distribution.
        ResumeMismatchError: a checkpoint that was written without this method, with other settings, or after its end.
    """

    name: ClassVar[str] = "interpolate"
    info: ClassVar[MethodInfo] = MethodInfo(
        "weights between those before a stage and those after it, by depth",
        "Wortsman et al. 2022, arXiv 2109.01903",
        stores="one copy of the weights during a stage",
    )
    order: ClassVar[Order] = Order.BORDER

    def __init__(self, alpha: Alpha = 0.7, head: str = "learned", *, overrides: Overrides | None = None) -> None:
        self.alpha = alpha_profile(alpha)
        self.head = check_head(head)
        self.overrides = overrides
        self._anchor = Anchor()
        self._restored = False
        self._alphas: dict[str, float] = {}

    @override
    def settings(self) -> dict[str, Setting]:
        return {"alpha": alpha_text(self.alpha), "head": self.head}

    @override
    def trains_in(self, context: StageContext) -> bool:
        """Never: the weights change after the last step."""
        return False

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        """Copy the weights, unless they are known from a checkpoint."""
        if not self._restored:
            self._anchor = Anchor()  # a fit that failed may have left one
        self._restored = False
        self._alphas = {}
        if self._context is not None and self._context.index == 0:
            return
        alphas = layer_alphas(module, self.alpha, head=self.head, overrides=self.overrides)
        self._alphas = {plain_name(name): alpha for name, alpha in alphas.items()}
        parameters = ((plain_name(name), parameter) for name, parameter in module.named_parameters())
        self._anchor.hold((name, p) for name, p in parameters if self._alphas.get(name, 1.0) != 1)

    @override
    @torch.no_grad()
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """Interpolate, and let go of the weights before."""
        for full_name, parameter in module.named_parameters():
            name = plain_name(full_name)
            if name in self._anchor:
                parameter.copy_(between(self._anchor[name], parameter, self._alphas[name]))
        self._anchor = Anchor()

    @override
    def state(self) -> dict[str, Any]:
        return {"before": self._anchor.state_dict()}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._anchor = Anchor()
        self._anchor.load_state_dict(state["before"])
        self._restored = True
