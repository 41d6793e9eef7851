"""LwF: the distillation loss by hand, the teacher of the stage before, and the old heads of a task sequence."""

from __future__ import annotations

import copy

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from methods.fits import Module, batches, fit, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lr_dist import LayerwiseLR
from lr_dist.errors import ConfigurationError, ResumeMismatchError
from lr_dist.methods import LwF, StageContext, TaskFunctions
from lr_dist.methods.lwf import distillation

LOW = {"lr": 0.05}


def second(first: Module, **options) -> Module:
    module = Module(**{**LOW, **options})
    module.load_state_dict(first.state_dict())
    return module


class Written(Module):
    """The loss as a user would write it, with a copy of the module as the teacher."""

    teacher: list[Module]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        with torch.no_grad():
            old = self.teacher[0].eval().model(batch["input_ids"]).logits
        q, log_p = (old / 2).softmax(-1), (self.model(batch["input_ids"]).logits / 2).log_softmax(-1)
        return loss + 3.0 * 4 * (q * (q.log() - log_p)).sum(-1).mean()


def learned(**settings) -> tuple[LwF, Module]:
    method, first = LwF(**{"strength": 3.0, **settings}), Module(**LOW)
    fit(first, method)
    return method, first


def test_the_loss_by_hand():
    outputs, teacher = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    # The second example agrees. T = 2: q = (e/(e+1), 1/(e+1)), p = (1/(1+e), e/(1+e)).
    e = torch.e
    q, p = (e / (e + 1), 1 / (e + 1)), (1 / (1 + e), e / (1 + e))
    expected = 4 * sum(a * torch.log(torch.tensor(a / b)) for a, b in zip(q, p, strict=True)) / 2
    torch.testing.assert_close(distillation(outputs, teacher, 2.0), expected)
    assert distillation(teacher, teacher, 2.0) == 0
    assert distillation(outputs[:, :1], teacher[:, :1], 2.0) == pytest.approx(0.5)  # a regression


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}, {"precision": "bf16-mixed"}, {"scaler": 1024.0}],
    ids=["plain", "accumulated and clipped", "bf16", "scaler"],
)
def test_the_fit_is_the_one_with_the_distillation_in_the_loss(options):
    method, first = learned()
    plain, distilled = second(first), second(first)
    written = Written(**LOW)
    written.load_state_dict(first.state_dict())
    written.teacher = [copy.deepcopy(first)]
    ends = []
    for module, callbacks in ((plain, []), (distilled, [method]), (written, [])):
        given = dict(options)
        if scale := given.pop("scaler", None):
            given["plugins"] = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))]
        fit(module, *callbacks, data=batches(seed=7), **given)
        ends.append(weights(module))
    effect = (ends[0] - ends[2]).abs().max()
    exact = "precision" not in options and "scaler" not in options
    assert (ends[1] - ends[2]).abs().max() < (0.002 if exact else 0.2) * effect
    assert plain.losses[0] == distilled.losses[0]  # the task's alone


def test_the_first_stage_is_not_changed_and_the_teacher_is_let_go():
    method, first = learned()
    plain = Module(**LOW)
    fit(plain)
    assert torch.equal(weights(first), weights(plain))
    fit(second(first), method)
    assert method.state() == {"teacher": {}}
    assert method._batch is None
    assert not LwF().trains_in(StageContext(0))
    assert LwF().trains_in(StageContext(1))


def test_the_teacher_draws_no_random_numbers_and_the_weights_and_modes_come_back():
    """With dropout, a strength of 1e-30 trains as no method with one more forward pass of the pupil."""
    module = Module(dropout=0.3, **LOW)
    method = LwF(strength=1.0)
    method.enter(StageContext(1))

    class Check(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = (weights(pl_module), torch.get_rng_state(), [m.training for m in pl_module.modules()])

    class Again(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert method._answers
            assert torch.equal(check.before[0], weights(pl_module))
            assert torch.equal(check.before[1], torch.get_rng_state())
            assert check.before[2] == [m.training for m in pl_module.modules()]

    check = Check()
    module.train()
    fit(module, check, method, Again())


def test_the_teacher_is_the_model_before_the_stage_even_when_it_resumes(tmp_path):
    method, first = learned()
    trained = {"optimizer": torch.optim.AdamW, "lr": 1e-3}
    whole = second(first, **trained)
    fit(whole, LayerwiseLR("flat:lr=1e-3", verbose=False), copy.deepcopy(method))

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    fit(second(first, **trained), LayerwiseLR("flat:lr=1e-3", verbose=False), copy.deepcopy(method), Save())
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["lr_dist.lwf"]["teacher"]
    assert torch.equal(state["model.classifier.weight"], first.model.classifier.weight)
    rest = Module(**trained)
    fit(rest, LayerwiseLR("flat:lr=1e-3", verbose=False), LwF(strength=3.0), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(weights(rest), weights(whole))
    with pytest.raises(ResumeMismatchError, match="temperature"):
        fit(Module(**trained), LwF(strength=3.0, temperature=1.0), ckpt_path=tmp_path / "half.ckpt")


def test_an_old_head_that_a_function_names():
    class TwoHeads(Module):
        def __init__(self):
            super().__init__(lr=0.02)
            self.old = nn.Linear(16, 3)
            nn.init.normal_(self.old.weight, std=0.3, generator=torch.Generator().manual_seed(0))

    def old_head(module, batch, head):
        assert head == "old"
        return module.old(module.model.bert(batch["input_ids"]).pooler_output)

    shifts = []
    for strength in (0.0, 1.0):
        module, data = TwoHeads(), batches(seed=7)
        rows = {"input_ids": torch.stack([row["input_ids"] for row in data.dataset])}
        before = old_head(module, rows, "old").detach()
        method = LwF(strength, functions=TaskFunctions(outputs=old_head))
        method.enter(StageContext(1, earlier_heads=("old",)))
        fit(module, method, data=data)
        shifts.append((old_head(module, rows, "old") - before).norm())
    assert shifts[1] < 0.5 * shifts[0]


def test_a_teacher_with_other_outputs_is_named():
    def outputs(module, batch, head):
        logits = module.model(batch["input_ids"]).logits
        return logits if module.training else logits[:, :1]

    method = LwF(functions=TaskFunctions(outputs=outputs))
    method.enter(StageContext(1))
    with pytest.raises(ConfigurationError, match=r"outputs of head None have the shape \(4, 1\), the model's \(4, 2\)"):
        fit(Module(), method)


def test_the_statistics_of_batch_norms_see_each_input_once():
    class Normed(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.norm(x))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = DataLoader(TensorDataset(torch.randn(24, 4) + 3, torch.arange(24) % 2), batch_size=8)
    method = LwF()
    method.enter(StageContext(1))
    distilled, plain = Normed(), Normed()
    fit(distilled, method, data=data)
    fit(plain, data=data)
    assert torch.equal(distilled.norm.running_mean, plain.norm.running_mean)
    assert distilled.norm.num_batches_tracked == 3
