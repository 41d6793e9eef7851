"""A-GEM: no step that would raise the loss on earlier examples, to first order."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lr_dist._callback.scaling import gradient_scaler
from lr_dist._lightning import L
from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, UnsupportedOptimizerError
from lr_dist.methods.base import MethodInfo, Setting
from lr_dist.methods.buffer import RehearsalBuffer
from lr_dist.methods.rehearsal import Rehearsal, processes
from lr_dist.methods.task_functions import TaskFunctions


class AGEM(Rehearsal):
    """Before each step, takes out of the gradient g what points against that of earlier examples, g_ref:

        g - (g . g_ref) / (g_ref . g_ref) g_ref    where g . g_ref < 0, and g elsewhere

    (A-GEM, Chaudhry et al. 2019, arXiv 1812.00420, equation 11). g_ref is the gradient of the mean loss on `examples`
    of the stored ones, each computed by the head of its task, anew for each step of an optimizer. Both are vectors over
    all parameters that the optimizer trains, heads included; where one has no gradient, it counts as 0. With several
    optimizers, each has vectors of its own.

    g is the gradient after accumulation and, under DDP, averaged over the processes, as g_ref is; it is changed before
    clipping. With a gradient scaler neither scale has an effect: the result is in proportion to g, and the same for
    every multiple of g_ref. What other callbacks add to the gradient earlier in the list is part of g.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-4"), AGEM(examples=32, size=500)])

    Cost: one more forward and backward pass a step of an optimizer, of `examples`, for each earlier task among them;
    under DDP the gradients are exchanged once more. Memory: `size` examples, in checkpoints too, and during the step
    one more copy of the gradients. Works under DDP, with gradient accumulation, clipping and mixed precision; see
    `Rehearsal`. Not under FSDP2, which has no whole gradients.

    Args:
        examples: stored examples for g_ref, of all processes together; all of them if fewer are held.
        size: examples kept of all earlier tasks together, at least `examples`.
        policy: `reservoir` or `balanced`, see `RehearsalBuffer`.
        only: names of the tasks of which examples are kept, joined by `+`, such as `sst2+mrpc`; by default all.
        buffer: a buffer of your own, in place of `size` and `policy`.
        functions: how outputs, targets and loss of a batch are computed, if it is no mapping with `labels` and no pair.

    Raises:
        ConfigurationError: an invalid setting; at the start of a fit, data that cannot be kept (see `Rehearsal`).
        UnsupportedStrategyError: at the start of a fit, FSDP2, and see `Rehearsal`.
        UnsupportedOptimizerError: in training, a sparse gradient.
    """

    name: ClassVar[str] = "a-gem"
    info: ClassVar[MethodInfo] = MethodInfo(
        "takes out of each gradient what would raise the loss on earlier examples",
        "Chaudhry et al. 2019, arXiv 1812.00420",
        stores="examples",
        earlier_data=True,
        fsdp2=False,
    )

    def __init__(
        self,
        examples: int = 32,
        size: int = 500,
        policy: str = "reservoir",
        only: str = "",
        *,
        buffer: RehearsalBuffer | None = None,
        functions: TaskFunctions | None = None,
    ) -> None:
        super().__init__(size, policy, buffer, functions, only)
        hint = f"At most size={self.buffer.size} are kept."
        self.examples = check_whole("examples", examples, 1, self.buffer.size, error=ConfigurationError, hint=hint)

    @override
    def settings(self) -> dict[str, Setting]:
        return {"examples": self.examples, "size": self.buffer.size, "policy": self.buffer.policy, **self._only()}

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Project the gradient."""
        if not len(self.buffer):
            return
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        reference = self._reference(trainer, pl_module, trained)
        with torch.no_grad():
            project(trained, reference)

    def _reference(
        self, trainer: L.Trainer, module: L.LightningModule, trained: list[nn.Parameter]
    ) -> list[Tensor | None]:
        """g_ref for each parameter, times a positive number; None where it is 0."""
        number = min(self.examples, len(self.buffer))
        _, replicas = processes(trainer)
        # Lightning calls this hook where gradients are switched off and outside the context of `training_step`.
        with torch.enable_grad():
            total = torch.zeros((), device=module.device)
            with trainer.precision_plugin.train_step_context():
                for portion, weight in self._portions(trainer, number):
                    mean = self.functions.loss_of(*self._forward(trainer, module, portion))
                    total = total + weight * len(portion) * mean
            total = total * (replicas / number)
            if (scaler := gradient_scaler(trainer)) is not None:  # or small gradients become 0 in float16
                total = scaler.scale(total)
            # Not `backward`: it would add to the gradients, and DDP would exchange them.
            found = torch.autograd.grad(total, trained, allow_unused=True)
        if replicas == 1:
            return list(found)
        flat = torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(trained, found, strict=True)]
        )
        averaged = trainer.strategy.reduce(flat, reduce_op="mean")
        parts = averaged.split([p.numel() for p in trained])
        return [part.view_as(p) for part, p in zip(parts, trained, strict=True)]


def project(trained: list[nn.Parameter], reference: list[Tensor | None]) -> None:
    """Change the parameters' gradients so that their product with the reference is not below 0.

    Args:
        trained: parameters with their gradients.
        reference: a gradient for each, or None for 0.

    Raises:
        UnsupportedOptimizerError: a sparse gradient.
    """
    if any(g is not None and g.is_sparse for p, r in zip(trained, reference, strict=True) for g in (p.grad, r)):
        raise UnsupportedOptimizerError(
            "a-gem compares whole gradients, and one is sparse. Use nn.Embedding(sparse=False)."
        )
    both = [(p, r) for p, r in zip(trained, reference, strict=True) if r is not None]
    product = sum(_product(p.grad, r) for p, r in both if p.grad is not None)
    # Not where it is NaN either: a gradient scaler then skips the step.
    if not product < 0:
        return
    factor = -product / sum(_product(r, r) for _, r in both)
    for p, r in both:
        p.grad = r * factor if p.grad is None else p.grad.add_(r, alpha=factor)


def _product(left: Tensor, right: Tensor) -> float:
    return float(torch.dot(left.flatten().float(), right.flatten().float()))
