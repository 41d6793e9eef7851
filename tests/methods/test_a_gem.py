"""A-GEM in a user's own Trainer, against projections worked out by hand and against the formula on whole gradients."""

from __future__ import annotations

import pytest
import torch
from methods.rehearsing import Classifier, Drawn, Linear, SaveAfter, fit, learned, points, texts, weights, with_scaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError, UnsupportedOptimizerError
from lr_dist.methods import AGEM
from lr_dist.methods.a_gem import project


@pytest.mark.parametrize(
    ("g", "reference", "expected"),
    [
        ((1.0, 2.0), (1.0, 0.0), (1.0, 2.0)),  # no conflict
        ((0.0, 2.0), (1.0, 0.0), (0.0, 2.0)),  # at right angles
        ((-1.0, 2.0), (1.0, 0.0), (0.0, 2.0)),  # the part against it is taken out
        ((-1.0, 2.0), (50.0, 0.0), (0.0, 2.0)),  # whatever its length
        ((-3.0, 1.0), (1.0, 1.0), (-2.0, 2.0)),  # g.r = -2, r.r = 2: g + r
        ((1.0, 1.0), (0.0, 0.0), (1.0, 1.0)),
        ((-1.0, 1.0), (float("nan"), 1.0), (-1.0, 1.0)),
    ],
)
def test_projections_by_hand(g, reference, expected):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor(g)
    project([weight], [torch.tensor(reference)])
    torch.testing.assert_close(weight.grad, torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_product_is_that_of_all_parameters_together():
    # g = (-3 | 1), r = (1 | 1), with the second number in another parameter, as above; a third has no gradient.
    a, b, c, d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    a.grad, b.grad, d.grad = torch.tensor([-3.0]), torch.tensor([1.0]), torch.tensor([7.0])
    project([a, b, c, d], [torch.ones(1), torch.ones(1), torch.ones(1), None])
    # r.r = 3: g + 2/3 r.
    torch.testing.assert_close(torch.cat([a.grad, b.grad, c.grad]), torch.tensor([-3.0, 1.0, 0.0]) + 2 / 3)
    assert d.grad == 7.0


def test_a_step_by_hand():
    # Stored: x = (1, 0), y = 3. At w = (1, -1) g_ref = 2 (1 - 3) (1, 0) = (-4, 0).
    # New: (1, 1), y = -1, with g = 2 (0 + 1) (1, 1) = (2, 2): against g_ref, so that (0, 2) is left.
    # New: (-1, 1), y = -1, with g = 2 (-2 + 1) (-1, 1) = (2, -2): (0, -2) is left.
    # New: (1, -1), y = 9, with g = 2 (2 - 9) (1, -1): as it is.
    for new, left in (((1, 1, -1), (0.0, 2.0)), ((-1, 1, -1), (0.0, -2.0)), ((1, -1, 9), (-14.0, 14.0))):
        module = Linear()
        method = learned(AGEM(1, 1), module, points((1, 0, 3)))
        fit(module, method, data=points(new))
        torch.testing.assert_close(module.w.detach(), torch.tensor([1.0, -1.0]) - 0.1 * torch.tensor(left))


class ByHand(Classifier):
    """The reference: manual optimization, with gradients as whole vectors."""

    def __init__(self, drawn: list, window: int = 1, clip: float | None = None, **options) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.drawn, self.window, self.clip, self.projected = iter(drawn), window, clip, 0

    def training_step(self, batch, batch_idx):
        trained = list(self.parameters())
        self.manual_backward(self.model(**batch).loss / self.window)
        if (batch_idx + 1) % self.window:
            return
        g = torch.cat([p.grad.flatten() for p in trained])
        ((replayed, _),) = next(self.drawn)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.trainer.precision == "bf16-mixed"):
            loss = self.model(**replayed).loss
        r = torch.cat([found.flatten() for found in torch.autograd.grad(loss, trained)])
        if g @ r < 0:
            self.projected += 1
            g = g - (g @ r) / (r @ r) * r
        for p, part in zip(trained, g.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p)
        if self.clip:
            nn.utils.clip_grad_norm_(trained, self.clip)
        self.optimizers().step()
        self.optimizers().zero_grad()


@pytest.mark.parametrize(
    ("module", "trainer", "by_hand"),
    [
        ({}, {}, {}),
        ({}, {"accumulate_grad_batches": 2}, {"window": 2}),
        ({}, {"gradient_clip_val": 0.05}, {"clip": 0.05}),
        ({"optimizer": torch.optim.AdamW, "lr": 1e-2, "eps": 1e-3, "fused": True}, {}, {}),
        ({"optimizer": torch.optim.AdamW, "lr": 1e-2, "eps": 1e-3, "fused": True}, {"plugins": "scaled"}, {}),
        ({}, {"precision": "bf16-mixed"}, {}),
        ({}, {"plugins": "scaled"}, {}),
    ],
    ids=["plain", "accumulated", "clipped", "fused", "fused and scaled", "bf16", "scaled"],
)
def test_the_fit_is_the_one_with_the_projection_of_whole_gradients(module, trainer, by_hand):
    projecting, plain = Classifier(**module), Classifier(**module)
    method = learned(AGEM(8, 20), projecting, texts(seed=2))
    drawn = Drawn(method)
    fit(projecting, method, data=texts(), **with_scaler(trainer))
    assert {sum(len(p) for _, p in step) for step in drawn.steps} == {8}
    reference = ByHand(drawn.steps, **by_hand, **module)
    fit(reference, data=texts(), **({"precision": "bf16-mixed"} if "precision" in trainer else {}))
    fit(plain, data=texts(), **with_scaler(trainer))
    assert 0 < reference.projected < len(drawn.steps)
    tolerance = 2e-2 if "precision" in trainer else 4e-3 if "plugins" in trainer else 2e-5
    apart = (weights(projecting) - weights(reference)).abs().max()
    assert apart < tolerance
    assert apart < 0.15 * (weights(plain) - weights(reference)).abs().max()


def test_a_stopped_stage_resumes_bit_for_bit(tmp_path):
    def run(method, *callbacks, **options):
        module = Classifier(dropout=0.1)
        rates = LayerwiseLR("flat:lr=0.1", verbose=False)
        fit(module, rates, *method, *callbacks, data=texts(), accumulate_grad_batches=2, **options)
        return weights(module)

    first = learned(AGEM(8, 20), Classifier(), texts(seed=2))
    whole = run([first], SaveAfter(5, tmp_path / "half.ckpt"))
    assert torch.equal(run([AGEM(8, 20)], ckpt=tmp_path / "half.ckpt"), whole)
    assert not torch.equal(run([learned(AGEM(8, 20), Classifier(), texts(seed=3))]), whole)


@pytest.mark.parametrize("examples", [0, 21, 1.5, "a"])
def test_more_examples_than_are_kept_are_refused(examples):
    with pytest.raises(ConfigurationError, match=r"examples must be .* from 1 to 20.* At most size=20 are kept"):
        AGEM(examples, 20)


def test_a_sparse_gradient_is_refused():
    class Sparse(Linear):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 2, sparse=True)

        def forward(self, x):
            return self.words(x) @ self.w

    module = Sparse()
    data = DataLoader(TensorDataset(torch.arange(4), torch.zeros(4)), batch_size=4)
    with pytest.raises(UnsupportedOptimizerError, match="sparse=False"):
        fit(module, learned(AGEM(2, 4), module, data), data=data)
