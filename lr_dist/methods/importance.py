"""How much a task depends on each weight: diagonal Fisher information (EWC) and sensitivity of the outputs (MAS)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lr_dist._lightning import L
from lr_dist.errors import ConfigurationError, DivergedError
from lr_dist.layers import clean_name
from lr_dist.methods.evaluating import evaluating
from lr_dist.methods.per_example import Losses, PerExampleSums, first_rows
from lr_dist.methods.rehearsal import moved_to
from lr_dist.methods.task_functions import TaskFunctions

Labels = Literal["sampled", "true"]
LABELS = ("sampled", "true")
# Targets of tokens that have none, as transformers and torch mark them.
_IGNORED = -100


def protected_parameters(module: nn.Module, exclude: str | None = None) -> dict[str, nn.Parameter]:
    """The parameters that get importances, by name.

    Those that are frozen now are among them, since a later stage may train them; and so are all heads. A head that the
    task does not use has the importance 0, and one that no later task trains is not pulled.

    Args:
        module: any.
        exclude: regular expression; parameters whose name matches are left out.
    """
    named = {clean_name(name): parameter for name, parameter in module.named_parameters()}
    return {
        name: parameter
        for name, parameter in named.items()
        if parameter.is_floating_point() and not (exclude and re.search(exclude, name))
    }


def fisher(
    module: L.LightningModule,
    parameters: dict[str, nn.Parameter],
    loader: Iterable[Any],
    functions: TaskFunctions,
    *,
    head: str | None,
    labels: Labels,
    examples: int,
    seed: int,
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information: the mean over examples of (d log p(y|x) / d theta)^2.

    log p(y|x) is minus the loss of the example alone. The squared error is minus log p, up to a constant, of a normal
    distribution with variance 1/2.

    Args:
        module: its dropout is switched off meanwhile.
        parameters: name -> parameter.
        loader: batches of the task.
        functions: outputs, targets and loss of a batch.
        head: the task's head.
        labels: `sampled` from the model's own distribution (the Fisher information; the targets are not needed), or
            `true`: the data's (the empirical Fisher; see Kunstner et al. 2019, arXiv 1905.12558, for what it misses).
        examples: at most so many, over all processes.
        seed: for `sampled`; an example's label depends on it and on the example's number.

    Returns:
        name -> tensor of the parameter's shape, 0 or more.

    Raises:
        ConfigurationError: no example, or a batch of unknown form.
        DivergedError: a gradient is not finite.
    """

    def losses(batch: Any, first: int) -> Tensor:
        outputs = functions.outputs_of(module, batch, head)
        if labels == "sampled":
            targets = _sampled(outputs, _targets_or_none(functions, batch), seed + first)
        else:
            targets = functions.targets_of(batch)
        return torch.stack([_loss(functions, outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])

    return _mean_over_examples(module, parameters, loader, losses, Tensor.square_, examples)


def sensitivity(
    module: L.LightningModule,
    parameters: dict[str, nn.Parameter],
    loader: Iterable[Any],
    functions: TaskFunctions,
    *,
    head: str | None,
    examples: int,
) -> dict[str, Tensor]:
    """The mean over examples of |d ||f(x)||^2 / d theta|, f(x) being the outputs (logits); needs no targets.

    Arguments, result and errors as those of `fisher`.
    """

    def losses(batch: Any, first: int) -> Tensor:
        return functions.outputs_of(module, batch, head).float().square().flatten(1).sum(1)

    return _mean_over_examples(module, parameters, loader, losses, Tensor.abs_, examples)


def _mean_over_examples(
    module: L.LightningModule,
    parameters: dict[str, nn.Parameter],
    loader: Iterable[Any],
    losses: Losses,
    function: Callable[[Tensor], Tensor],
    examples: int,
) -> dict[str, Tensor]:
    processes = torch.distributed.get_world_size() if _distributed() else 1
    most = -(-examples // processes)
    sums = PerExampleSums(module, parameters, losses, function)
    with evaluating(module):
        for batch in loader:
            sums.add(first_rows(moved_to(module, batch), most - sums.examples))
            if sums.examples >= most:
                break
    total = torch.tensor(float(sums.examples), device=module.device)
    if processes > 1:
        for each in (total, *sums.sums.values()):
            torch.distributed.all_reduce(each)
    if not total:
        raise ConfigurationError("The task's data has no examples, so importances cannot be estimated from it.")
    means = {name: each / total for name, each in sums.sums.items()}
    bad = next((name for name, each in means.items() if not bool(each.isfinite().all())), None)
    if bad is not None:
        raise DivergedError(
            f"The gradients of {bad} on the task's examples are not finite, so its importances are not: the training "
            "has diverged. Lower the rates or the strength of the method."
        )
    return means


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _targets_or_none(functions: TaskFunctions, batch: Any) -> Tensor | None:
    try:
        return functions.targets_of(batch)
    except ConfigurationError:
        return None


def _loss(functions: TaskFunctions, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss of one example; 0 for one without any target."""
    if not targets.is_floating_point() and bool((targets == _IGNORED).all()):
        return outputs.sum() * 0.0
    return functions.loss_of(outputs, targets)


def _sampled(outputs: Tensor, targets: Tensor | None, seed: int) -> Tensor:
    """A target for each example, drawn from what the model predicts.

    Args:
        outputs: logits [examples, ..., classes], or predicted numbers.
        targets: the data's; where they are `_IGNORED` so is the result. Floating-point ones: the task is a regression.
        seed: that of the first example; the next ones count up, so that batches do not change the draws.
    """
    drawn = []
    for index, each in enumerate(outputs.detach().float().cpu()):
        generator = torch.Generator().manual_seed((seed + index) % 2**63)
        if targets is not None and targets.is_floating_point():
            each = each.squeeze(-1)
            drawn.append(each + 0.5**0.5 * torch.randn(each.shape, generator=generator))
        else:
            # A diverged model's probabilities are NaN, which the importances then report.
            chances = each.reshape(-1, each.shape[-1]).softmax(-1).nan_to_num(1.0)
            drawn.append(torch.multinomial(chances, 1, generator=generator).reshape(each.shape[:-1]))
    result = torch.stack(drawn).to(outputs.device)
    if targets is None or targets.is_floating_point():
        return result
    return torch.where(targets == _IGNORED, targets, result)
