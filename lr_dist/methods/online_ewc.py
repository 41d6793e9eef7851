"""Online EWC: one running importance for all earlier tasks, anchored at the last weights."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.checks import check_finite
from lr_dist.errors import InvalidRateError, shown
from lr_dist.methods.base import MethodInfo, Setting
from lr_dist.methods.ewc import EWC
from lr_dist.methods.task_functions import TaskFunctions


class OnlineEWC(EWC):
    """Adds to the loss, for the weights theta,

        strength / 2 sum_i F*_i (theta_i - theta*_i)^2,    F* <- gamma F* + F after each task

    (Schwarz et al. 2018, arXiv 1805.06370, section 3.2). theta* are the weights after the LAST task, where `EWC` keeps
    those after each, and with gamma < 1 older tasks are let go. F is as in `EWC`, and so is everything else. Schwarz et
    al. also normalise each F; this is not done here, so that after one task it is `EWC`.

    Args:
        strength: lambda, 0 or more.
        gamma: from 0 (only the last task counts) to 1 (all count alike).
        examples: as in `EWC`.
        labels: as in `EWC`.
        functions: as in `EWC`.
        exclude: as in `EWC`.

    Raises:
        InvalidRateError: a strength that is not from 0 to 1e30; a gamma that is not from 0 to 1.
    """

    name: ClassVar[str] = "online-ewc"
    info: ClassVar[MethodInfo] = MethodInfo(
        "as ewc, with one importance that fades and the last weights as the anchor",
        "Schwarz et al. 2018, arXiv 1805.06370",
        stores="two copies of the weights",
        fsdp2=False,
    )

    def __init__(
        self,
        strength: float = 100.0,
        gamma: float = 0.95,
        examples: int = 500,
        labels: str = "sampled",
        *,
        functions: TaskFunctions | None = None,
        exclude: str | None = None,
    ) -> None:
        super().__init__(strength, examples, labels, functions=functions, exclude=exclude)
        self.gamma = check_finite("gamma", gamma, error=InvalidRateError)
        if self.gamma > 1:
            raise InvalidRateError(f"gamma must be a number from 0 to 1, not {shown(gamma)}.")

    @override
    def settings(self) -> dict[str, Setting]:
        settings = super().settings()
        return {"strength": settings.pop("strength"), "gamma": self.gamma, **settings}

    @override
    def learn(self, module: L.LightningModule, loader: Any, head: str | None) -> None:
        parameters = self.protected(module)
        self.pull.replace(self.importance(module, parameters, loader, head), parameters, self.gamma)
