"""Experience replay: a few examples of the earlier tasks in every batch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lr_dist._callback.scaling import loss_scale
from lr_dist._lightning import L
from lr_dist.checks import check_finite
from lr_dist.errors import ConfigurationError
from lr_dist.methods.base import MethodInfo, Setting
from lr_dist.methods.buffer import RehearsalBuffer
from lr_dist.methods.rehearsal import Rehearsal, new_examples, processes
from lr_dist.methods.task_functions import TaskFunctions


class Replay(Rehearsal):
    """Learns examples of earlier tasks along with those of the new one (experience replay).

    The loss of a batch of B new examples becomes the mean over these and R replayed ones,

        (sum_i l(x_i, y_i) + sum_j l(x_j, y_j)) / (B + R),

    as if both were one batch (Chaudhry et al. 2019, "On tiny episodic memories in continual learning", arXiv
    1902.10486). R is the whole part of what `ratio` makes due: at ratio 0.05 and batches of 32 it is 1 or 2, and
    after n new examples exactly floor(0.05 n) were replayed. Each earlier example is computed by the head of its task.
    The stored examples are gone through in random order, each as often as every other.

        trainer = L.Trainer(callbacks=[LayerwiseLR("flat:lr=1e-4"), Replay(ratio=0.05, size=500)])

    List it before callbacks that add a penalty to the loss, because it multiplies what the loss is at its turn by
    B / (B + R), and after those that read the loss (LossAdaptiveLR). The logged loss is that of the new task.

    Cost: one more forward and backward pass a step, of R examples, where R > 0, for each earlier task among them.
    Memory: `size` examples, in checkpoints too. Works under DDP and FSDP2, with gradient accumulation, clipping and
    mixed precision; see `Rehearsal`.

    Args:
        ratio: replayed examples for each new one, greater than 0; 1 replays as many as are new.
        size: examples kept of all earlier tasks together.
        policy: `reservoir` (uniform) or `balanced` (as many of each class), see `RehearsalBuffer`.
        only: names of the tasks of which examples are kept, joined by `+`, such as `sst2+mrpc`; by default all.
        buffer: a buffer of your own, in place of `size` and `policy`.
        functions: how outputs, targets and loss of a batch are computed, if it is no mapping with `labels` and no pair.

    Raises:
        ConfigurationError: an invalid setting; at the start of a fit, data that cannot be kept (see `Rehearsal`).
        UnsupportedStrategyError: at the start of a fit, see `Rehearsal`.
    """

    name: ClassVar[str] = "replay"
    info: ClassVar[MethodInfo] = MethodInfo(
        "learns examples of earlier tasks along with the new ones",
        "Chaudhry et al. 2019, arXiv 1902.10486",
        stores="examples",
        earlier_data=True,
    )

    def __init__(
        self,
        ratio: float = 0.05,
        size: int = 500,
        policy: str = "reservoir",
        only: str = "",
        *,
        buffer: RehearsalBuffer | None = None,
        functions: TaskFunctions | None = None,
    ) -> None:
        super().__init__(size, policy, buffer, functions, only)
        self.ratio = check_finite("ratio", ratio, error=ConfigurationError, positive=True)

    @override
    def settings(self) -> dict[str, Setting]:
        return {"ratio": self.ratio, "size": self.buffer.size, "policy": self.buffer.policy, **self._only()}

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Make the loss the mean over new and replayed examples."""
        if not len(self.buffer):
            return
        # Under manual optimization, only the first backward pass of a batch counts.
        new, self._new = new_examples(trainer, self._new), 0
        replayed = self._draws.due(self.ratio, new)
        if not replayed:
            return
        total = torch.zeros((), device=loss.device)
        # Lightning calls this hook outside the context of `training_step`.
        with trainer.precision_plugin.train_step_context():
            for portion, weight in self._portions(trainer, replayed):
                mean = self.functions.loss_of(*self._forward(trainer, pl_module, portion))
                total = total + weight * len(portion) * mean
        # Gradients are averaged over the processes, each of which has a part of the sum.
        _, replicas = processes(trainer)
        loss.mul_(new / (new + replayed))
        loss.add_(loss_scale(trainer, pl_module, loss) * total * (replicas / (new + replayed)))
