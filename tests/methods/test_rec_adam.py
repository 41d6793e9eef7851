"""RecAdam in steps written down by hand, with a schedule and a rate for each layer."""

from __future__ import annotations

import math

import lightning.pytorch as L
import pytest
import torch
from methods.fits import Module, batches, fit, weights

from lr_dist import LayerwiseLR
from lr_dist.errors import LatePullWarning
from lr_dist.methods import RecAdam

GAMMA, K, T0 = 200.0, 0.8, 4.0
RATES = "from_layers:embeddings=1e-4,layers=3e-4/1e-3,head=3e-3"


class Scheduled(Module):
    def __init__(self) -> None:
        super().__init__(optimizer=torch.optim.Adam, lr=1e-3)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def by_hand(steps: int = 8) -> torch.Tensor:
    """Adam's moments and the authors' two updates, for every parameter."""
    module = Module().train()
    rate_of = {"embeddings": 1e-4, "layer.0": 3e-4, "layer.1": 1e-3}
    state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in module.model.named_parameters()}
    for step, batch in enumerate(list(batches())[:steps], 1):
        module.zero_grad()
        module.model(**batch).loss.backward()
        for name, p in module.model.named_parameters():
            place = next((key for key in rate_of if key in name), None)
            lr = rate_of.get(place, 3e-3) / step
            m, v = state[name]
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            update = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            share = 1.0 if place is None else 1 / (1 + math.exp(-K * (step - T0)))
            with torch.no_grad():
                p.sub_(lr * share * update)
                p.sub_(lr * (1 - share) * GAMMA * (p - module.start[name]))
    return weights(module)


def test_the_steps_are_those_of_the_authors_code():
    module, plain = Scheduled(), Scheduled()
    fit(module, LayerwiseLR(RATES, verbose=False), RecAdam(GAMMA, K, T0))
    fit(plain, LayerwiseLR(RATES, verbose=False))
    expected = by_hand()
    effect = (weights(plain) - expected).abs().max()
    assert (weights(module) - expected).abs().max() < 0.01 * effect


def test_a_fit_that_ends_before_the_pull_fades_is_warned_of():
    with pytest.warns(LatePullWarning, match="t0 is 250, and the fit has 4 steps"):
        fit(Module(optimizer=torch.optim.AdamW, lr=1e-3), RecAdam(), data=batches(8), accumulate_grad_batches=2)


def test_its_share_rises_from_0_to_1_without_overflow():
    method = RecAdam(k=1.0, t0=500.0)
    assert method.share(500) == 0.5
    assert method.share(1) < 1e-9
    assert method.share(10**6) == 1.0
    assert method.share(502) == pytest.approx(1 / (1 + math.exp(-2)))


def test_a_pull_from_the_first_step_on_keeps_the_weights_and_not_the_head():
    module = Module(optimizer=torch.optim.AdamW, lr=1e-3)
    fit(module, RecAdam(gamma=1000.0, k=1.0, t0=1e6))
    for name, p in module.model.named_parameters():
        head = name.startswith(("classifier", "bert.pooler"))
        assert torch.equal(p, module.start[name]) != head, name


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulated"])
def test_a_stopped_stage_resumes_bit_for_bit_and_the_next_one_begins_anew(tmp_path, options):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    trained = {"optimizer": torch.optim.AdamW, "lr": 1e-3}
    rates = lambda: LayerwiseLR("flat:lr=1e-3", verbose=False)  # noqa: E731
    whole, method = Module(**trained), RecAdam(GAMMA, K, T0)
    fit(whole, rates(), method, Save(), **options)
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["lr_dist.rec-adam"]["step"] == 3
    rest, resumed = Module(**trained), RecAdam(GAMMA, K, T0)
    fit(rest, rates(), resumed, ckpt_path=tmp_path / "half.ckpt", **options)
    assert torch.equal(weights(rest), weights(whole))
    ends = []
    for each in (method, resumed, RecAdam(GAMMA, K, T0)):
        module = Module(**trained)
        module.load_state_dict(whole.state_dict())
        fit(module, rates(), each, data=batches(seed=5), **options)
        ends.append(weights(module))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
