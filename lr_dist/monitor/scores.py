"""Scoring the old tasks with the model as it is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from lr_dist.errors import ConfigurationError, DivergedError, LRDistError, ScoringError, shown
from lr_dist.monitor.host import Host, moved_to
from lr_dist.monitor.old_tasks import OldTask
from lr_dist.monitor.undisturbed import undisturbed


def check_tasks(module: nn.Module, tasks: Iterable[OldTask], host: Host) -> None:
    """Score the first batch of every task, so that what cannot be scored is known before anything long begins.

    Raises:
        ScoringError: no batch, a score function or a metric that fails, or outputs that are no tensors.
        ConfigurationError: a loader that already divides its data among the processes.
    """
    tasks = list(tasks)
    for task in tasks:
        _check_sampler(task, host)
    with undisturbed(module, host.device, [task.loader for task in tasks]):
        for task in tasks:
            metric = task.metric.to(host.device)
            metric.reset()
            batch = next(iter(task.loader), None)
            if batch is None:
                raise _no_batch(task)
            _update(task, metric, *_outputs(task, module, batch, host))
            metric.reset()


def score_tasks(module: nn.Module, tasks: Iterable[OldTask], host: Host, step: int) -> dict[str, float]:
    """The score of every task, the same in every process.

    With several processes, each takes every n-th batch of a loader and the metric's states are merged, so an example
    counts once: there is no padding to equal lengths. A process that runs out of batches repeats one without counting
    it, because a sharded model's forward pass needs all processes. A loader of unknown length, or of fewer batches
    than processes, is scored whole in each of them.

    Args:
        module: the model; afterwards it is as before (`undisturbed`).
        tasks: what is scored.
        host: device, processes, precision.
        step: the optimizer's step, for errors.

    Raises:
        DivergedError: the model's outputs are NaN.
        ScoringError: a score that is not a finite number, or that cannot be computed.
    """
    tasks = list(tasks)
    with undisturbed(module, host.device, [task.loader for task in tasks]):
        return {task.name: _score(task, module, host, step) for task in tasks}


def _score(task: OldTask, module: nn.Module, host: Host, step: int) -> float:
    divided = host.replicas > 1 and _length(task.loader) >= host.replicas
    metric = task.metric.to(host.device)
    metric.reset()
    metric.sync_on_compute = divided
    broken = torch.zeros((), dtype=torch.bool, device=host.device)
    batches = 0
    for batch, counts in _share(task.loader, host) if divided else ((batch, True) for batch in task.loader):
        outputs, targets = _outputs(task, module, batch, host)
        batches += 1
        if counts:
            broken |= _has_nan(outputs)
            _update(task, metric, outputs, targets)
    if not batches:
        raise _no_batch(task)
    if divided:
        # Together, so that no process waits for one that has raised.
        number = broken.float()
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        broken = number.bool()
    if broken:
        raise DivergedError(
            f"The outputs for the old task {shown(task.name)} are NaN after {step} step(s), so the training has "
            "diverged. Lower the learning rates, or lengthen the warm-up."
        )
    score = _computed(task, metric)
    metric.reset()
    if not math.isfinite(score):
        raise ScoringError(
            f"{type(metric).__name__} of the old task {shown(task.name)} is {score} after {step} step(s). It is "
            "undefined for these examples (all of one class?): give more of them, or another metric."
        )
    return score


def _share(loader: Iterable[Any], host: Host) -> Iterator[tuple[Any, bool]]:
    """(batch, whether it counts) for this process; equally many in each."""
    index, latest = -1, None
    for index, latest in enumerate(loader):
        if index % host.replicas == host.rank:
            yield latest, True
    left = (index + 1) % host.replicas
    if left and host.rank >= left:
        yield latest, False


def _outputs(task: OldTask, module: nn.Module, batch: Any, host: Host) -> tuple[Tensor, Tensor]:
    try:
        with host.precision():
            result = task.score(module, moved_to(batch, host.device))
    except ScoringError as error:
        raise ScoringError(f"The old task {shown(task.name)} cannot be scored. {error}") from error
    except (LRDistError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ScoringError(
            f"The old task {shown(task.name)} cannot be scored: {type(error).__name__}: {error}. Look at its batches "
            "and at the function score(module, batch) -> (outputs, targets)."
        ) from error
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(part, Tensor) for part in result):
        raise ScoringError(
            f"The score of the old task {shown(task.name)} must return two tensors, (outputs, targets), not "
            f"{shown(result)}."
        )
    return result


def _update(task: OldTask, metric: Any, outputs: Tensor, targets: Tensor) -> None:
    # 16-bit outputs of autocast would lose digits in a sum.
    outputs = outputs.float() if outputs.is_floating_point() else outputs
    try:
        metric.update(outputs, targets)
    except Exception as error:
        raise ScoringError(
            f"{type(metric).__name__} cannot score the old task {shown(task.name)} with outputs of the shape "
            f"{tuple(outputs.shape)} and targets of the shape {tuple(targets.shape)}: {error}"
        ) from error


def _computed(task: OldTask, metric: Any) -> float:
    with warnings.catch_warnings():
        # torchmetrics warns of what is a score here, such as nearly constant outputs.
        warnings.simplefilter("ignore", UserWarning)
        value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ScoringError(
            f"{type(metric).__name__} of the old task {shown(task.name)} must give one number, not {shown(value)}. "
            "With average='macro' or 'micro' it does."
        )
    # float32 has seven digits: .475 rather than .4749999940395355
    return round(float(value), 7) if value.dtype == torch.float32 else float(value)


def _check_sampler(task: OldTask, host: Host) -> None:
    batches = getattr(task.loader, "batch_sampler", None)
    samplers = (getattr(task.loader, "sampler", None), getattr(batches, "sampler", None))
    if host.replicas > 1 and any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise ConfigurationError(
            f"The loader of the old task {shown(task.name)} has a DistributedSampler, which repeats examples so that "
            "all processes have equally many. Give a plain loader: the monitor divides its batches itself, and counts "
            "each example once."
        )


def _has_nan(outputs: Tensor) -> Tensor:
    return outputs.isnan().any()


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError:
        return 0


def _no_batch(task: OldTask) -> ScoringError:
    return ScoringError(f"The loader of the old task {shown(task.name)} has no batch. Look at its data set.")
