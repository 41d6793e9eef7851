"""The path integral of SI, against one that is written down step by step."""

from __future__ import annotations

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from methods.fits import Module, batches, fit

from lr_dist.methods import SI

XI = 1e-3


def by_hand(module: Module, steps: int, accumulate: int = 1) -> dict[str, torch.Tensor]:
    """Omega of plain steps of AdamW."""
    named = dict(module.named_parameters())
    optimizer = module.configure_optimizers()
    start = {name: p.detach().clone() for name, p in named.items()}
    omega = {name: torch.zeros_like(p) for name, p in named.items()}
    data = list(batches())
    for step in range(steps):
        optimizer.zero_grad()
        for batch in data[step * accumulate : (step + 1) * accumulate]:
            (module.model(**batch).loss / accumulate).backward()
        before = {name: (p.detach().clone(), p.grad.clone()) for name, p in named.items()}
        optimizer.step()
        for name, p in named.items():
            omega[name] -= before[name][1] * (p.detach() - before[name][0])
    return {name: omega[name].clamp(min=0) / ((p.detach() - start[name]) ** 2 + XI) for name, p in named.items()}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_omega_is_the_path_integral_over_the_squared_change(accumulate):
    options = {"optimizer": torch.optim.AdamW, "lr": 3e-3, "weight_decay": 0.1}
    module, method = Module(**options).train(), SI(xi=XI)
    expected = by_hand(Module(**options).train(), 8 // accumulate, accumulate)
    fit(module, method, accumulate_grad_batches=accumulate)
    for name, each in expected.items():
        largest = float(each.max())
        torch.testing.assert_close(method.pull.importance[name], each, rtol=1e-3, atol=1e-4 * largest + 1e-9)
        assert torch.equal(method.pull.anchor[name], dict(module.named_parameters())[name].detach())


def test_clipping_and_the_methods_own_pull_are_not_in_the_gradient():
    """With SGD, -g d = lr g^2 of the unclipped gradient times the clipping factor."""
    module, method = Module(lr=0.1), SI(xi=XI)
    gradients = []

    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.append(pl_module.model.classifier.weight.grad.clone())

    fit(module, Keep(), method, data=batches(1), gradient_clip_val=1e-3)
    total = method.pull.importance["model.classifier.weight"]
    change = module.model.classifier.weight.detach() - module.start["classifier.weight"]
    torch.testing.assert_close(total, (-gradients[0] * change) / (change**2 + XI), rtol=1e-3, atol=1e-12)
    assert gradients[0].norm() > 1e-2


def test_a_step_that_the_scaler_skips_does_not_count():
    class Overflowing(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * (float("inf") if batch_idx == 1 else 1.0)

    module, method = Overflowing(optimizer=torch.optim.AdamW, lr=1e-3), SI()
    fit(module, method, plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))])
    for name in method.pull.importance.names():
        assert method.pull.importance[name].isfinite().all(), name
    assert sum(method.pull.importance[name].sum() for name in method.pull.importance.names()) > 0


def test_a_fit_that_was_broken_off_leaves_nothing_behind():
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                raise RuntimeError("broken off")
            return super().training_step(batch, batch_idx)

    method, fresh = SI(), SI()
    with pytest.raises(RuntimeError, match="broken off"):
        fit(Failing(), method)
    for each in (method, fresh):
        fit(Module(), each)
    for name in fresh.pull.importance.names():
        assert torch.equal(method.pull.importance[name], fresh.pull.importance[name])
