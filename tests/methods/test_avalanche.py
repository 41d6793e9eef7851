"""Penalties and importances of Avalanche 0.6 on a toy model, and where they differ on purpose.

Skipped where Avalanche is not installed (`pip install avalanche-lib==0.6.0`).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from methods.fits import Module, batches, fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lr_dist.methods import EWC, MAS, SI, OnlineEWC
from lr_dist.methods.lwf import distillation

plugins = pytest.importorskip("avalanche.training.plugins")
regularization = pytest.importorskip("avalanche.training.regularization")
utils = pytest.importorskip("avalanche.training.utils")


class Toy(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def data(seed: int = 1) -> TensorDataset:
    """Inputs, labels, and Avalanche's labels of tasks."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (24,), generator=generator)
    return TensorDataset(torch.randn(24, 4, generator=generator), y, torch.zeros(24, dtype=torch.long))


def ours(dataset: TensorDataset) -> DataLoader:
    return DataLoader(TensorDataset(*dataset.tensors[:2]), batch_size=8)


def shift(module: nn.Module, by: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(by * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))


def strategy(model: nn.Module, dataset: TensorDataset, task: int, batch_size: int) -> Any:
    return SimpleNamespace(
        model=model,
        experience=SimpleNamespace(dataset=dataset),
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        device="cpu",
        train_mb_size=batch_size,
        clock=SimpleNamespace(train_exp_counter=task),
        loss=torch.tensor(1.0),  # Avalanche's MAS refuses a loss of 0
        _criterion=nn.functional.cross_entropy,
    )


def their_penalty(plugin: Any, module: nn.Module, task: int) -> torch.Tensor:
    state = strategy(module, data(), task, 1)
    plugin.before_backward(state)
    return state.loss.detach() - 1.0


@pytest.mark.parametrize("online", [False, True])
def test_ewc_is_theirs_at_half_the_strength_if_their_batches_hold_one_example(online):
    """They square the gradient of a batch's mean loss; only for batches of one is that the Fisher information."""
    module = Toy()
    mode = {"mode": "online", "decay_factor": 0.9} if online else {"mode": "separate"}
    exact, batched = plugins.EWCPlugin(3.0, **mode), plugins.EWCPlugin(3.0, **mode)
    method = OnlineEWC(strength=6.0, gamma=0.9, labels="true") if online else EWC(strength=6.0, labels="true")
    for task, dataset in enumerate((data(1), data(2))):
        exact.after_training_exp(strategy(module, dataset, task, 1))
        batched.after_training_exp(strategy(module, dataset, task, 8))
        method.learn_from(module, ours(dataset))
        shift(module, 0.1)
    torch.testing.assert_close(method.penalty(module).detach(), their_penalty(exact, module, 2), rtol=1e-4, atol=1e-7)
    # On purpose: with batches of 8, theirs is several times smaller.
    assert their_penalty(batched, module, 2) < 0.5 * their_penalty(exact, module, 2)


def test_mas_is_theirs_if_their_batches_hold_one_example():
    """They take the absolute value of a batch's mean gradient; and after a second task, a mean where ours is a sum."""
    module, dataset = Toy(), data()
    method, exact, batched = MAS(strength=2.0), plugins.MASPlugin(2.0), plugins.MASPlugin(2.0)
    exact.after_training_exp(strategy(module, dataset, 0, 1))
    batched.after_training_exp(strategy(module, dataset, 0, 24))
    method.learn_from(module, ours(dataset))
    shift(module, 0.1)
    torch.testing.assert_close(method.penalty(module).detach(), their_penalty(exact, module, 1), rtol=1e-4, atol=1e-7)
    assert their_penalty(batched, module, 1) < 0.95 * their_penalty(exact, module, 1)


def copied(weights: dict[str, Any]) -> None:
    for each in weights.values():
        each.data = each.data.clone()


def test_si_has_their_path_and_twice_their_penalty_for_the_same_strength():
    """Their penalty has c / 2; their importances may be negative, and are at most 0.001 (not here).

    On a CPU, what they remember of the weights shares memory with the weights, so their path is 0; copied here.
    """
    kind = plugins.SynapticIntelligencePlugin
    module, method = Module(optimizer=torch.optim.AdamW, lr=3e-3), SI(strength=1.0, xi=1e-3)
    sums: Any = ({}, {})
    path: Any = {key: {} for key in ("old_theta", "new_theta", "grad", "trajectory", "cum_trajectory")}
    kind.create_syn_data(module, sums, path, set())
    kind.init_batch(module, sums, path, set())
    copied(sums[0])

    class Theirs(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            kind.pre_update(pl_module, path, set())
            copied(path["old_theta"])

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            kind.post_update(pl_module, path, set())

    fit(module, method, Theirs(), data=batches())
    kind.update_ewc_data(module, sums, path, 1e9, set(), 1, eps=1e-3)
    for name in method.pull.importance.names():
        theirs = torch.as_tensor(sums[1][name].data).view_as(method.pull.importance[name])
        torch.testing.assert_close(method.pull.importance[name], theirs.clamp(min=0), rtol=1e-3, atol=1e-6)
        sums[1][name].data = sums[1][name].data.clamp(min=0)
    shift(module, 0.1)
    theirs = kind.compute_ewc_loss(module, sums, set(), "cpu", lambd=2.0)
    torch.testing.assert_close(method.penalty(module).detach(), theirs.detach(), rtol=1e-3, atol=1e-6)


def test_lwf_is_theirs_times_the_squared_temperature():
    generator = torch.Generator().manual_seed(0)
    outputs, teacher = torch.randn(2, 6, 3, generator=generator)
    lwf = regularization.LearningWithoutForgetting(alpha=1, temperature=2)
    theirs = lwf._distillation_loss(outputs, teacher, range(3))
    torch.testing.assert_close(distillation(outputs, teacher, 2.0), 4 * theirs)
