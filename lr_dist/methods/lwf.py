"""LwF: on the new task's inputs, the old tasks' outputs shall stay what the model before the stage makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lr_dist._callback.scaling import loss_scale
from lr_dist._lightning import L
from lr_dist.checks import check_finite, check_strength
from lr_dist.errors import ConfigurationError, InvalidRateError
from lr_dist.layers import clean_name
from lr_dist.methods.anchor import Anchor
from lr_dist.methods.base import Method, MethodInfo, Setting
from lr_dist.methods.context import StageContext
from lr_dist.methods.evaluating import batch_norms, evaluating
from lr_dist.methods.task_functions import TaskFunctions


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(outputs / T)), the mean over examples (and tokens).

    With one output (a regression), where a softmax is constant: the mean of (outputs - teacher)^2.

    Args:
        outputs: [examples, ..., classes].
        teacher: the same shape.
        temperature: T, above 0.
    """
    outputs, teacher = outputs.float(), teacher.float()
    if outputs.shape[-1] == 1:
        return (outputs - teacher).square().mean()
    log_p = (outputs / temperature).log_softmax(-1).flatten(0, -2)
    log_q = (teacher / temperature).log_softmax(-1).flatten(0, -2)
    return temperature**2 * nn.functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


class LwF(Method):
    """Learning without forgetting: adds to the loss

        strength sum over earlier heads of T^2 KL(softmax(f'(x) / T) || softmax(f(x) / T))

    on the inputs x of the NEW task, f being an earlier head's outputs and f' those of the model before the stage
    (Li and Hoiem 2016, arXiv 1606.09282, equations 2 and 3; their loss differs from the divergence by a
    constant; T^2 as in Hinton et al. 2015, arXiv 1503.02531, keeps the gradient's size when T changes). Earlier heads
    are trained, too, as in the paper. No earlier example is kept. The first stage is not changed.

    With several heads, those of `StageContext.earlier_heads` are used; in a module with one head, this head's outputs
    are distilled. In your own Trainer with several heads, say how to get their outputs:

        LwF(functions=TaskFunctions(outputs=lambda module, batch, head: module.old_head(module.encode(batch))))

    The teacher draws no random numbers; the new task's outputs of the pupil do (its dropout is on).

    Memory: one copy of the weights during a stage, in checkpoints too. Time: one more forward pass without and one with
    gradients in each step (for each old head, unless the module has `heads_outputs(batch, heads)`, which returns a
    list). Works under DDP, with gradient accumulation, clipping and mixed precision.

    Args:
        strength: lambda_o, 0 or more.
        temperature: T, above 0.
        functions: outputs of a batch for a head, where they are not found by themselves.

    Raises:
        InvalidRateError: a strength that is not from 0 to 1e30; a temperature that is not above 0.
        ConfigurationError: in training, a batch of unknown form, or a teacher whose outputs have another shape; on
            resuming, a checkpoint of a model with other shapes.
        UnsupportedStrategyError: FSDP1, FSDP2, DeepSpeed.
        ResumeMismatchError: a checkpoint that was written without this method, or with other settings.
    """

    name: ClassVar[str] = "lwf"
    info: ClassVar[MethodInfo] = MethodInfo(
        "keeps the earlier heads' outputs on the new task's inputs (distillation)",
        "Li and Hoiem 2016, arXiv 1606.09282",
        stores="one copy of the weights during a task",
        fsdp2=False,
    )
    trains_earlier_heads: ClassVar[bool] = True

    def __init__(
        self, strength: float = 1.0, temperature: float = 2.0, *, functions: TaskFunctions | None = None
    ) -> None:
        self.strength = check_strength("strength", strength, error=InvalidRateError)
        self.temperature = check_finite("temperature", temperature, error=InvalidRateError, positive=True)
        self.functions = functions or TaskFunctions()
        self._teacher = Anchor()
        self._resumed = False
        self._batch: Any = None
        self._answers: list[Tensor] = []

    @override
    def settings(self) -> dict[str, Setting]:
        return {"strength": self.strength, "temperature": self.temperature}

    @override
    def trains_in(self, context: StageContext) -> bool:
        """Not in the first stage, unless it has earlier heads."""
        return context.index > 0 or bool(context.earlier_heads)

    @property
    def _heads(self) -> tuple[str | None, ...]:
        return self.context.earlier_heads or (None,)

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        """Copy the teacher's weights, unless they are in a checkpoint."""
        if not self._resumed:
            self._teacher = Anchor()
        self._resumed = False
        if self.trains_in(self.context):
            self._teacher.hold(_weights(module).items())

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ask the teacher, before the graph of this batch is made."""
        if not self.trains_in(self.context) or not self.strength:
            return
        self._batch = batch
        with torch.no_grad(), evaluating(pl_module), _with_weights(pl_module, self._teacher), _precision(trainer):
            self._answers = self._outputs(pl_module, batch)

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Add the distillation loss; with several optimizers, to the first loss of a batch."""
        if self._batch is None:
            return
        batch, answers, self._batch, self._answers = self._batch, self._answers, None, []
        # The statistics of batch norms have seen these inputs already.
        with evaluating(*batch_norms(pl_module)), _precision(trainer):
            outputs = self._outputs(pl_module, batch)
        terms = []
        for head, new, old in zip(self._heads, outputs, answers, strict=True):
            if new.shape != old.shape:
                raise ConfigurationError(
                    f"The teacher's outputs of head {head} have the shape {tuple(old.shape)}, the model's "
                    f"{tuple(new.shape)}: `outputs` of TaskFunctions must return the same head in evaluation mode."
                )
            terms.append(distillation(new, old, self.temperature))
        loss.add_(loss_scale(trainer, pl_module, loss) * self.strength * torch.stack(terms).sum())

    def _outputs(self, module: L.LightningModule, batch: Any) -> list[Tensor]:
        at_once = getattr(module, "heads_outputs", None)
        if at_once is not None and self.functions.outputs is None:
            return at_once(batch, self._heads)
        return [self.functions.outputs_of(module, batch, head) for head in self._heads]

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """The next task has another teacher."""
        self._teacher, self._resumed = Anchor(), False

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the batch."""
        self._batch, self._answers = None, []

    @override
    def state(self) -> dict[str, Any]:
        return {"teacher": self._teacher.state_dict()}

    @override
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._teacher = Anchor()
        self._teacher.load_state_dict(state["teacher"])
        self._resumed = True


def _weights(module: nn.Module) -> dict[str, Any]:
    """Parameters and buffers, by name."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {clean_name(name): tensor for name, tensor in named}


@contextmanager
def _with_weights(module: nn.Module, teacher: Anchor) -> Iterator[None]:
    """Exchange the weights for the teacher's, without copying.

    The module then computes in every respect as the pupil does: hooks, joined texts, compiled parts.
    """
    weights = {name: tensor for name, tensor in _weights(module).items() if name in teacher}
    before = {name: tensor.data for name, tensor in weights.items()}
    try:
        for name, tensor in weights.items():
            tensor.data = teacher[name]
        yield
    finally:
        for name, tensor in weights.items():
            tensor.data = before[name]


def _precision(trainer: L.Trainer) -> Any:
    """Lightning's autocast, in which training_step runs."""
    return trainer.precision_plugin.forward_context()
