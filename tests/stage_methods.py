"""Methods of each kind, for tests of the stages that arms share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lr_dist.methods import Method, MethodInfo, Order


class Halfway(Method):
    """At the border, from the second stage on: the weights between before and after."""

    name: ClassVar[str] = "halfway"
    info: ClassVar[MethodInfo] = MethodInfo("test", "test")
    order: ClassVar[Order] = Order.BORDER

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = alpha
        self.before: dict[str, torch.Tensor] = {}

    def settings(self):
        return {"alpha": self.alpha}

    def trains_in(self, context):
        return False

    def stage_started(self, module):
        self.before = {n: p.detach().clone() for n, p in module.named_parameters()}

    @torch.no_grad()
    def stage_ended(self, module, loader):
        if self.context.index > 0:
            for name, p in module.named_parameters():
                # Frozen weights are left alone, as they are in a fit.
                if p.requires_grad:
                    p.copy_(self.before[name] + self.alpha * (p - self.before[name]))


class Recall(Method):
    """Learns from a stage's final weights and its data (in the loader's next order, with a random draw); in later
    stages adds a gradient that depends on all of it, and counts their steps."""

    name: ClassVar[str] = "recall"
    info: ClassVar[MethodInfo] = MethodInfo("test", "test")

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength
        self.pull = torch.zeros(())
        self.steps = torch.zeros((), dtype=torch.long)

    def settings(self):
        return {"strength": self.strength}

    def trains_in(self, context):
        return context.index > 0

    def stage_ended(self, module, loader):
        batch = next(iter(loader))
        weights = sum(p.detach().abs().sum() for p in module.parameters() if p.requires_grad)
        draw = torch.rand(()) + torch.rand((), generator=self.context.generator(self.name))
        self.pull = weights.cpu() * 1e-3 + draw + batch["input_ids"].float().std() + self.steps

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if not self.trains_in(self.context):
            return
        self.steps += 1
        for p in pl_module.parameters():
            if p.grad is not None:
                p.grad.add_(self.strength * self.pull * 1e-3 * p.detach())

    def state(self) -> dict[str, Any]:
        return {"pull": self.pull, "steps": self.steps, 3: [("plain", None)]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        assert state[3] == [("plain", None)]
        self.pull, self.steps = state["pull"].clone(), state["steps"].clone()


class Mean(Method):
    """Ends the training: takes over the mean of the weights after all steps. Its state afterwards is a count."""

    name: ClassVar[str] = "mean"
    info: ClassVar[MethodInfo] = MethodInfo("test", "test")
    order: ClassVar[Order] = Order.FINISH

    def __init__(self, from_stage: int = 0) -> None:
        self.from_stage = from_stage
        self.count, self.sums = 0, {}

    def settings(self):
        return {"from_stage": self.from_stage}

    def trains_in(self, context):
        return context.index >= self.from_stage

    def stage_started(self, module):
        self.sums = {}

    def on_train_batch_end(self, trainer, pl_module, *others):
        if self.trains_in(self.context):
            for name, p in pl_module.named_parameters():
                self.sums.setdefault(name, []).append(p.detach().clone())

    @torch.no_grad()
    def stage_ended(self, module, loader):
        self.count += 1
        for name, p in module.named_parameters():
            if self.sums:
                p.copy_(torch.stack(self.sums[name]).mean(0))

    def state(self):
        return {"count": self.count}

    def load_state(self, state):
        self.count = state["count"]
