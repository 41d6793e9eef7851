"""Every private attribute of Lightning that lr-dist uses: its loops, its counters, its logged values.

No other module of lr-dist reads or writes such attributes. `tests/test_lightning_internals.py` has a test for each,
which shows what Lightning does with it. If a version of Lightning lacks one, `Loops.missing` names it, and nothing is
changed.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from lr_dist._lightning import L

# Property of `Loops` -> the attributes that are used of it.
PARTS = {
    "fit": (
        "epoch_progress",
        "_combined_loader",
        "_combined_loader_states_to_load",
        "_last_train_dl_reload_epoch",
        "_restarting",
        "_resuming_from_checkpoint",
        "_should_reload_train_dl",
        "on_advance_start",
        "on_advance_end",
    ),
    "epoch": (
        "batch_progress",
        "val_loop",
        "_results",
        "_restarting",
        "_should_check_val_fx",
        "_num_ready_batches_reached",
        "_skip_next_val",
        "update_lr_schedulers",
        "reset",
        "on_run_start",
        "advance",
        "on_advance_end",
    ),
    "logged": ("_first_loop_iter", "_callback_metrics"),
}

# Of a logged entry: the options of `self.log`, and the attributes that hold its values (not every entry has all).
_LOG_OPTIONS = (
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "metric_attribute",
)
_LOG_STATES = ("value", "cumulated_batch_size", "_forward_cache", "has_reset", "_update_count")

LoggedSnapshot = dict[str, tuple[Any, dict[str, Any]]]


class Loops:
    """The fit loop (over epochs) and the epoch loop (over batches) of one Trainer.

    The Trainer is held weakly: a callback that outlives its fit must not keep Trainer, model and data alive.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = weakref.ref(trainer)
        self._wrapped: list[tuple[str, str]] = []

    @property
    def trainer(self) -> L.Trainer:
        """The Trainer."""
        trainer = self._trainer()
        if trainer is None:
            raise ReferenceError("The Trainer of these loops is gone.")
        return trainer

    @property
    def fit(self) -> Any:
        """The loop over epochs."""
        return self.trainer.fit_loop

    @property
    def epoch(self) -> Any:
        """The loop over the batches of an epoch."""
        return getattr(self.fit, "epoch_loop", None)

    @property
    def logged(self) -> Any:
        """Lightning's logger connector, which holds the logged metrics."""
        return getattr(self.trainer, "_logger_connector", None)

    @property
    def missing(self) -> list[str]:
        """The attributes that this version of Lightning lacks."""
        return [
            f"{owner}.{name}"
            for owner, names in PARTS.items()
            for name in names
            if not hasattr(getattr(self, owner), name)
        ]

    # Wrapping --------------------------------------------------------------------------------------------

    def wrap(self, name: str, method: str, around: Callable[..., None]) -> None:
        """Replace a method of the loop `fit` or `epoch` by `around(original, *args)`, until `unwrap`."""
        loop = getattr(self, name)
        original = getattr(loop, method)

        def wrapped(*args: Any) -> None:
            around(original, *args)

        setattr(loop, method, wrapped)
        self._wrapped.append((name, method))

    def unwrap(self) -> None:
        """Restore the loops' methods."""
        wrapped, self._wrapped = self._wrapped, []
        if self._trainer() is None:
            return
        for name, method in reversed(wrapped):
            vars(getattr(self, name)).pop(method, None)

    # Where the run is ------------------------------------------------------------------------------------

    @property
    def results(self) -> Any:
        """The values that the training step has logged in this epoch, for the functions below."""
        return self.epoch._results

    @property
    def local_metrics(self) -> dict[str, Any]:
        """The metrics that callbacks and schedulers watch, of this process alone, without a reduction."""
        metrics: dict[str, Any] = self.logged._callback_metrics
        return metrics

    @property
    def reloads_data(self) -> bool:
        """Whether the training's data loaders are made anew for the epoch that begins."""
        return bool(self.fit._should_reload_train_dl)

    @property
    def reloaded(self) -> int:
        """The epoch for which the training's data loaders were last made."""
        epoch: int = self.fit._last_train_dl_reload_epoch
        return epoch

    @reloaded.setter
    def reloaded(self, epoch: int) -> None:
        self.fit._last_train_dl_reload_epoch = epoch

    @property
    def epochs(self) -> Any:
        """Counters of this fit's epochs: ready, started, processed, completed."""
        return self.fit.epoch_progress.current

    @property
    def batches(self) -> Any:
        """Counters of this epoch's batches: ready, started, processed, completed."""
        return self.epoch.batch_progress.current

    @property
    def last_batch_reached(self) -> bool:
        """Whether no batch of this epoch is left."""
        return bool(self.epoch._num_ready_batches_reached())

    @property
    def cut_short(self) -> bool:
        """Whether the epoch ended before its last batch, because the Trainer was told to stop."""
        steps = self.epoch.max_steps
        stopped = self.trainer.should_stop or (steps != -1 and self.trainer.global_step >= steps)
        return bool(stopped and self.batches.ready and not self.last_batch_reached)

    def validation_due(self, fetcher: Any) -> bool:
        """Whether validation comes after this batch, whether or not the Trainer was told to stop."""
        should_stop, self.trainer.should_stop = self.trainer.should_stop, False
        try:
            return bool(self.epoch._should_check_val_fx(fetcher))
        finally:
            self.trainer.should_stop = should_stop

    @property
    def loaders(self) -> tuple[list[Any], list[Any]]:
        """The data loaders of training, and of validation as far as they have been made."""
        made = (self.fit._combined_loader, self.epoch.val_loop._combined_loader)
        train, validation = (list(combined.flattened) if combined is not None else [] for combined in made)
        return train, validation

    # Setting it ------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Make the loops start their next epoch as an unbroken run does."""
        for loop in (self.fit, self.epoch, self.epoch.val_loop):
            loop._restarting = False
        # If it were True, the epoch would use the iterator that was made before the first epoch.
        self.fit._resuming_from_checkpoint = False
        # Lightning loads these states only within an epoch; a loader may carry its state from one epoch to the next.
        if states := self.fit._combined_loader_states_to_load:
            self.fit._combined_loader._load_state_dicts(states)
            self.fit._combined_loader_states_to_load = []

    def continue_epoch(self) -> None:
        """Make the loops continue within the epoch as an unbroken run does."""
        for loop in (self.fit, self.epoch, self.epoch.val_loop):
            loop._restarting = False
        # With None or True, the next `self.log` would drop the values logged in this epoch.
        self.logged._first_loop_iter = False if self.batches.ready else None

    def end_batch(self, fetcher: Any, *, validated: bool) -> None:
        """Do the work that follows a batch: validation if it is due and not done, schedulers that watch a metric."""
        self.epoch._skip_next_val = validated
        self.epoch.on_advance_end(fetcher)

    def step_epoch_plateaus(self) -> None:
        """Step the plateau schedulers at the end of an epoch that is already counted as completed."""
        # Lightning takes the epoch's number from this counter.
        self.epochs.completed -= 1
        try:
            self.epoch.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        finally:
            self.epochs.completed += 1


def uncount(fetcher: Any, batches: int) -> None:
    """Subtract `batches` from a data fetcher's counter; Lightning adds the used ones when an epoch starts."""
    fetcher.fetched -= batches


def averaging_rates(averaging: Any) -> float | Sequence[float]:
    """The `swa_lrs` of a StochasticWeightAveraging: one rate for all groups, or a list."""
    rates: float | Sequence[float] = averaging._swa_lrs
    return rates


def rewrite_stored_groups(finetuning: Any, index: int, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Let a BaseFinetuning have stored the groups that an optimizer has now.

    It stores them when they are added, so before a split, and adds what is new by their number. FinetuningScheduler
    puts the stored ones into the optimizer before it loads its best checkpoint, whose groups are the split ones.
    """
    stored = finetuning._internal_optimizer_metadata
    if index in stored:
        names = {parameter: name for name, parameter in module.named_parameters()}
        stored[index] = finetuning._apply_mapping_to_param_groups(optimizer.param_groups, names)


@contextmanager
def quiet_about_position() -> Iterator[None]:
    """Suppress Lightning's warning that a loader without a state cannot be resumed within an epoch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
        yield


def rewrite_progress(loops: dict[str, Any], epochs: int, batches: int | None, *, stateful: bool) -> None:
    """Rewrite a checkpoint's loop counters into one of two forms that Lightning resumes exactly.

    From the counters Lightning infers in which of its hooks a checkpoint was written, and then repeats or skips the
    work around that hook: validation, the hooks at an epoch's end, an epoch of a run with `max_steps`.

    Args:
        loops: `checkpoint["loops"]`; changed in place.
        epochs: number of completed epochs.
        batches: number of completed batches in the running epoch; None between two epochs.
        stateful: whether all data loaders save their position. If not, the saved positions are dropped.
    """
    fit = loops["fit_loop"]
    if not stateful:
        fit["state_dict"].pop("combined_loader", None)
    begun = epochs + (batches is not None)
    _set_counters(fit["epoch_progress"], ready=begun, started=begun, processed=epochs, completed=epochs)
    progress = fit["epoch_loop.batch_progress"]
    if batches is None:
        progress["is_last_batch"] = False
        progress["current"].update(dict.fromkeys(progress["current"], 0))
    else:
        progress["is_last_batch"] = progress["is_last_batch"] and batches == progress["current"]["ready"]
        _set_counters(progress, **dict.fromkeys(progress["current"], batches))


def _set_counters(progress: dict[str, Any], **values: int) -> None:
    for name, value in values.items():
        # The total counts over all fits.
        progress["total"][name] += value - progress["current"][name]
        progress["current"][name] = value


# Lightning computes an epoch's metrics from the values logged since the epoch began. It drops them when a run is
# resumed, so that an average over the epoch, which a ReduceLROnPlateau may watch, would cover the rest of it only.


def snapshot_logged(results: dict[str, Any]) -> LoggedSnapshot:
    """The values logged in this epoch so far.

    No copy is needed, because Lightning replaces its tensors and never changes them in place.
    """
    return {
        key: (result, {name: getattr(result, name) for name in _LOG_STATES if hasattr(result, name)})
        for key, result in results.items()
    }


def plain_logged(values: LoggedSnapshot) -> list[dict[str, Any]]:
    """`values` as plain data and tensors on the CPU."""
    return [_entry(result, state) for result, state in values.values() if result.meta.sync.group is None]


def restore_logged(results: Any, entries: list[dict[str, Any]], module: nn.Module, reduce: Any) -> None:
    """Restore the training loop's logged values.

    Args:
        results: Lightning's collection of logged values; changed in place.
        entries: what `plain_logged` returned.
        module: the LightningModule, which holds the logged torchmetrics.
        reduce: the strategy's function that reduces over the processes.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    for entry in entries:
        metric = entry["metric"]
        value: Any = torch.zeros((), device=device)
        if metric is not None:
            value = attrgetter(entry["metric_attribute"])(module)
        results.log(
            entry["fx"],
            entry["name"],
            value,
            reduce_fx=getattr(torch, entry["reduce_fx"]),
            sync_dist=entry["sync_dist"],
            sync_dist_fn=reduce,
            rank_zero_only=entry["rank_zero_only"],
            batch_size=1,
            **{name: entry[name] for name in _LOG_OPTIONS},
        )
        result = results[_key(entry)]
        for name, state in entry["state"].items():
            setattr(result, name, _to(state, device))
        result._computed = None
        if metric is not None:
            for name, state in metric.items():
                setattr(value, name, _to(state, device))
            value._computed = None


def _entry(result: Any, state: dict[str, Any]) -> dict[str, Any]:
    meta, metric = result.meta, None
    if not result.is_tensor:
        # A torchmetrics object of the module: save its current state.
        metric = {name: _to(getattr(result.value, name), "cpu") for name in result.value._defaults}
        metric["_update_count"] = result.value._update_count
    return {
        "fx": meta.fx,
        "name": meta.name,
        "reduce_fx": meta.reduce_fx.__name__,
        "sync_dist": meta.sync.should,
        "rank_zero_only": meta.sync.rank_zero_only,
        "metric": metric,
        "state": {name: _to(value, "cpu") for name, value in state.items() if result.is_tensor or name != "value"},
        **{name: getattr(meta, name) for name in _LOG_OPTIONS},
    }


def _key(entry: dict[str, Any]) -> str:
    return f"{entry['fx']}.{entry['name']}"


def _to(value: Any, device: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=True)
    return [_to(item, device) for item in value] if isinstance(value, list) else value


def move_batch(trainer: Any, batch: Any) -> Any:
    """A batch as `training_step` would receive it: in the run's precision, on its device, after the user's hooks."""
    module = trainer.lightning_module
    batch = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
    # After a fit, a module is on the CPU, whatever the strategy's device.
    return trainer.strategy.batch_to_device(batch, module.device, dataloader_idx=0)
