"""EWC: each weight is pulled toward its value after an earlier task, as strongly as that task depends on it."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn
from typing_extensions import override

from lr_dist._lightning import L
from lr_dist.checks import check_strength, check_whole
from lr_dist.errors import ConfigurationError, InvalidRateError, shown
from lr_dist.methods.base import MethodInfo, Setting
from lr_dist.methods.importance import LABELS, Labels, fisher
from lr_dist.methods.quadratic import LearnsFromData, QuadraticPull
from lr_dist.methods.task_functions import TaskFunctions


class EWC(LearnsFromData):
    """Elastic weight consolidation: adds to the loss, for the weights theta,

        sum over earlier tasks k of strength / 2 sum_i F_ki (theta_i - theta*_ki)^2

    (Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3). theta*_k are the weights after task k and F_k is the
    diagonal of its Fisher information: the mean over examples of the squared gradient of log p(y|x) of ONE example,
    without dropout. It is estimated at the end of each stage from examples of the stage's loader. The first stage has
    no earlier task and is not changed, unless `learn_from` was called before.

        ewc = EWC(strength=100)
        L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-4"), ewc]).fit(module, first_task)
        L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-4"), ewc]).fit(module, second_task)

    Memory: two copies of the weights, however many tasks (see `QuadraticPull`; the gradient is that of one penalty for
    each task), in checkpoints too. Works under DDP, with gradient accumulation, clipping and mixed precision.

    Args:
        strength: lambda, 0 or more. F is often small (1e-4 and less), so useful strengths vary over many powers of 10.
        examples: at most so many of a stage's examples are used; all, if it has fewer.
        labels: `sampled` draws y from the model's own distribution (the Fisher information); `true` takes the data's
            (the empirical Fisher, which vanishes where a task was learned perfectly).
        functions: outputs, targets and loss of a batch, where they are not found by themselves.
        exclude: regular expression for names of parameters that are not protected, such as `classifier` in a Trainer
            in which every task gets a new one.

    Raises:
        InvalidRateError: a strength that is not from 0 to 1e30.
        ConfigurationError: invalid `examples` or `labels`; at the start of a fit, another model than that of an earlier
            fit; at its end, a batch of unknown form.
        UnsupportedStrategyError: FSDP1, FSDP2, DeepSpeed.
        UnsupportedOptimizerError: in training, a sparse gradient.
        ResumeMismatchError: a checkpoint that was written without this method, or with other settings.
    """

    name: ClassVar[str] = "ewc"
    info: ClassVar[MethodInfo] = MethodInfo(
        "pulls each weight toward its value after earlier tasks, by its Fisher information",
        "Kirkpatrick et al. 2017, arXiv 1612.00796",
        stores="two copies of the weights",
        fsdp2=False,
    )

    def __init__(
        self,
        strength: float = 100.0,
        examples: int = 500,
        labels: str = "sampled",
        *,
        functions: TaskFunctions | None = None,
        exclude: str | None = None,
    ) -> None:
        self.strength = check_strength("strength", strength, error=InvalidRateError)
        self.examples = check_whole("examples", examples, 1, error=ConfigurationError)
        if labels not in LABELS:
            raise ConfigurationError(f"labels must be {' or '.join(LABELS)}, not {shown(labels)}.")
        self.labels = cast(Labels, labels)
        self.functions = functions or TaskFunctions()
        self.exclude = exclude
        self.pull = QuadraticPull()
        self._names = {}

    @override
    def settings(self) -> dict[str, Setting]:
        return {"strength": self.strength, "examples": self.examples, "labels": self.labels}

    @override
    def factor(self) -> float:
        return self.strength / 2

    @override
    def learn(self, module: L.LightningModule, loader: Any, head: str | None) -> None:
        parameters = self.protected(module)
        self.pull.add(self.importance(module, parameters, loader, head), parameters)

    def importance(
        self, module: L.LightningModule, parameters: dict[str, nn.Parameter], loader: Any, head: str | None
    ) -> dict[str, Tensor]:
        """The Fisher information of the loader's task, by name of the parameter."""
        return fisher(
            module,
            parameters,
            loader,
            self.functions,
            head=head,
            labels=self.labels,
            examples=self.examples,
            seed=self.context.generator(self.name).initial_seed(),
        )
