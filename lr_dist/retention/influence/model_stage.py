"""`ModelStage`: a trained model with the examples it learned, and which of its layers take part in influence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lr_dist.checks import check_whole
from lr_dist.errors import InfluenceError, UnsupportedModelError
from lr_dist.models import weights_fingerprint
from lr_dist.retention.influence.objectives import Batch, Objective

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ModelStage:
    """A model at the end of a stage.

    Attributes:
        model: with the stage's final weights. It is only read.
        objective: the loss that the stage trained with.
        rows: training examples, candidates for influence.
        collate: rows -> batch, with `labels`.
        repeats: how many rows in succession belong to one example, such as texts under several masks; the gradient of
            an example is the mean over them.
        batch_size: rows in one pass.
        constant: paths of modules whose layers are taken as constant, such as a masked LM's head.
        layers: paths of the layers that take part: every `nn.Linear` that the loss depends on and whose weight is its
            own. Other weights (embeddings, norms, tied decoders) are taken as constant.
        excluded: path -> why a linear layer does not take part.
        shared_calls: whether a layer is called several times in one pass.

    Raises:
        UnsupportedModelError: the model is itself a linear layer, or no layer takes part.
        InfluenceError: no examples.
    """

    model: nn.Module
    objective: Objective
    rows: Sequence[Row]
    collate: Callable[[list[Any]], Batch]
    repeats: int = 1
    batch_size: int = 8
    constant: tuple[str, ...] = ()
    layers: tuple[str, ...] = field(init=False)
    excluded: Mapping[str, str] = field(init=False)
    shared_calls: bool = field(init=False)

    def __post_init__(self) -> None:
        check_whole("repeats", self.repeats, 1, error=InfluenceError)
        check_whole("batch_size", self.batch_size, 1, error=InfluenceError)
        if not len(self.rows) or len(self.rows) % self.repeats:
            raise InfluenceError(
                f"A stage needs at least one example, and {self.repeats} row(s) for each: it has {len(self.rows)} rows."
            )
        if isinstance(self.model, nn.Linear):
            raise UnsupportedModelError(
                "The model is itself an nn.Linear, which kronfluence cannot wrap (it recurses without end). Put it "
                "into a module: nn.Sequential(model)."
            )
        layers, excluded, several = _choose(self)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "excluded", excluded)
        object.__setattr__(self, "shared_calls", several)

    @property
    def examples(self) -> int:
        """Number of candidates."""
        return len(self.rows) // self.repeats

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers' weights."""
        return self.model.get_submodule(self.layers[0]).weight.dtype  # type: ignore[return-value]

    def batches(self) -> Iterator[Batch]:
        """The rows in their order."""
        device = next(self.model.parameters()).device
        for start in range(0, len(self.rows), self.batch_size):
            chosen = [self.rows[i] for i in range(start, min(start + self.batch_size, len(self.rows)))]
            yield to_device(self.collate(chosen), device)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of weights, rows and layers: factors of another stage do not fit."""
        digest = hashlib.sha256(weights_fingerprint(self.model).encode())
        digest.update(repr((type(self.objective).__name__, self.layers, self.repeats)).encode())
        for index in range(len(self.rows)):
            row = self.rows[index]
            for name in sorted(row):
                values = np.asarray(row[name])
                digest.update(f"{name}:{values.shape}:{values.dtype}".encode())
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


@contextmanager
def ready(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, with gradients for all weights that can have them; as before at the end."""
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter, was in wanted.items():
            parameter.requires_grad_(was)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _choose(stage: ModelStage) -> tuple[tuple[str, ...], dict[str, str], bool]:
    """The layers that take part, why others do not, and whether one is called several times."""
    model = stage.model
    # Exactly nn.Linear: a subclass may compute something else.
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    constant = {name for name in linear if any(f"{name}.".startswith(f"{path}.") for path in stage.constant)}
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    calls: dict[str, list[Tensor]] = {name: [] for name in linear}
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: calls[name].append(output))  # type: ignore[misc]
        for name, module in linear.items()
    ]
    try:
        with ready(model):
            losses = stage.objective.losses(model, next(stage.batches()))
            every = [output for outputs in calls.values() for output in outputs]
            found = torch.autograd.grad(losses.sum(), every, allow_unused=True) if every else ()
    finally:
        for hook in hooks:
            hook.remove()
    reached = {id(output) for output, gradient in zip(every, found, strict=True) if gradient is not None}
    excluded = {}
    for name, module in linear.items():
        if name in constant:
            excluded[name] = "it is taken as constant"
        elif uses[id(module.weight)] > 1:
            excluded[name] = "its weight is tied to another module's"
        elif not any(id(output) in reached for output in calls[name]):
            excluded[name] = "the loss does not depend on it"
    layers = tuple(name for name in linear if name not in excluded)
    if not layers:
        why = "; ".join(f"{name}: {reason}" for name, reason in excluded.items()) or "it has no nn.Linear"
        raise UnsupportedModelError(
            f"No layer of {type(model).__name__} can take part in influence ({why}). EK-FAC needs nn.Linear layers "
            "with weights of their own."
        )
    return layers, excluded, any(len(calls[name]) > 1 for name in layers)
