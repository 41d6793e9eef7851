"""A run that may not be resumed is refused before a step; what is resumed exactly is in `test_exact_resume*.py`."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from exact import Case, Saver
from exact import run as exact_run
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import lr_scheduler as sch

from lr_dist import LayerwiseLR, LRDistribution
from lr_dist._callback import internals
from lr_dist.errors import InexactResumeWarning, ResumeMismatchError, UnsupportedCallbackError

BASE = 2e-3
BATCHES = 6
EPOCHS = 2
DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT).freeze("layers.0")


def decayed(own: Any, kind: Any = torch.optim.AdamW) -> Any:
    """An optimizer with the usual halves."""
    matrices = [p for p in own.parameters() if p.ndim > 1]
    vectors = [p for p in own.parameters() if p.ndim < 2]
    halves = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return kind(halves, lr=BASE)


def scheduled(own: Any, make: Any, **options: Any) -> Any:
    optimizer = decayed(own)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), "interval": "step", **options}}


def warm_up_then_cosine(optimizer: Any) -> Any:
    parts = [sch.LinearLR(optimizer, 0.1, total_iters=3), sch.CosineAnnealingLR(optimizer, 9, eta_min=BASE / 9)]
    return sch.SequentialLR(optimizer, parts, milestones=[3])


def module(configure: Any = lambda own: scheduled(own, warm_up_then_cosine)) -> tiny.Classifier:
    return tiny.Classifier(configure, dropout=0.3)


def run(own: tiny.Classifier, *callbacks: Any, epochs: int = EPOCHS, **options: Any) -> Any:
    return tiny.fit(own, *callbacks, data=tiny.shuffled(BATCHES), max_epochs=epochs, **options)


def checkpoint_after(steps: int, folder: Path, own: tiny.Classifier, *callbacks: Any, **options: Any) -> Path:
    """Train for `steps` steps, stop, and return the checkpoint."""
    saver = ModelCheckpoint(folder, filename="stopped", every_n_train_steps=steps, save_top_k=-1)
    run(own, saver, *callbacks, max_steps=steps, enable_checkpointing=True, **options)
    return folder / "stopped.ckpt"


def layerwise(distribution: Any = DISTRIBUTION, **options: Any) -> LayerwiseLR:
    return LayerwiseLR(distribution, verbose=False, **options)


def test_the_state_in_a_checkpoint_is_plain_and_names_the_distribution(tmp_path: Path) -> None:
    callback = layerwise(overrides={"pooler": "layers.2"})
    path = checkpoint_after(2, tmp_path, module(), callback)
    state = torch.load(path, weights_only=True)["callbacks"]["LayerwiseLR"]
    assert LRDistribution.from_dict(state["distribution"]) == DISTRIBUTION
    assert state["fingerprint"] == DISTRIBUTION.fingerprint
    assert state["num_layers"] == 3
    assert state["overrides"] == [["pooler", "layers.2"]]
    assert state["groups"] == [f"{name}{end}" for name in tiny.RATES for end in ("", "/no_decay")]
    assert state["optimizers"] == ["AdamW"]
    assert state["schedulers"] == ["SequentialLR(LinearLR, CosineAnnealingLR) every 1 step(s)"]
    assert sum(state["sizes"][0]) == len(list(tiny.bert().parameters()))


# What is refused -----------------------------------------------------------------------------------------


def refused(path: Path, *callbacks: Any, match: str, own: tiny.Classifier | None = None) -> None:
    rates = tiny.Recorder()
    with pytest.raises(ResumeMismatchError, match=match):
        run(own or module(), rates, *callbacks, ckpt=path)
    assert rates.rates == {}


def test_resuming_with_another_distribution_raises_with_both_named(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    refused(path, layerwise("flat:lr=1e-4"), match=r"decay:lr=.*factor=0\.5.*flat:lr=.*1e-0?4")


def test_resuming_with_the_same_distribution_written_in_another_way_works(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    resumed = run(module(), layerwise({"family": "decay", "factor": 0.50, "lr": 0.001}), ckpt=path)
    assert resumed.global_step == BATCHES * EPOCHS


def test_resuming_a_run_that_had_no_layerwise_lr_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module())
    refused(path, layerwise(), match=r"without LayerwiseLR.*weights.*without\s+ckpt_path")


def test_resuming_with_other_overrides_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise())
    refused(path, layerwise(overrides={"pooler": "layers.2"}), match=r"overrides = \[\].*pooler")


def test_resuming_with_other_groups_of_the_optimizer_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise())
    single = module(lambda own: scheduled_without_halves(own))
    refused(path, layerwise(), own=single, match=r"groups = .*embeddings/no_decay.*this run has")


def scheduled_without_halves(own: Any) -> Any:
    optimizer = torch.optim.AdamW(own.parameters(), lr=BASE)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up_then_cosine(optimizer), "interval": "step"}}


def test_resuming_with_another_split_of_the_weight_decay_raises(tmp_path: Path) -> None:
    def less_decayed(own: Any) -> Any:
        # The pooler's weight is in the other half.
        configured = scheduled(own, warm_up_then_cosine)
        first, second = configured["optimizer"].param_groups
        moved = own.model.bert.pooler.dense.weight
        first["params"] = [p for p in first["params"] if p is not moved]
        second["params"] = [*second["params"], moved]
        return configured

    path = checkpoint_after(2, tmp_path, module(), layerwise())
    refused(path, layerwise(), own=module(less_decayed), match=r"numbers of parameters in the optimizer's groups = ")


def test_resuming_with_another_optimizer_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(decayed), layerwise())
    other = module(lambda own: decayed(own, torch.optim.NAdam))
    refused(path, layerwise(), own=other, match=r"optimizers = \['AdamW'\], this run has \['NAdam'\]")


def test_resuming_with_another_scheduler_raises(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise())
    for make, options, shown in (
        (lambda o: sch.StepLR(o, 2), {}, r"\['StepLR every 1 step\(s\)'\]"),
        (warm_up_then_cosine, {"frequency": 2}, r"CosineAnnealingLR\) every 2 step\(s\)'\]"),
        (lambda o: sch.SequentialLR(o, [sch.ConstantLR(o), sch.StepLR(o, 2)], [3]), {}, r"\(ConstantLR, StepLR\)"),
    ):
        other = module(lambda own, make=make, options=options: scheduled(own, make, **options))
        refused(path, layerwise(), own=other, match=rf"schedulers = .*LinearLR, Cosine.*this run has .*{shown}")
    none = module(decayed)
    refused(path, layerwise(), own=none, match=r"schedulers = .*this run has \[\]")


def test_a_floor_of_the_schedule_may_change(tmp_path: Path) -> None:
    # Lightning takes a scheduler's numbers from the checkpoint.
    path = checkpoint_after(2, tmp_path, module(lambda own: scheduled(own, lambda o: cosine(o, BASE / 9))), layerwise())
    resumed = run(module(lambda own: scheduled(own, lambda o: cosine(o, BASE / 3))), layerwise(), ckpt=path)
    assert resumed.global_step == BATCHES * EPOCHS
    assert resumed.lr_scheduler_configs[0].scheduler.eta_min == pytest.approx(BASE / 9)


def cosine(optimizer: Any, floor: float) -> Any:
    return sch.CosineAnnealingLR(optimizer, 12, eta_min=floor)


def test_resuming_with_a_model_of_another_depth_raises_before_the_weights_are_loaded(tmp_path: Path) -> None:
    class Deeper(tiny.Classifier):
        def __init__(self, configure: Any) -> None:
            super().__init__(configure)
            self.model = tiny.bert(layers=5)

    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    deeper = Deeper(decayed)
    before = tiny.weights(deeper)
    refused(
        path, layerwise("decay:lr=1e-3,factor=0.5"), own=deeper, match=r"num_layers = 3, this run has 5.*same model"
    )
    assert all(torch.equal(before[name], weight) for name, weight in tiny.weights(deeper).items())


def test_the_way_out_of_a_checkpoint_without_the_callback_works_as_printed(tmp_path: Path) -> None:
    stopped = module()
    path = checkpoint_after(2, tmp_path, stopped)
    with pytest.raises(ResumeMismatchError) as refusal:
        run(module(), layerwise(), ckpt=path)
    printed = re.search(r"alone: (model\.load_state_dict\(.*\)), then fit without ckpt_path", str(refusal.value))
    assert printed is not None
    model = module()
    exec(printed.group(1), {"torch": torch, "model": model})
    assert all(torch.equal(a, b) for a, b in zip(stopped.parameters(), model.parameters(), strict=True))
    assert run(model, layerwise()).global_step == BATCHES * EPOCHS


def test_a_checkpoint_of_weights_alone_is_refused_with_the_same_way_out(tmp_path: Path) -> None:
    run(module(), layerwise(), epochs=1).save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    refused(tmp_path / "weights.ckpt", layerwise(), match=r"holds weights only.*model\.load_state_dict\(torch\.load\(")


def test_what_a_run_without_the_callback_sees_of_a_checkpoint_with_it(tmp_path: Path) -> None:
    # Nothing of lr-dist runs there: docs/callback.md says what Lightning and torch print.
    path = checkpoint_after(2, tmp_path, module(), layerwise())
    with (
        pytest.warns(UserWarning, match=r"Please add the following callbacks: .*'LayerwiseLR'"),
        pytest.raises(ValueError, match="different number of parameter groups"),
    ):
        run(module(), ckpt=path)


@pytest.mark.parametrize("distribution", ["flat:lr=1e-4", DISTRIBUTION], ids=["other", "frozen"])
def test_a_refused_fit_leaves_the_model_as_it_was_given(distribution: Any, tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    own = module()
    own.model.classifier.bias.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in own.named_parameters()}
    refused(path, layerwise(distribution), own=own, match="under the distribution")
    assert {name: parameter.requires_grad for name, parameter in own.named_parameters()} == flags
    run(own, layerwise(), epochs=1)
    assert not own.model.bert.encoder.layer[0].output.dense.weight.requires_grad


def test_a_second_callback_is_refused() -> None:
    # Lightning would refuse them as the Trainer is made, with a word on `state_key` instead of one on the rates.
    together = tiny.trainer(layerwise(), layerwise("flat:lr=1e-4"))
    later = tiny.trainer(layerwise())
    later.callbacks.append(layerwise("flat:lr=1e-4"))
    for trainer in (together, later):
        own = module()
        before = tiny.weights(own)
        with pytest.raises(UnsupportedCallbackError, match=r"2 LayerwiseLR callbacks.*one distribution") as caught:
            trainer.fit(own, tiny.batches(2))
        assert str(layerwise().distribution) in str(caught.value)
        assert "flat:lr=1e-4" in str(caught.value)
        assert all(torch.equal(weight, before[name]) for name, weight in tiny.weights(own).items())


def test_a_checkpoint_names_the_callback_the_same_whenever_it_is_written(tmp_path: Path) -> None:
    trainer = tiny.trainer(layerwise(), max_steps=1)
    trainer.strategy.connect(module())
    trainer.save_checkpoint(tmp_path / "before.ckpt")
    trainer.fit(module(), tiny.batches(2))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    for name in ("before", "after"):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        assert "LayerwiseLR" in saved["callbacks"]


# Without an exact resume ---------------------------------------------------------------------------------


def test_without_exact_resume_a_run_resumes_as_lightning_does(tmp_path: Path) -> None:
    def inexact() -> list[Any]:
        return [layerwise(exact_resume=False)]

    case = Case(callbacks=inexact)
    saver = Saver(tmp_path, "on_train_batch_end")
    unbroken = exact_run(case, saver, layerwise=False)
    path = saver.paths["on_train_batch_end", 3]
    assert "exact_resume" not in torch.load(path, weights_only=True)["callbacks"]["LayerwiseLR"]
    resumed = exact_run(case, layerwise=False, seed=2, ckpt=path)
    assert resumed.trainer.global_step == unbroken.trainer.global_step
    assert resumed.module.seen != unbroken.module.seen[3:]
    assert resumed.random != unbroken.random


def test_a_checkpoint_that_was_written_without_exact_resume_says_so(tmp_path: Path) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise(exact_resume=False))
    with pytest.warns(InexactResumeWarning, match="written without exact_resume"):
        run(module(), layerwise(), ckpt=path)


def test_another_version_of_lightning_is_named_and_resumed_as_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_after(2, tmp_path, module(), layerwise())
    monkeypatch.setitem(internals.PARTS, "epoch", ("advance", "advance_in_another_way"))
    with pytest.warns(InexactResumeWarning, match=rf"Lightning {L.__version__} lacks epoch.advance_in_another_way"):
        resumed = run(module(), layerwise(), ckpt=path)
    assert resumed.global_step == BATCHES * EPOCHS
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactResumeWarning)
        run(module(), layerwise(exact_resume=False), ckpt=path)


def test_testing_a_checkpoint_of_another_distribution_is_no_matter(tmp_path: Path) -> None:
    class Tested(tiny.Classifier):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", self.model(input_ids=batch[0], labels=batch[1]).loss)

    path = checkpoint_after(2, tmp_path, module(), layerwise("decay:lr=1e-3,factor=0.5"))
    own = Tested(lambda m: None, dropout=0.3)
    results = tiny.trainer(layerwise("flat:lr=1e-4")).test(own, tiny.batches(2), ckpt_path=path, verbose=False)
    assert results[0]["loss"] > 0
