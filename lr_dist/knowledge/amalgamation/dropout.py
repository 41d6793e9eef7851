"""Passes with dropout on: in every module, or in the top layers only, with the lower ones computed once (pure torch).

Putting nn.Dropout alone in training mode is not enough. Under transformers 5, BERT's attention drops out by the flag of
the attention module, and other models call `functional.dropout` with a flag of their own. So all modules are put in
training mode, except those that would then compute or change running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm

from lr_dist.checks import check_whole
from lr_dist.errors import ConfigurationError, LRDistError
from lr_dist.layers import assign_layers

# In training mode they normalise by the batch, and change their running statistics.
_STATEFUL = (_BatchNorm, _InstanceNorm, _SpectralNorm)

Forward = Callable[[Mapping[str, Tensor]], Tensor]


@contextmanager
def dropout_on(model: nn.Module) -> Iterator[None]:
    """Everything that depends on a module's training flag acts as in training; afterwards the model is as before.

    Modules with running statistics (BatchNorm, InstanceNorm, spectral norm) stay in evaluation mode. Buffers that a
    module changes in training mode nevertheless are restored.
    """
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        for module, _ in flags:
            module.training = not isinstance(module, _STATEFUL)
        yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, version, before in buffers:
                if buffer._version != version:
                    buffer.copy_(before)


def mean_of_passes(forward: Forward, model: nn.Module, inputs: Mapping[str, Tensor], passes: int, rows: int) -> Tensor:
    """The mean softmax over passes with dropout on, [examples, labels].

    The passes are computed together: the batch is repeated along its first dimension, in which dropout draws for each
    row on its own.

    Args:
        forward: inputs -> logits [examples, labels].
        model: what `forward` computes with.
        inputs: tensors [examples, ...].
        passes: how many.
        rows: the most rows of one forward pass; at least one pass is computed at a time.
    """
    examples = len(next(iter(inputs.values())))
    together = 1 if shares_draws(model) else max(1, min(passes, rows // examples))
    total: Tensor | None = None
    with dropout_on(model):
        for start in range(0, passes, together):
            count = min(together, passes - start)
            outputs = forward(repeated(inputs, count)).float()
            part = torch.softmax(outputs, dim=-1).unflatten(0, (count, examples)).sum(dim=0)
            total = part if total is None else total + part
    assert total is not None
    return total / passes


def repeated(inputs: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Every tensor `count` times along its first dimension: all examples, then all of them again."""
    return {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in inputs.items()}


def shares_draws(model: nn.Module) -> bool:
    """Whether all rows of a batch share a random choice, as with LayerDrop: then passes cannot be computed together."""
    config = _config(model)
    return config is not None and any(name.endswith("layerdrop") and value for name, value in vars(config).items())


class TopLayers:
    """Passes with dropout in the top k layers and the head only; what is below is computed once, without dropout.

    Faster than dropout everywhere, which begins at the embeddings, so that nothing could be shared. The spread of the
    passes is smaller, so the certainty is another one (docs/knowledge.md has measured errors).

        top = TopLayers(model, 2)
        with top.lower_layers_kept():
            logits = model(**inputs).logits  # without dropout
            ...                              # further forwards begin at the top layers

    Args:
        model: with one stack of layers, each called with the hidden states as its first argument.
        count: k, from 1 to the number of layers.

    Raises:
        ConfigurationError: a count out of range, or a model whose layers are not separate modules.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        layers = layer_modules(model)
        check_whole("top_layers", count, 1, len(layers), error=ConfigurationError, hint="It counts layers.")
        self._lower, self._first = layers[: len(layers) - count], layers[len(layers) - count]

    @contextmanager
    def lower_layers_kept(self) -> Iterator[None]:
        """The first forward within is a full one; later ones take its states, repeated, as the top layers' input.

        The later ones may have the batch repeated along its first dimension. Their embeddings are computed, and not
        used.
        """
        kept = _KeptStates(self._first.forward)
        try:
            for layer in self._lower:
                layer.forward = _OnceThenUnchanged(layer.forward, kept)
            self._first.forward = kept
            yield
        finally:
            for layer in (*self._lower, self._first):
                layer.__dict__.pop("forward", None)  # the class's own again


class _KeptStates:
    """In place of the first top layer's `forward`: keeps the states of the first call, and uses them in later ones."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.states: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        states = _states(args, kwargs)
        if self.states is None:
            self.states = states.detach()
            return self.forward(*args, **kwargs)
        given = self.states.repeat(len(states) // len(self.states), *[1] * (states.dim() - 1))
        if args:
            return self.forward(given, *args[1:], **kwargs)
        return self.forward(**{**kwargs, "hidden_states": given})


class _OnceThenUnchanged:
    """In place of a lower layer's `forward`: computes until the states are kept; then returns its input."""

    def __init__(self, forward: Callable[..., Any], kept: _KeptStates) -> None:
        self.forward = forward
        self.kept = kept
        self.rest: tuple[Any, ...] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.kept.states is None:
            outputs = self.forward(*args, **kwargs)
            self.rest = outputs[1:] if isinstance(outputs, tuple) else None
            return outputs
        states = _states(args, kwargs)
        return states if self.rest is None else (states, *self.rest)


def _states(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    states = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(states, Tensor):
        raise ConfigurationError(
            "top_layers needs layers that take the hidden states as their first argument. Leave it out: dropout is "
            "then on everywhere."
        )
    return states


def layer_modules(model: nn.Module) -> list[nn.Module]:
    """The model's layers, from the input to the output.

    Raises:
        ConfigurationError: layers that are not separate modules, such as ALBERT's shared one.
    """
    try:
        layers = assign_layers(model)
    except LRDistError as error:
        raise ConfigurationError(f"top_layers needs a model whose layers are known. {error}") from error
    modules = [_module_of(model, layers.groups.get(f"layers.{index}", ())) for index in range(layers.num_layers)]
    # ALBERT has one layer that it calls several times.
    called = getattr(_config(model), "num_hidden_layers", len(modules))
    if any(module is None for module in modules) or len({id(module) for module in modules}) < max(called, len(modules)):
        raise ConfigurationError(
            f"top_layers needs layers that are separate modules, and those of {type(model).__name__} are not. Leave it "
            "out: dropout is then on everywhere."
        )
    return [module for module in modules if module is not None]


def _module_of(model: nn.Module, parameters: Sequence[str]) -> nn.Module | None:
    """The smallest module that holds all these parameters, and no others."""
    if not parameters:
        return None
    names = [name.split(".") for name in parameters]
    prefix = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))]
    while prefix:
        try:
            module = model.get_submodule(".".join(prefix))
        except AttributeError:  # a parameter
            prefix = prefix[:-1]
            continue
        return module if len(list(module.parameters())) == len(parameters) else None
    return None


def _config(model: nn.Module) -> Any:
    """The transformers configuration of the model, or of the first of its parts that has one."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((config for config in configs if config is not None), None)
