"""What Lightning does with each of its internals that lr-dist uses (`lr_dist/_callback/internals.py`).

Only Lightning runs here. Where a test fails under another version, the sentence in its name no longer holds there.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import tiny
import torch
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from torch.utils.data import DataLoader

import lr_dist
from lr_dist import LayerwiseLR
from lr_dist._callback import internals
from lr_dist._callback.internals import Loops

BATCHES = 4
TESTED: set[str] = set()


def about(*names: str) -> Callable[[Any], Any]:
    """Which internals a test is about."""
    TESTED.update(names)
    return lambda test: test


class Model(L.LightningModule):
    """One weight; the loss of a batch is its number in the epoch, and is logged as `loss`."""

    def __init__(self, monitor: str | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.monitor = monitor
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.weight * 0 + batch.float().mean()
        self.log("loss", loss.detach(), on_step=True, on_epoch=True, batch_size=1)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", batch.float().mean(), batch_size=1)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.monitor is None:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        self.seen.append(float(metric))


class Loader(DataLoader):
    """The numbers 0, 1, 2, 3, one a batch; counts its iterators."""

    def __init__(self) -> None:
        super().__init__(torch.arange(BATCHES), batch_size=1)  # type: ignore[arg-type]
        self.iterators = 0

    def __iter__(self) -> Any:
        self.iterators += 1
        return super().__iter__()


class Stateful:
    """A loader that keeps its position."""

    def __init__(self) -> None:
        self.position, self.loaded = 0, []  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        while self.position < BATCHES:
            self.position += 1
            yield torch.tensor([self.position - 1])
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded.append(state)
        self.position = state["position"]


class At(L.Callback):
    """Calls functions of the Trainer in the hooks of the same names."""

    def __init__(self, **hooks: Callable[[Any], Any]) -> None:
        for name, act in hooks.items():
            setattr(self, name, lambda trainer, *_, act=act: act(trainer))


def fit(
    *callbacks: L.Callback,
    model: Any = None,
    data: Any = None,
    validation: Any = None,
    ckpt: Any = None,
    **options: Any,
) -> Any:
    trainer = L.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "callbacks": list(callbacks),
            **options,
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model or Model(), data or Loader(), validation, ckpt_path=ckpt)
    return trainer


def counters(progress: Any) -> tuple[int, int, int, int]:
    now = progress.current
    return now.ready, now.started, now.processed, now.completed


def saved(folder: Path, hook: str, batches: int, **options: Any) -> Path:
    """A checkpoint that was written in `hook`, the first time that so many batches of the run had begun."""
    path = folder / "saved.ckpt"

    def save(trainer: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == batches and not path.exists():
            trainer.save_checkpoint(path)

    fit(At(**{hook: save}), **options)
    assert path.exists()
    return path


# Where the run is ----------------------------------------------------------------------------------------


@about("fit.epoch_progress")
def test_an_epoch_is_ready_before_its_hooks_processed_before_its_end_and_completed_after_it() -> None:
    at: dict[str, Any] = {}
    hooks = ("on_train_epoch_start", "on_train_batch_start", "on_train_epoch_end", "on_train_end")
    fit(At(**{h: lambda t, h=h: at.update({h: counters(t.fit_loop.epoch_progress)}) for h in hooks}))
    assert list(at.values()) == [(1, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1)]


@about("epoch.batch_progress")
def test_a_batch_is_processed_before_its_end_and_completed_before_validation() -> None:
    at: dict[str, Any] = {}
    hooks = ("on_train_batch_start", "on_before_backward", "on_train_batch_end", "on_validation_start")
    record = {h: lambda t, h=h: at.update({h: counters(t.fit_loop.epoch_loop.batch_progress)}) for h in hooks}
    last: list[bool] = []
    ended = lambda t: last.append(t.fit_loop.epoch_loop.batch_progress.is_last_batch)  # noqa: E731
    fit(At(**record), At(on_train_batch_end=ended), validation=Loader())
    assert list(at.values()) == [(4, 3, 3, 3), (4, 4, 3, 3), (4, 4, 4, 3), (4, 4, 4, 4)]
    assert last == [False, False, False, True]


@about("epoch._num_ready_batches_reached")
def test_the_last_batch_is_known_while_it_runs() -> None:
    known: list[bool] = []
    fit(At(on_train_batch_end=lambda t: known.append(t.fit_loop.epoch_loop._num_ready_batches_reached())))
    assert known == [False, False, False, True]


@about("fit._combined_loader", "epoch.val_loop")
def test_the_combined_loaders_list_those_that_were_given() -> None:
    train, validation, found = [Loader(), Loader()], Loader(), []
    model = Model()
    model.training_step = lambda batch, batch_idx: model.weight * 0 + batch[0].float().mean()  # type: ignore
    fit(At(on_validation_end=lambda t: found.append(Loops(t).loaders)), model=model, data=train, validation=validation)
    assert found == [(train, [validation])]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert Loops(trainer).loaders == ([], [])


@about(
    *("fit.on_advance_start", "fit.on_advance_end"),
    *("epoch.reset", "epoch.on_run_start", "epoch.advance", "epoch.on_advance_end"),
)
def test_the_loops_call_their_methods_through_the_instance_and_in_this_order() -> None:
    called: list[str] = []

    def wrap(trainer: Any) -> None:
        loops = Loops(trainer)
        for name, method in (
            *(("fit", "on_advance_start"), ("epoch", "reset"), ("epoch", "on_run_start")),
            *(("epoch", "advance"), ("epoch", "on_advance_end"), ("fit", "on_advance_end")),
        ):

            def around(original: Any, *arguments: Any, label: str = f"{name}.{method}") -> None:
                called.append(label)
                original(*arguments)

            loops.wrap(name, method, around)

    hooks = ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_validation_start")
    record = {h: lambda t, h=h: called.append(h) for h in (*hooks, "on_train_epoch_end")}
    fit(At(on_train_start=wrap, **record), validation=Loader(), limit_train_batches=1)
    assert called == [
        *("fit.on_advance_start", "on_train_epoch_start", "epoch.reset", "epoch.on_run_start"),
        *("epoch.advance", "on_train_batch_start", "on_train_batch_end", "epoch.on_advance_end", "on_validation_start"),
        *("fit.on_advance_end", "on_train_epoch_end"),
    ]


# Data ----------------------------------------------------------------------------------------------------


@about("fetcher.fetched")
def test_an_epochs_iterator_is_made_and_its_batches_counted_when_the_epoch_loop_starts() -> None:
    loader, seen = Loader(), []

    def wrap(trainer: Any) -> None:
        def around(original: Any, fetcher: Any) -> None:
            before = loader.iterators
            original(fetcher)
            seen.append((before, loader.iterators, fetcher.fetched))

        Loops(trainer).wrap("epoch", "on_run_start", around)

    fit(At(on_train_start=wrap), data=loader, max_epochs=2)
    # That of the first epoch is made with the loaders.
    assert seen == [(1, 1, 0), (1, 2, 0)]


def test_the_loaders_are_made_after_on_fit_start_and_before_on_train_start() -> None:
    order: list[str] = []

    class Own(Model):
        def train_dataloader(self) -> Any:
            order.append("loader")
            return Loader()

    hooks = {name: lambda t, name=name: order.append(name) for name in ("on_fit_start", "on_train_start")}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[At(**hooks)]
    )
    trainer.fit(Own())
    assert order == ["on_fit_start", "loader", "on_train_start"]


def test_a_fetcher_knows_its_last_batch_by_what_it_has_fetched() -> None:
    seen: list[bool] = []

    def wrap(trainer: Any) -> None:
        def around(original: Any, fetcher: Any) -> None:
            # As if the first two had been used already.
            next(fetcher), next(fetcher)
            internals.uncount(fetcher, 2)
            original(fetcher)
            # What Lightning adds for batches that an epoch has behind it.
            fetcher.fetched += 2
            seen.append(fetcher.fetched)

        Loops(trainer).wrap("epoch", "on_run_start", around)

    batches: list[int] = []
    model = Model()
    model.on_train_batch_start = lambda batch, batch_idx: batches.append(int(batch))  # type: ignore
    fit(At(on_train_start=wrap), model=model)
    assert seen == [2]
    assert batches == [2, 3]


@about("fit._last_train_dl_reload_epoch", "fit._should_reload_train_dl")
@pytest.mark.parametrize(("moved", "reloads"), [(None, [2]), (1, [3])])
def test_loaders_are_made_anew_by_the_epoch_in_which_they_were_last_made(moved: int | None, reloads: list[int]) -> None:
    announced: list[int] = []
    iterators: list[int] = []

    class Own(Model):
        def train_dataloader(self) -> Any:
            iterators.append(self.trainer.current_epoch)
            return Loader()

    def wrap(trainer: Any) -> None:
        loops = Loops(trainer)

        def around(original: Any) -> None:
            if moved is not None and trainer.current_epoch == 2:
                loops.reloaded = moved
            if loops.reloads_data:
                announced.append(trainer.current_epoch)
            original()
            assert loops.reloaded <= trainer.current_epoch

        loops.wrap("fit", "on_advance_start", around)

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=4,
        logger=False,
        enable_checkpointing=False,
        reload_dataloaders_every_n_epochs=2,
        callbacks=[At(on_train_start=wrap)],
    )
    trainer.fit(Own())
    assert announced == reloads
    assert iterators == [0, *reloads]


@about("fit._combined_loader_states_to_load")
def test_loaders_states_wait_to_be_loaded_unless_an_epoch_is_resumed_in_its_middle(tmp_path: Path) -> None:
    for hook, batches, loaded in (("on_train_batch_end", 2, True), ("on_train_epoch_end", BATCHES, False)):
        path = saved(tmp_path / hook, hook, batches, data=Stateful())
        loader, waiting = Stateful(), []

        def look(trainer: Any, waiting: list[Any] = waiting) -> None:
            waiting.append(list(trainer.fit_loop._combined_loader_states_to_load))

        fit(At(on_train_start=look), data=loader, ckpt=path, max_epochs=2)
        assert [bool(states) for states in waiting] == [not loaded]
        assert bool(loader.loaded) is loaded
        if waiting[0]:
            combined = fit(data=loader).fit_loop._combined_loader
            combined._load_state_dicts(waiting[0])
            assert loader.loaded == waiting[0]


# Resuming ------------------------------------------------------------------------------------------------


@about("fit._resuming_from_checkpoint")
@pytest.mark.parametrize(("cleared", "iterators"), [(False, 1), (True, 2)])
def test_the_first_epoch_after_a_resume_gets_the_iterator_that_was_made_with_the_loaders(
    cleared: bool, iterators: int, tmp_path: Path
) -> None:
    path = saved(tmp_path, "on_train_epoch_end", BATCHES)
    loader, counted = Loader(), []

    def clear(trainer: Any) -> None:
        assert trainer.fit_loop._resuming_from_checkpoint
        if cleared:
            trainer.fit_loop._resuming_from_checkpoint = False

    look = At(on_train_start=clear, on_train_batch_start=lambda t: counted.append(loader.iterators))
    fit(look, data=loader, ckpt=path, max_epochs=2)
    assert set(counted) == {iterators}


@about("epoch._restarting")
@pytest.mark.parametrize("cleared", [False, True])
def test_an_epoch_loop_that_restarts_takes_no_batch_where_validation_was_due(cleared: bool, tmp_path: Path) -> None:
    options = {"validation": Loader(), "val_check_interval": 2}
    path = saved(tmp_path, "on_validation_end", 2, **options)
    taken: list[Any] = []

    def wrap(trainer: Any) -> None:
        def around(original: Any, fetcher: Any) -> None:
            before = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            if not taken:
                assert trainer.fit_loop.epoch_loop._restarting
                if cleared:
                    trainer.fit_loop.epoch_loop._restarting = False
            original(fetcher)
            taken.append(trainer.fit_loop.epoch_loop.batch_progress.total.ready - before)

        Loops(trainer).wrap("epoch", "advance", around)

    fit(At(on_train_start=wrap), ckpt=path, **options)
    assert taken[0] == (1 if cleared else 0)
    assert set(taken[1:]) == {1}


@about("fit._restarting")
@pytest.mark.parametrize(("cleared", "steps"), [(False, 0), (True, 1)])
def test_a_fit_loop_that_restarts_leaves_out_the_schedulers_of_its_first_epoch(
    cleared: bool, steps: int, tmp_path: Path
) -> None:
    path = saved(tmp_path, "on_train_batch_end", 2, model=Model("loss"))
    model = Model("loss")

    def clear(trainer: Any) -> None:
        assert trainer.fit_loop._restarting
        if cleared:
            trainer.fit_loop._restarting = False

    fit(At(on_train_start=clear), model=model, ckpt=path)
    assert len(model.seen) == steps


@about("checkpoint.loops")
@pytest.mark.parametrize(
    ("epochs", "batches", "run"), [(0, 1, [2, 3, 4]), (0, 3, [4]), (0, None, [1, 2, 3, 4]), (1, None, [])]
)
def test_a_checkpoints_counters_decide_where_the_loops_go_on(
    epochs: int, batches: int | None, run: list[int], tmp_path: Path
) -> None:
    checkpoint = torch.load(saved(tmp_path, "on_train_batch_end", 3), weights_only=True)
    internals.rewrite_progress(checkpoint["loops"], epochs, batches, stateful=False)
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    ended: list[int] = []
    record = At(on_train_batch_end=lambda t: ended.append(t.fit_loop.epoch_loop.batch_progress.current.ready))
    fit(record, ckpt=tmp_path / "moved.ckpt")
    assert ended == run


# Validation and schedulers -------------------------------------------------------------------------------


@about("epoch._should_check_val_fx")
def test_validation_is_due_by_its_interval_and_also_when_the_trainer_is_told_to_stop() -> None:
    due: list[tuple[bool, bool]] = []

    def wrap(trainer: Any) -> None:
        loops = Loops(trainer)

        def around(original: Any, fetcher: Any) -> None:
            if loops.batches.ready == 3:
                trainer.should_stop = True
            asked = bool(trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher))
            due.append((asked, loops.validation_due(fetcher)))
            assert trainer.should_stop is (loops.batches.ready == 3)
            original(fetcher)

        loops.wrap("epoch", "on_advance_end", around)

    fit(At(on_train_start=wrap), validation=Loader(), val_check_interval=2)
    assert due == [(False, False), (True, True), (True, False)]


@about("epoch._skip_next_val")
def test_one_validation_is_left_out_on_demand() -> None:
    validated: list[int] = []

    def skip(trainer: Any) -> None:
        trainer.fit_loop.epoch_loop._skip_next_val = trainer.fit_loop.epoch_loop.batch_progress.current.ready == 2

    at = At(
        on_train_batch_end=skip,
        on_validation_start=lambda t: validated.append(t.fit_loop.epoch_loop.batch_progress.current.ready),
    )
    fit(at, validation=Loader(), val_check_interval=1)
    assert validated == [1, 3, 4]


@about("epoch.update_lr_schedulers", "logged._callback_metrics")
def test_a_plateau_sees_what_stands_among_the_metrics() -> None:
    model = Model("score")

    def update(trainer: Any) -> None:
        assert trainer.callback_metrics is Loops(trainer).local_metrics
        trainer.callback_metrics.update({"score": torch.tensor(7.0)})
        epoch = trainer.fit_loop.epoch_loop
        epoch.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        epoch.update_lr_schedulers("step", update_plateau_schedulers=True)
        assert model.seen == []
        epoch.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        assert model.seen == [7.0]

    fit(At(on_train_epoch_start=update), model=model)


def test_whose_turn_a_scheduler_is_depends_on_the_number_of_completed_epochs() -> None:
    class EveryOther(Model):
        def configure_optimizers(self) -> Any:
            made = super().configure_optimizers()
            made["lr_scheduler"]["frequency"] = 2
            return made

    model = EveryOther("loss")
    counts: list[int] = []
    ended = At(on_train_epoch_start=lambda t: counts.append(len(model.seen)))
    trainer = fit(ended, model=model, max_epochs=3)
    # After the second epoch.
    assert counts == [0, 0, 1]
    # Three epochs are completed, and it is not the turn of the third; once two are, it is that of the second.
    Loops(trainer).step_epoch_plateaus()
    assert len(model.seen) == 1
    trainer.fit_loop.epoch_progress.current.completed = 2
    Loops(trainer).step_epoch_plateaus()
    assert len(model.seen) == 2
    assert trainer.current_epoch == 2


# What was logged -----------------------------------------------------------------------------------------


@about("epoch._results")
def test_what_was_logged_is_an_average_that_can_be_taken_over_and_is_emptied_by_the_epoch() -> None:
    kept: list[Any] = []
    lengths: list[Any] = []

    def take(trainer: Any) -> None:
        loops = Loops(trainer)
        if loops.batches.ready == 2:
            snapshot = internals.snapshot_logged(loops.results)
            kept.append((snapshot, internals.plain_logged(snapshot)))

    model = Model()
    trainer = fit(
        At(on_train_batch_end=take, on_train_epoch_start=lambda t: lengths.append(_values(Loops(t).results))),
        model=model,
        max_epochs=2,
    )
    snapshot, entries = kept[0]
    # The run has gone on since, and Lightning has put new tensors in place of those of the snapshot.
    assert internals.plain_logged(snapshot)[0]["state"]["value"] == entries[0]["state"]["value"] == 0 + 1
    fresh = type(trainer.fit_loop.epoch_loop._results)(training=True)
    internals.restore_logged(fresh, entries, model, trainer.strategy.reduce)
    assert fresh.metrics(on_step=False)["callback"]["loss"] == pytest.approx(0.5)
    assert lengths == [[], [0.0]]


def _values(results: Any) -> list[float]:
    return [float(result.value) for result in results.values()]


@about("logged._first_loop_iter")
@pytest.mark.parametrize(("value", "average"), [(False, 1.5), (True, 2.5), (None, 2.5)])
def test_in_the_first_batch_of_a_loop_what_was_logged_before_is_dropped(value: bool | None, average: float) -> None:
    def begin(trainer: Any) -> None:
        if Loops(trainer).batches.ready == 3:
            logged = Loops(trainer).logged
            # A Trainer that resumes has not logged anything yet.
            logged._current_fx, logged._first_loop_iter = None, value

    def go_on(trainer: Any) -> None:
        logged = Loops(trainer).logged
        logged._first_loop_iter = bool(logged._first_loop_iter)

    trainer = fit(At(on_train_batch_start=begin, on_before_backward=go_on))
    assert trainer.callback_metrics["loss_epoch"] == pytest.approx(average)


# Others --------------------------------------------------------------------------------------------------


@about("swa_lrs")
def test_an_averaging_callback_keeps_the_rates_that_it_was_given() -> None:
    assert internals.averaging_rates(StochasticWeightAveraging(swa_lrs=[0.1, 0.2])) == [0.1, 0.2]
    assert internals.averaging_rates(StochasticWeightAveraging(swa_lrs=0.1)) == 0.1


@about("internal_optimizer_metadata")
def test_a_finetuning_callback_has_stored_the_groups_after_a_split() -> None:
    """A phase of two layers is one group when it is added, and two after the split."""

    class Unfreezes(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze([pl_module.model.bert], train_bn=False)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                layers = list(pl_module.model.bert.encoder.layer[1:])
                self.unfreeze_and_add_param_group(layers, optimizer, lr=1e-3, train_bn=False)

    def sgd(module: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)

    module, callback = tiny.Classifier(sgd), Unfreezes()
    trainer = tiny.fit(module, callback, LayerwiseLR(tiny.EXPLICIT, verbose=False), max_epochs=3)
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = trainer.optimizers[0].param_groups
    stored = callback._internal_optimizer_metadata[0]
    assert [group["name"] for group in groups] == ["head", "layers.1", "layers.2"]
    assert [group["params"] for group in stored] == [[names[p] for p in group["params"]] for group in groups]


@about("checkpoint.callbacks")
def test_a_callback_can_add_to_a_checkpoint_without_a_state_of_its_own(tmp_path: Path) -> None:
    read: list[Any] = []

    class Adds(L.Callback):
        state_key = "adds"

        def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
            checkpoint["callbacks"]["adds"] = {"number": 3}

        def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
            # Before the loops read their counters of it.
            read.append((checkpoint["callbacks"]["adds"], "loops" in checkpoint, trainer.global_step))

    fit(Adds()).save_checkpoint(tmp_path / "end.ckpt")
    fit(Adds(), ckpt=tmp_path / "end.ckpt", max_epochs=2)
    assert read == [({"number": 3}, True, 0)]


@about("module._on_before_batch_transfer")
def test_a_batch_is_moved_as_the_loop_does_it_with_the_users_hooks() -> None:
    seen: list[Any] = []
    moved: list[Any] = []

    class Hooked(tiny.Classifier):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [*batch, "before"]

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return [*super().transfer_batch_to_device(batch[:2], device, dataloader_idx), *batch[2:], str(device)]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [*batch, "after"]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 0:
                seen.extend(batch)
                moved.extend(internals.move_batch(self.trainer, first))
            return super().training_step(batch[:2], batch_idx)

    first = next(iter(tiny.batches()))
    tiny.fit(Hooked(lambda module: torch.optim.SGD(module.parameters(), lr=0.1)), data=tiny.batches())
    assert seen[2:] == moved[2:] == ["before", "cpu", "after"]
    assert all(torch.equal(a, b) for a, b in zip(seen[:2], moved[:2], strict=True))


# All of them ---------------------------------------------------------------------------------------------


def test_every_internal_that_a_version_may_lack_has_a_test() -> None:
    parts = {f"{owner}.{name}" for owner, names in internals.PARTS.items() for name in names}
    assert parts <= TESTED, parts - TESTED


def test_nothing_is_missing_here() -> None:
    assert Loops(L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)).missing == []


def test_no_other_module_uses_one() -> None:
    home = Path(internals.__file__)
    private = {name for name in _private_attributes(home) if name != "_trainer"}
    assert {"_restarting", "_results", "_swa_lrs", "_first_loop_iter"} <= private
    for path in Path(lr_dist.__file__).parent.rglob("*.py"):
        if path != home:
            assert not private & _private_attributes(path), path


def _private_attributes(path: Path) -> set[str]:
    """Names with an underscore that are read or written of anything but `self` and `cls`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }
