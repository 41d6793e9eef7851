"""One training run, the same code under every strategy: in a process of its own, or in each of two.

`Case` says what is run, `perform` runs it with a real Trainer, and what comes back holds all that a comparison needs:
the rates of each step, weights, states of optimizer and schedulers, random states, or the error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning.pytorch as L
import numpy
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.optim import lr_scheduler as sch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lr_dist import ExactResume, ForgettingMonitor, LayerwiseLR, RetentionMonitor
from lr_dist.layers import clean_name
from lr_dist.methods import build_method

BASE = 2e-3
STEPS, EPOCHS, BATCH = 4, 3, 4
FROZEN_LAYER = "from_layers:embeddings=1e-5,layers=3e-5/2e-4/5e-4,head=7e-3,freeze=layers.0..layers.0"
# A process that waits in vain for the others gives up after this, and says where.
PATIENCE = timedelta(seconds=60)


@dataclass(frozen=True)
class Case:
    """One fit.

    Attributes:
        name: the file its outcome is kept in.
        strategy: a key of `STRATEGIES`.
        schedule: a key of `SCHEDULES`, or "own".
        allow_own_schedule: tell the callback that it may pass.
        distribution: as `LayerwiseLR` takes it, RANK being the number of the process; None leaves the callback out.
        optimizer: a key of `OPTIMIZERS`.
        layerwise: further options of `LayerwiseLR`.
        exact: with an `ExactResume` among the callbacks.
        methods: text forms of methods against forgetting.
        learned_before: the methods have been through a stage with other data, which left the weights as they are.
        monitored: options of a ForgettingMonitor; without any, there is none.
        retained: options of a RetentionMonitor; without any, there is none.
        logs_by_rank: whether the module logs a metric, `rank_score`, that rises in one process and falls in the other.
        options: of the Trainer.
        dropout: above 0, every process draws its own random numbers.
        built_late: the model is made in `configure_model`, not in `__init__`.
        epochs: how many, of `STEPS` batches each.
        save_after: batches after which a checkpoint is written, in the middle of a window of accumulation too.
        save_at_step: optimizer steps after which ModelCheckpoint writes one.
        checkpoint: where a checkpoint is written.
        resume: the checkpoint that the run continues.
    """

    name: str
    strategy: str = "single"
    schedule: str = "none"
    allow_own_schedule: bool = False
    distribution: str | None = FROZEN_LAYER
    optimizer: str = "adamw"
    layerwise: tuple[tuple[str, Any], ...] = ()
    exact: bool = False
    methods: tuple[str, ...] = ()
    learned_before: bool = False
    monitored: tuple[tuple[str, Any], ...] = ()
    retained: tuple[tuple[str, Any], ...] = ()
    logs_by_rank: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    dropout: float = 0.0
    built_late: bool = False
    epochs: int = EPOCHS
    save_after: int | None = None
    save_at_step: int | None = None
    checkpoint: str | None = None
    resume: str | None = None


# What can vary ---------------------------------------------------------------------------------------------


class FSDPOnCPU(FSDPStrategy):
    """Lightning's FSDPStrategy for processors without a GPU.

    Lightning refuses the class itself there, and hands FSDP the index of the device, which a CPU has not; torch wants
    the device. Nothing else is changed.
    """

    def _setup_model(self, model: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel

        device = torch.device("cpu")
        return FullyShardedDataParallel(
            model, device_id=device, sharding_strategy=self.sharding_strategy, **self.kwargs
        )


class DeepSpeedOnCPU(DeepSpeedStrategy):
    """Lightning's DeepSpeedStrategy up to the `setup` of the callbacks, for which neither package nor GPU is needed."""

    def __init__(self) -> None:
        DDPStrategy.__init__(self, timeout=PATIENCE)

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        DDPStrategy.setup_distributed(self)


def _fsdp1(**options: Any) -> Strategy:
    from transformers.models.bert.modeling_bert import BertLayer

    return FSDPOnCPU(auto_wrap_policy={BertLayer}, timeout=PATIENCE, **options)


def _fsdp2(distributed: bool) -> Strategy:
    return ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed, timeout=PATIENCE)


STRATEGIES: dict[str, Callable[[], Strategy | str]] = {
    "single": lambda: "auto",
    "ddp": lambda: DDPStrategy(timeout=PATIENCE),
    "fsdp2": lambda: _fsdp2(distributed=False),
    "fsdp2-distributed": lambda: _fsdp2(distributed=True),
    "tensor-parallel": lambda: ModelParallelStrategy(1, 2, save_distributed_checkpoint=False, timeout=PATIENCE),
    # torch crashes when it writes a full checkpoint of FSDP1 on a CPU, with or without LayerwiseLR.
    "fsdp1": lambda: _fsdp1(use_orig_params=True, state_dict_type="sharded"),
    "fsdp1-flat": lambda: _fsdp1(use_orig_params=False),
    "deepspeed": lambda: DeepSpeedOnCPU(),
}


def _warm_up_then_cosine(optimizer: Any) -> Any:
    parts = [sch.LinearLR(optimizer, 0.1, total_iters=3), sch.CosineAnnealingLR(optimizer, 9, eta_min=BASE / 9)]
    return sch.SequentialLR(optimizer, parts, milestones=[3])


def _chained(optimizer: Any) -> Any:
    return sch.ChainedScheduler([sch.ConstantLR(optimizer, 0.5, 5), sch.ExponentialLR(optimizer, 0.9)], optimizer)


def _plateau(optimizer: Any) -> Any:
    return sch.ReduceLROnPlateau(optimizer, factor=0.3, patience=0, min_lr=BASE / 5)


# Every type on the list of tested schedulers, and transformers' own.
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "none": lambda o: None,
    "LambdaLR": lambda o: sch.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: sch.MultiplicativeLR(o, lambda step: 0.95),
    "StepLR": lambda o: sch.StepLR(o, 4, 0.5),
    "MultiStepLR": lambda o: sch.MultiStepLR(o, [2, 5, 9], 0.5),
    "ConstantLR": lambda o: sch.ConstantLR(o, 0.25, 5),
    "LinearLR": lambda o: sch.LinearLR(o, 0.1, 1.0, 8),
    "ExponentialLR": lambda o: sch.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: sch.PolynomialLR(o, 15, 2.0),
    "CosineAnnealingLR": lambda o: sch.CosineAnnealingLR(o, 12, eta_min=BASE / 9),
    "CosineAnnealingWarmRestarts": lambda o: sch.CosineAnnealingWarmRestarts(o, 3, 2, eta_min=BASE / 9),
    "CyclicLR": lambda o: sch.CyclicLR(o, BASE / 10, BASE, step_size_up=3),
    "OneCycleLR": lambda o: sch.OneCycleLR(o, BASE, total_steps=13),
    "ReduceLROnPlateau": _plateau,
    "SequentialLR": _warm_up_then_cosine,
    "ChainedScheduler": _chained,
    "linear warm-up (transformers)": lambda o: get_linear_schedule_with_warmup(o, 3, 12),
    "cosine warm-up (transformers)": lambda o: get_cosine_schedule_with_warmup(o, 3, 12),
}


class Halving(sch.LRScheduler):
    """A user's own scheduler, which is on no list."""

    def get_lr(self) -> list[float]:
        return [rate / 2**self.last_epoch for rate in self.base_lrs]


def _halves(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups, the second without weight decay; by name, because FSDP's shards have no shape."""
    parts: tuple[list[Any], list[Any]] = ([], [])
    for name, parameter in module.named_parameters():
        parts[name.endswith("bias") or "LayerNorm" in name].append(parameter)
    return [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1], "weight_decay": 0.0}]


def _zero(module: nn.Module) -> Any:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(module.parameters(), torch.optim.AdamW, lr=BASE)


# Where a gradient is 0 but for rounding (attention's key bias), Adam with its usual eps takes steps of noise alone.
_EPS = 1e-4
OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "adamw": lambda module: torch.optim.AdamW(module.parameters(), lr=BASE, eps=_EPS),
    "halves": lambda module: torch.optim.AdamW(_halves(module), lr=BASE, eps=_EPS),
    "sgd": lambda module: torch.optim.SGD(module.parameters(), lr=BASE, momentum=0.9),
    # What is refused.
    "zero": _zero,
    "lbfgs": lambda module: torch.optim.LBFGS(module.parameters(), lr=BASE),
    "none": lambda module: None,
}


# What a user would write -----------------------------------------------------------------------------------


class Module(L.LightningModule):
    """A classifier; `sharded` makes FSDP2 of it in `configure_model`."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.configured = False
        self.model = None if case.built_late else tiny.bert(dropout=case.dropout)

    def configure_optimizers(self) -> Any:
        self.configured = True
        optimizer = OPTIMIZERS[self.case.optimizer](self)
        scheduler = {**SCHEDULES, "own": Halving}[self.case.schedule](optimizer)
        if scheduler is None:
            return optimizer
        # A plateau waits for a score; the others go on with every step.
        ends = {"interval": "epoch", "monitor": "score"} if self.case.schedule == "ReduceLROnPlateau" else {}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", **ends}}

    def on_fit_start(self) -> None:
        if self.case.dropout:
            seed = 17 + self.global_rank
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, labels = batch
        assert self.model is not None
        if self.case.logs_by_rank:
            self.log("rank_score", float(self.global_step * (-1) ** self.global_rank))
        return self.model(input_ids=tokens, labels=labels).loss

    def on_train_epoch_end(self) -> None:
        # No improvement after the first epoch: a plateau with patience 0 reduces after the second.
        self.log("score", [0.5, 0.6, 0.7][self.current_epoch])


class LateModule(Module):
    """The same, made in `configure_model` where `built_late` says so."""

    def configure_model(self) -> None:
        if self.model is None:
            self.model = tiny.bert(dropout=self.case.dropout)


class ShardedModule(LateModule):
    """The same under FSDP2, as the documentation of Lightning shows it."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        super().configure_model()
        assert self.model is not None
        if isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in self.model.bert.encoder.layer:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


class TensorParallelModule(LateModule):
    """The same with the feed-forward matrices of each layer split between the processes."""

    def configure_model(self) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        super().configure_model()
        assert self.model is not None
        plan = {"intermediate.dense": ColwiseParallel(), "output.dense": RowwiseParallel()}
        for layer in self.model.bert.encoder.layer:
            parallelize_module(layer, self.device_mesh["tensor_parallel"], plan)


def module_of(case: Case) -> Module:
    if case.strategy.startswith("fsdp2"):
        return ShardedModule(case)
    if case.strategy == "tensor-parallel":
        return TensorParallelModule(case)
    return (LateModule if case.built_late else Module)(case)


def data_of(case: Case, processes: int) -> Any:
    """As much for each step as all processes see together; Lightning's own sampler shuffles and splits it."""
    if case.strategy == "tensor-parallel":
        processes = 1  # all see the same
    dataset = tiny.batches(STEPS, size=BATCH).dataset
    if processes > 1:
        return DataLoader(dataset, BATCH // processes)
    # What Lightning's sampler does for several processes, for one.
    return DataLoader(dataset, BATCH, sampler=DistributedSampler(dataset, 1, 0, shuffle=True))


# A run -----------------------------------------------------------------------------------------------------


def perform(case: Case, processes: int = 1) -> dict[str, Any]:
    """Run `case` in this process, which is one of `processes`, and return its outcome, plain data and tensors only."""
    module, kept, rates = module_of(case), _Keeper(), tiny.Recorder()
    printed = io.StringIO()
    error = None
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Of FSDP on a CPU, and of torch's own use of what it deprecates.
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            _fit(case, processes, module, kept, rates)
        except BaseException as raised:  # torch.distributed.checkpoint raises its own kind
            error = {
                "type": type(raised).__name__,
                "kinds": [kind.__name__ for kind in type(raised).__mro__],
                "message": str(raised),
            }
    return {
        "error": error,
        "configured": module.configured,
        "rates": rates.rates,
        "printed": printed.getvalue(),
        **kept.outcome,
    }


def _fit(case: Case, processes: int, module: Module, kept: _Keeper, rates: tiny.Recorder) -> None:
    callbacks: list[L.Callback] = [rates]
    if case.distribution is not None:
        distribution = case.distribution.replace("RANK", os.environ.get("LOCAL_RANK", "0"))
        allowed = (Halving,) if case.allow_own_schedule else ()
        further = dict(case.layerwise)
        callbacks.insert(0, LayerwiseLR(distribution, allow_schedulers=allowed, **further))
    if case.exact:
        callbacks.append(ExactResume())
    methods = [build_method(text) for text in case.methods]
    if case.learned_before:
        for method in methods:
            method.stage_started(module)
            method.end_stage(module, tiny.batches(STEPS, size=BATCH, seed=1))
    callbacks += methods
    if case.monitored:
        callbacks.append(_monitor(**dict(case.monitored)))
    if case.retained:
        callbacks.append(_retention_monitor(**dict(case.retained)))
    if case.save_after is not None:
        callbacks.append(_SaveAfter(case.save_after, str(case.checkpoint)))
    if case.save_at_step is not None:
        folder, _, name = str(case.checkpoint).rpartition("/")
        callbacks.append(ModelCheckpoint(folder, name, every_n_train_steps=case.save_at_step, save_top_k=-1))
    # After the methods, some of which change the weights at the end.
    callbacks.append(kept)
    tiny.fit(
        module,
        *callbacks,
        data=data_of(case, processes),
        ckpt=case.resume,
        strategy=STRATEGIES[case.strategy](),
        devices=processes,
        max_epochs=case.epochs,
        enable_checkpointing=case.save_at_step is not None,
        **dict(case.options),
    )
    # What the methods have learned, whole; every process has to ask.
    kept.outcome["learned"] = {method.name: _own(method.state()) for method in methods}


def _monitor(**options: Any) -> ForgettingMonitor:
    """Watches an old task of five batches, the last of them smaller, in another order each time."""
    tokens = torch.randint(0, 40, (18, 7), generator=torch.Generator().manual_seed(5))
    loader = DataLoader(TensorDataset(tokens, (tokens[:, 1] > 20).long()), 4, shuffle=True)
    metric = MulticlassAccuracy(2, average="micro")
    return ForgettingMonitor({"first": loader}, score=_score, metric=metric, restore=False, **options)


def _retention_monitor(other: bool = False, **options: Any) -> RetentionMonitor:
    """Reads twelve texts in two batches; `other` compares with another model instead of the start."""
    tokens = torch.randint(0, 40, (12, 7), generator=torch.Generator().manual_seed(6))
    if other:
        options["reference"] = tiny.bert(seed=7)
    return RetentionMonitor([{"input_ids": part} for part in tokens.chunk(2)], run=_run, **options)


def _run(module: Any, batch: Any) -> None:
    module.model(**batch)


def _score(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return module.model(input_ids=batch[0]).logits, batch[1]


class _SaveAfter(L.Callback):
    """Writes a checkpoint after so many batches, wherever in a window of accumulation that is."""

    def __init__(self, batches: int, path: str) -> None:
        self.left, self.path = batches, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)


class _Keeper(L.Callback):
    """What this process has in the end, and the weights as all have them together."""

    def __init__(self) -> None:
        self.outcome: dict[str, Any] = {"steps": 0}

    def on_before_zero_grad(self, trainer: L.Trainer, *_: Any) -> None:
        self.outcome["steps"] = trainer.global_step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.outcome.update(
            steps=trainer.global_step,
            weights={name: _own(parameter) for name, parameter in pl_module.named_parameters()},
            optimizer=_sorted(_own(trainer.optimizers[0].state_dict())),
            schedulers=[_own(_plain(config.scheduler)) for config in trainer.lr_scheduler_configs],
            frozen=[clean_name(name) for name, p in pl_module.named_parameters() if not p.requires_grad],
            random={
                "torch": torch.get_rng_state(),
                "python": _digest(random.getstate()),
                "numpy": _digest(numpy.random.get_state()),
            },
        )
        with _gathered(trainer):
            whole = {clean_name(name): _whole(parameter) for name, parameter in pl_module.named_parameters()}
        self.outcome["whole"] = whole

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback in trainer.callbacks:
            if isinstance(callback, ForgettingMonitor):
                self.outcome["history"] = [{**row.to_dict(), "seconds": 0.0} for row in callback.history]
                self.outcome["best"] = {"step": callback.best_step, "weights": callback.best_weights}
            if isinstance(callback, RetentionMonitor):
                self.outcome["history"] = [{**row.to_dict(), "seconds": 0.0} for row in callback.history]


def _own(value: Any) -> Any:
    """A copy of `value` in which this process has its own share of every tensor."""
    if isinstance(value, Tensor):
        return (value.to_local() if hasattr(value, "to_local") else value).detach().clone()
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, (list, tuple)) else value


def _sorted(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state in the order of the parameters; that of a loaded one can be another."""
    states = {index: dict(sorted(state.items())) for index, state in sorted(optimizer["state"].items())}
    return {**optimizer, "state": states}


def _plain(scheduler: Any) -> Any:
    """A scheduler's state; of the schedulers inside it too, and of functions nothing."""
    state = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    inner = getattr(scheduler, "_schedulers", ())
    return {**state, "_schedulers": [_plain(part) for part in inner]} if inner else state


def _digest(state: Any) -> str:
    return hashlib.sha256(repr(state).encode()).hexdigest()


@contextlib.contextmanager
def _gathered(trainer: L.Trainer) -> Iterator[None]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    if isinstance(trainer.model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(trainer.model, writeback=False):
            yield
    else:
        yield


def _whole(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach().clone()
