"""Outputs, targets and loss of a module for a batch: what methods ask of a model beyond its `training_step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lr_dist._lightning import L
from lr_dist.errors import ConfigurationError


@runtime_checkable
class MultiHeadModule(Protocol):
    """A LightningModule with a head for each task, as `lr_dist.sequence` trains."""

    def task_outputs(self, batch: Any, head: str | None) -> Tensor:
        """Outputs [batch, outputs] of one head (None: the active one)."""


@dataclass(frozen=True)
class TaskFunctions:
    """How to get a batch's outputs, targets and loss; each can be replaced by a function of the user's.

    Without `outputs`, a module with `task_outputs(batch, head)` is asked; otherwise a batch that is a mapping is passed
    as keywords without `labels`, and of a pair (inputs, targets) the inputs are passed. Of an output with `logits`,
    as those of transformers, these are taken.

    Attributes:
        outputs: (module, batch, head) -> outputs [batch, outputs].
        targets: batch -> targets [batch].
        loss: (outputs, targets) -> mean loss; by default cross-entropy for whole-number targets (of a text or, with
            outputs [batch, tokens, classes], of its tokens), otherwise the mean squared error.

    Raises:
        ConfigurationError: at the first batch, one that fits none of these forms.
    """

    outputs: Callable[[L.LightningModule, Any, str | None], Tensor] | None = None
    targets: Callable[[Any], Tensor] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def outputs_of(self, module: L.LightningModule, batch: Any, head: str | None = None) -> Tensor:
        """Outputs [batch, outputs]."""
        if self.outputs is not None:
            return self.outputs(module, batch, head)
        if isinstance(module, MultiHeadModule):
            return module.task_outputs(batch, head)
        if isinstance(batch, Mapping):
            result = _model_of(module)(**{key: value for key, value in batch.items() if key != "labels"})
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            result = _model_of(module)(batch[0])
        else:
            raise _unknown_form("outputs", "outputs=lambda module, batch, head: ...", batch)
        return getattr(result, "logits", result)

    def targets_of(self, batch: Any) -> Tensor:
        """Targets [batch]."""
        if self.targets is not None:
            return self.targets(batch)
        if isinstance(batch, Mapping) and "labels" in batch:
            return batch["labels"]
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[1]
        raise _unknown_form("targets", "targets=lambda batch: ...", batch)

    def loss_of(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the batch, a scalar."""
        if self.loss is not None:
            return self.loss(outputs, targets)
        if targets.is_floating_point():
            # One number an example, [batch, 1] or [batch] on either side.
            return nn.functional.mse_loss(outputs.reshape(targets.shape), targets)
        if outputs.dim() > 2:  # a label for every token; -100 marks those without
            outputs, targets = outputs.flatten(0, -2), targets.flatten()
        return nn.functional.cross_entropy(outputs, targets)


def _model_of(module: L.LightningModule) -> nn.Module:
    """The transformers model in a module that does not define `forward` itself."""
    if type(module).forward is not L.LightningModule.forward:
        return module
    children = list(module.children())
    return children[0] if len(children) == 1 else getattr(module, "model", module)


def _unknown_form(what: str, remedy: str, batch: Any) -> ConfigurationError:
    return ConfigurationError(
        f"The {what} of a batch that is a {type(batch).__name__} are not known: it is no mapping with labels and no "
        f"pair (inputs, targets). Say how to get them: TaskFunctions({remedy})."
    )
