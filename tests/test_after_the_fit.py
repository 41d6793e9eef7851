"""What a callback keeps of a fit: nothing that keeps the Trainer and the model alive, or that goes into a pickle."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch

from lr_dist import ExactResume, LayerwiseLR, LossAdaptiveLR, LRDistribution

DISTRIBUTION = LRDistribution.from_dict(tiny.EXPLICIT)


class Fails(L.Callback):
    """Ends the fit with an exception in the third batch, or before the first."""

    def __init__(self, error: type[BaseException], hook: str) -> None:
        self.error = error
        setattr(self, hook, self._fail)

    def _fail(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step in (0, 2):
            raise self.error


ENDS: dict[str, Any] = {
    "complete": (),
    "error": (RuntimeError, "on_before_backward"),
    "error at the start": (RuntimeError, "on_train_start"),
    "refused": (RuntimeError, "on_fit_start"),
    "exit": (SystemExit, "on_train_batch_end"),
}


def adamw(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1e-3)


def callbacks(**options: Any) -> list[Any]:
    layerwise = LayerwiseLR(DISTRIBUTION, verbose=False, unfreeze_every_n_steps=1, layer_warmup_steps=2, **options)
    return [layerwise, LossAdaptiveLR()]


@pytest.mark.parametrize("more", [[], [ExactResume]], ids=["", "ExactResume"])
@pytest.mark.parametrize("end", ENDS)
def test_trainer_and_module_are_freed_while_the_callbacks_live(end: str, more: list[type[L.Callback]]) -> None:
    ours = [*callbacks(), *(kind() for kind in more)]

    def fit() -> list[weakref.ref[Any]]:
        module = tiny.Classifier(adamw)
        trainer = tiny.trainer(*ours, *([Fails(*ENDS[end])] if ENDS[end] else []), accumulate_grad_batches=2)
        try:
            trainer.fit(module, tiny.batches())
        except (RuntimeError, SystemExit):
            assert ENDS[end]
        else:
            assert not ENDS[end]
        optimizers = [weakref.ref(optimizer) for optimizer in trainer.strategy.optimizers]
        return [weakref.ref(trainer), weakref.ref(module), weakref.ref(module.model), *optimizers]

    left = fit()
    gc.collect()
    assert [reference() for reference in left] == [None] * len(left)


def test_a_pickle_and_a_copy_made_at_any_moment_are_a_callback_for_another_fit() -> None:
    class Copies(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            made.extend([pickle.dumps(ours), pickle.dumps(copy.deepcopy(ours))])

    made: list[bytes] = []
    ours = callbacks()
    before = len(pickle.dumps(ours))
    first = tiny.Classifier(adamw)
    tiny.fit(first, *ours, Copies())
    copies = [*made, pickle.dumps(ours), pickle.dumps(copy.deepcopy(ours))]
    # Of the fit: names of groups and of schedulers, a few numbers. The model has 36 kB.
    assert max(map(len, copies)) < before + 8000
    for data in (copies[0], copies[5], copies[-2], copies[-1]):
        again = tiny.Classifier(adamw)
        tiny.fit(again, *pickle.loads(data))
        for (name, weight), other in zip(first.named_parameters(), again.parameters(), strict=True):
            assert torch.equal(weight, other), name


def test_a_finished_trainer_still_saves_what_a_run_is_continued_from(tmp_path: Any) -> None:
    ours = callbacks()
    trainer = tiny.fit(tiny.Classifier(adamw), *ours)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["LayerwiseLR"]["exact_resume"]
    assert state["epochs"] == 1
    assert set(state["ranks"][0]["random"]) == {"started", "first_batch", "now"}
