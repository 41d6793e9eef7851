"""The hidden states of every layer for given inputs, from any model whose layers can be placed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.errors import ConfigurationError, LRDistError, shown
from lr_dist.layers import Overrides, Stacks, layer_modules
from lr_dist.methods.examples import count, rows
from lr_dist.methods.task_functions import TaskFunctions
from lr_dist.monitor.host import Host, moved_to
from lr_dist.monitor.undisturbed import undisturbed

POOLS = ("mean", "first", "tokens")
# (module, batch): computes the batch; what it returns is not used.
Run = Callable[[Any, Any], Any]


def hidden_states(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    pool: str = "mean",
    run: Run | None = None,
    overrides: Overrides | None = None,
    stacks: Stacks | None = None,
    host: Host | None = None,
) -> dict[str, Tensor]:
    """The hidden states after the embeddings and after each layer.

    They are read by hooks while the model computes in evaluation mode, without gradients and with random numbers of
    its own; the model is afterwards as it was. Padding (`attention_mask` is 0) is left out.

    Args:
        model: a transformer, with or without a head, or a module that holds one.
        batches: mappings with the model's keywords (`labels` are left out), pairs (inputs, targets), or tensors.
        pool: what is a row: `mean`, of the tokens of a text; `first`, its first token; `tokens`, every token.
        run: (module, batch) computes another kind of batch.
        overrides: see `assign_layers`.
        stacks: see `assign_layers`.
        host: device and precision; by default those of the model.

    Returns:
        `embeddings`, `layers.0` ... `layers.N-1` (with towers `vision/layers.0`, ...) -> [rows, hidden], float32, on
        the CPU. `embeddings` are what the first layer receives.

    Raises:
        ConfigurationError: no batch, an unknown `pool`, an encoder-decoder, a batch of unknown form, layers that do not
            give states [batch, tokens, hidden], or an attention mask of another shape.
        LRDistError: layers that cannot be found (see `assign_layers`).
    """
    check_pool(pool)
    _refuse_encoder_decoder(model)
    layers = layer_modules(model, overrides, stacks)
    host = host or Host(_device(model))
    states: dict[str, list[Tensor]] = {}
    # A module that joins the texts of a batch in one row says how to do without.
    padded = getattr(model, "padded_batches", nullcontext)
    with undisturbed(model, host.device, [batches]), padded(), _eager(model):
        for batch in batches:
            for part in _parts(batch):
                given = moved_to(part, host.device)
                with host.precision():
                    taken = _taken(model, layers, run or _run, given)
                for layer, state in taken.items():
                    pooled = _pooled(layer, state, _mask(given), count(given), pool)
                    states.setdefault(layer, []).append(pooled.float().cpu())
    if not states:
        raise ConfigurationError("There are no texts to compute hidden states of: the batches are empty.")
    return {layer: torch.cat(each) for layer, each in states.items()}


def check_pool(pool: Any) -> None:
    """Refuse an unknown `pool`.

    Raises:
        ConfigurationError: see above.
    """
    if pool not in POOLS:
        raise ConfigurationError(f"pool must be {', '.join(POOLS[:-1])} or {POOLS[-1]}, not {shown(pool)}.")


def _run(model: nn.Module, batch: Any) -> Any:
    pair = (batch, None) if isinstance(batch, Tensor) else batch
    try:
        return TaskFunctions().outputs_of(model, pair)  # type: ignore[arg-type]
    except (LRDistError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model's own code raises on keywords or shapes that it does not expect
        raise ConfigurationError(
            f"{type(model).__name__} cannot compute a batch that is a {type(batch).__name__}: {type(error).__name__}: "
            f"{error!s:.300} Give batches with the keywords of its forward, or run=..., a function (module, batch) "
            "that computes one."
        ) from error


def _taken(model: nn.Module, layers: Mapping[str, tuple[nn.Module, ...]], run: Run, batch: Any) -> dict[str, Tensor]:
    """Layer -> its output for a batch."""
    taken: dict[str, Tensor] = {}
    with _hooks(layers, taken):
        run(model, batch)
    missing = [layer for layer in layers if layer not in taken]
    if missing:
        raise ConfigurationError(
            f"The model's forward pass did not call {', '.join(missing[:3])}, so it has no hidden states there. Give "
            "run=..., a function (module, batch) that computes the whole model."
        )
    return taken


@contextmanager
def _hooks(layers: Mapping[str, tuple[nn.Module, ...]], taken: dict[str, Tensor]) -> Iterator[None]:
    """Hooks that write each layer's output into `taken`, and the first layer's input as `embeddings`."""
    handles = []

    def embeddings(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken.setdefault(name, _state([*args, *kwargs.values()], name))

        return hook

    def output(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            taken[name] = _state(result if isinstance(result, (tuple, list)) else [result], name)

        return hook

    try:
        for name, entries in layers.items():
            tower, _, layer = name.rpartition("/")
            if layer == "layers.0":
                first = f"{tower}/embeddings" if tower else "embeddings"
                handles.append(entries[0].register_forward_pre_hook(embeddings(first), with_kwargs=True))
            handles.append(entries[-1].register_forward_hook(output(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _state(values: Iterable[Any], layer: str) -> Tensor:
    """The hidden states among what a layer receives or returns: the first tensor of three dimensions."""
    for value in values:
        value = getattr(value, "last_hidden_state", value)
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
            return value.detach()
    raise ConfigurationError(
        f"{layer} has no hidden states [batch, tokens, hidden]: it is no layer of a transformer for sequences. Compare "
        "the weights alone."
    )


def _pooled(layer: str, state: Tensor, mask: Tensor | None, examples: int, pool: str) -> Tensor:
    """[batch, tokens, hidden] -> [rows, hidden]."""
    if state.shape[0] != examples and state.shape[1] == examples:
        state = state.transpose(0, 1)  # XLNet computes [tokens, batch, hidden]
    if pool == "first" and state.shape[0] == examples and state.shape[1] == 1:
        return state[:, 0]  # a last layer that computes only the token which the head reads
    if state.shape[0] != examples or (mask is not None and mask.shape != state.shape[:2]):
        raise ConfigurationError(
            f"The hidden states of {layer} have the shape {tuple(state.shape)}, for {examples} examples"
            + (f" with an attention_mask of the shape {tuple(mask.shape)}" if mask is not None else "")
            + ". Give batches [examples, tokens] with an attention_mask [examples, tokens]."
        )
    keep = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device) if mask is None else mask.bool()
    if pool == "tokens":
        return state[keep]
    if not bool(keep.any(1).all()):
        raise ConfigurationError("A text has no token: its attention_mask is 0 everywhere. Leave out empty texts.")
    if pool == "first":
        first = keep.int().argmax(1)
        return state[torch.arange(examples, device=state.device), first]
    weights = keep.unsqueeze(-1)
    return (state.float() * weights).sum(1) / weights.sum(1)


def _mask(batch: Any) -> Tensor | None:
    """The attention mask [batch, tokens] of a batch of any form."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        batch = batch[0]
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _parts(batch: Any) -> Iterator[Any]:
    """The batch; in two parts if it has as many examples as tokens, so that the states' dimensions can be told."""
    number = count(batch)
    tensors = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    square = any(isinstance(each, Tensor) and each.ndim >= 2 and each.shape[1] == number for each in tensors)
    if not square or number < 2:
        yield batch
        return
    yield rows(batch, torch.arange(number - 1))
    yield rows(batch, torch.tensor([number - 1]))


def _refuse_encoder_decoder(model: nn.Module) -> None:
    if any(getattr(getattr(part, "config", None), "is_encoder_decoder", False) for part in model.modules()):
        raise ConfigurationError(
            "The hidden states of an encoder-decoder are of two sequences. Compare its encoder: model.get_encoder()."
        )


def _eager(model: nn.Module) -> Any:
    """Without torch.compile, which ignores hooks that are added after it has compiled a module."""
    compiled = any("_orig_mod" in part._modules or part._compiled_call_impl is not None for part in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
