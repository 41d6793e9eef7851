"""Dark experience replay (DER++): earlier examples with the outputs that the model had for them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lr_dist._callback.scaling import loss_scale
from lr_dist._lightning import L
from lr_dist.checks import check_finite
from lr_dist.errors import ConfigurationError
from lr_dist.methods.base import MethodInfo, Setting
from lr_dist.methods.buffer import Memory, Portion, RehearsalBuffer
from lr_dist.methods.evaluating import evaluating
from lr_dist.methods.rehearsal import Rehearsal, moved_to, new_examples, processes
from lr_dist.methods.task_functions import TaskFunctions


class DER(Rehearsal):
    """Adds to the loss of the new task, for stored examples (x, y) with recorded outputs z,

        alpha mean_j |h(x_j) - z_j|^2 + beta mean_k l(h(x_k), y_k)

    where j and k run over two separate draws (DER++, Buzzega et al. 2020, arXiv 2004.07211, equation 6). h are the
    outputs of the head of the example's task before a softmax; the square is summed over them (the authors' code takes
    its mean, so their alpha is theirs times the number of outputs here). With beta=0 it is DER, and the second
    draw is left out.

    Each draw has R examples a step, which is what `ratio` makes due as in `Replay`, and a sum over R is divided by
    ratio B, for a batch of B new examples: on average over the steps it is the mean, and alpha and beta mean the same
    at every ratio.

    The outputs are recorded when the stage ends, in evaluation mode and float32. The paper records them along the way,
    when reservoir sampling takes an example in, because its stream has no borders; where there are borders, the
    outputs at the end are those of the model that has learned the task, and a stage that was trained before can be
    used without training it again.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-4"), DER(alpha=0.5, beta=0.5, ratio=0.05)])

    The logged loss is that of the new task. Cost: one more forward and backward pass a step, of 2 R examples, for each
    earlier task among them; one forward pass over the stored examples at the end of a stage. Memory: `size` examples
    and their outputs, in checkpoints too. Works under DDP and FSDP2, with gradient accumulation, clipping and mixed
    precision; see `Rehearsal`.

    Args:
        alpha: strength of the recorded outputs, 0 or more.
        beta: strength of the labels, 0 or more.
        ratio: examples of each draw for each new one, greater than 0.
        size: examples kept of all earlier tasks together.
        policy: `reservoir` or `balanced`, see `RehearsalBuffer`.
        only: names of the tasks of which examples are kept, joined by `+`, such as `sst2+mrpc`; by default all.
        buffer: a buffer of your own, in place of `size` and `policy`.
        functions: how outputs, targets and loss of a batch are computed, if it is no mapping with `labels` and no pair.

    Raises:
        ConfigurationError: an invalid setting; at the start of a fit, data that cannot be kept (see `Rehearsal`), or
            outputs that are not [batch] or [batch, outputs].
        UnsupportedStrategyError: at the start of a fit, see `Rehearsal`.
    """

    name: ClassVar[str] = "der"
    info: ClassVar[MethodInfo] = MethodInfo(
        "keeps the outputs for earlier examples as they were, and learns their labels (DER++)",
        "Buzzega et al. 2020, arXiv 2004.07211",
        stores="examples and their outputs",
        earlier_data=True,
    )

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        ratio: float = 0.05,
        size: int = 500,
        policy: str = "reservoir",
        only: str = "",
        *,
        buffer: RehearsalBuffer | None = None,
        functions: TaskFunctions | None = None,
    ) -> None:
        super().__init__(size, policy, buffer, functions, only)
        self.alpha = check_finite("alpha", alpha, error=ConfigurationError)
        self.beta = check_finite("beta", beta, error=ConfigurationError)
        self.ratio = check_finite("ratio", ratio, error=ConfigurationError, positive=True)

    @override
    def settings(self) -> dict[str, Setting]:
        return {
            **{"alpha": self.alpha, "beta": self.beta, "ratio": self.ratio},
            **{"size": self.buffer.size, "policy": self.buffer.policy},
            **self._only(),
        }

    @override
    def stage_started(self, module: L.LightningModule) -> None:
        """Record the outputs of examples that were given to the buffer: those of the weights before this stage."""
        super().stage_started(module)
        for memory in list(self.buffer.memories):
            if len(memory) and not memory.outputs:
                self._record(module, memory)

    @override
    def stage_ended(self, module: L.LightningModule, loader: Any) -> None:
        """Keep examples of the stage, and record their outputs."""
        memory = self._keep_examples(loader)
        if memory is not None:
            self._record(module, memory)

    def _record(self, module: L.LightningModule, memory: Memory) -> None:
        def outputs_of(batch: Any) -> Tensor:
            return self.functions.outputs_of(module, moved_to(module, batch), memory.head)

        with torch.no_grad(), evaluating(module):
            self.buffer.record(memory, outputs_of)

    @override
    def _check_outputs(self, outputs: Tensor) -> None:
        if outputs.ndim > 2:
            raise ConfigurationError(
                f"der compares outputs [batch] or [batch, outputs], and these are {list(outputs.shape)}. Give "
                "functions=TaskFunctions(outputs=...) that returns one vector an example, or use replay."
            )

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Add both terms to the loss."""
        if not len(self.buffer):
            return
        new, self._new = new_examples(trainer, self._new), 0
        each = self._draws.due(self.ratio, new)
        if not each or not (self.alpha or self.beta):
            return
        # One pass for both draws: the first `each` examples are those of the first.
        first = each if self.alpha else 0
        second = each if self.beta else 0
        total = torch.zeros((), device=loss.device)
        with trainer.precision_plugin.train_step_context():
            for portion, weight in self._portions(trainer, first + second):
                outputs, targets = self._forward(trainer, pl_module, portion)
                total = total + weight * self._terms(outputs, targets, portion, first)
        _, replicas = processes(trainer)
        loss.add_(loss_scale(trainer, pl_module, loss) * total * (replicas / (self.ratio * new)))

    def _terms(self, outputs: Tensor, targets: Tensor, portion: Portion, first: int) -> Tensor:
        """The weighted sum over a portion's examples."""
        matched = (portion.positions < first).to(outputs.device)
        learned = ~matched
        recorded = portion.outputs.to(outputs.device)
        distance = (outputs[matched].float() - recorded[matched]).square().sum()
        if not learned.any():
            return self.alpha * distance
        mean = self.functions.loss_of(outputs[learned], targets[learned])
        return self.alpha * distance + self.beta * learned.sum() * mean
