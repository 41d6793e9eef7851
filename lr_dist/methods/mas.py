"""MAS: importances from how much the outputs depend on each weight; needs no labels."""

from __future__ import annotations

from typing import Any, ClassVar

from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.checks import check_strength, check_whole
from lr_dist.errors import ConfigurationError, InvalidRateError
from lr_dist.methods.base import MethodInfo, Setting
from lr_dist.methods.importance import sensitivity
from lr_dist.methods.quadratic import LearnsFromData, QuadraticPull
from lr_dist.methods.task_functions import TaskFunctions


class MAS(LearnsFromData):
    """Memory aware synapses: adds to the loss, for the weights theta,

        strength sum_i Omega_i (theta_i - theta*_i)^2

    (Aljundi et al. 2018, arXiv 1711.09601, equations 3 to 5). theta* are the weights after the last task, and Omega is
    summed over the tasks; of one task it is the mean over examples of |d ||f(x)||^2 / d theta_i|, f(x) being the
    outputs (logits), without dropout. The absolute value is taken of ONE example's gradient; the authors' code, FACIL
    and Avalanche take that of a batch's mean, where examples of opposite sign cancel, and Avalanche averages the tasks'
    Omega (alpha) where this sums them. The first stage is not changed, unless `learn_from` was called before.

    Memory: two copies of the weights, in checkpoints too. Works under DDP, with gradient accumulation, clipping and
    mixed precision.

    Args:
        strength: lambda, 0 or more.
        examples: at most so many of a stage's examples are used; all, if it has fewer.
        functions: outputs of a batch, where they are not found by themselves.
        exclude: regular expression for names of parameters that are not protected, as in `EWC`.

    Raises:
        LRDistError: the errors of `EWC`.
    """

    name: ClassVar[str] = "mas"
    info: ClassVar[MethodInfo] = MethodInfo(
        "pulls each weight toward its last value, by how much the outputs depend on it",
        "Aljundi et al. 2018, arXiv 1711.09601",
        stores="two copies of the weights",
        fsdp2=False,
    )

    def __init__(
        self,
        strength: float = 1.0,
        examples: int = 500,
        *,
        functions: TaskFunctions | None = None,
        exclude: str | None = None,
    ) -> None:
        self.strength = check_strength("strength", strength, error=InvalidRateError)
        self.examples = check_whole("examples", examples, 1, error=ConfigurationError)
        self.functions = functions or TaskFunctions()
        self.exclude = exclude
        self.pull = QuadraticPull()
        self._names = {}

    @override
    def settings(self) -> dict[str, Setting]:
        return {"strength": self.strength, "examples": self.examples}

    @override
    def factor(self) -> float:
        return self.strength

    @override
    def learn(self, module: L.LightningModule, loader: Any, head: str | None) -> None:
        parameters = self.protected(module)
        importance = sensitivity(module, parameters, loader, self.functions, head=head, examples=self.examples)
        self.pull.replace(importance, parameters, keep=1.0)
