"""Gradients of single examples, summed after a function such as the square: what importances are made of.

The gradient of a batch's mean loss is the mean over examples, and its square is not the mean of the squares. Running
the examples one by one gives the right sum, slowly. Here the batch is computed as a whole, and for each linear layer,
layer norm and embedding an example's gradient is formed from that module's input and the gradient of its output (its
weight's is a product of the two). On MiniLM (batch 16, 32 tokens, one thread) an example costs 25 ms, one by one 37 ms,
and a plain gradient of the batch 21 ms. `torch.func.vmap` does not run through the masks of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lr_dist.methods.examples import count, rows

Losses = Callable[[Any, int], Tensor]
_KINDS = (nn.Linear, nn.LayerNorm, nn.Embedding)
_TOLERANCE = 1e-3


class PerExampleSums:
    """Sums f(gradient of one example's loss) over examples, with f elementwise.

    The first two examples of the first batch are also computed one by one. If the results differ, or if the module has
    weights other than those of plain `nn.Linear`, `nn.LayerNorm` and `nn.Embedding` modules, all examples are computed
    one by one.

    Args:
        module: in evaluation mode; its weights do not change.
        parameters: name -> parameter, those to sum over.
        losses: (batch, number of its first example) -> losses [examples], each of its example alone.
        function: applied to each gradient, in place: `Tensor.square_` or `Tensor.abs_`.

    Attributes:
        sums: name -> sum, float32, of the parameter's shape.
        examples: the number of examples so far.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        losses: Losses,
        function: Callable[[Tensor], Tensor],
    ) -> None:
        self.sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        self.examples = 0
        self._module = module
        self._parameters = dict(parameters)
        self._losses = losses
        self._function = function
        self._whole_batches: bool | None = None if _only_known_kinds(module, self._parameters) else False

    def add(self, batch: Any) -> None:
        """Add the examples of a batch, of any form that `lr_dist.methods.examples` knows."""
        number = count(batch)
        with _computing(self._module, self._parameters.values()):
            if self._whole_batches is None and number > 1:
                self._whole_batches = self._same_both_ways(first_rows(batch, 2))
            if not (self._whole_batches and self._add_whole(batch, self.sums)):
                self._add_one_by_one(batch, self.sums)
        self.examples += number

    def _same_both_ways(self, batch: Any) -> bool:
        whole, single = ({name: torch.zeros_like(total) for name, total in self.sums.items()} for _ in range(2))
        if not self._add_whole(batch, whole):
            return False
        self._add_one_by_one(batch, single)
        # Against the largest gradient of all: one that is 0 but for rounding, as that of attention's key bias, counts
        # for nothing.
        largest = max((float(total.max()) for total in single.values()), default=0.0)
        if not math.isfinite(largest):
            return False  # the importances will say so
        return all(
            torch.allclose(whole[name], single[name], rtol=_TOLERANCE, atol=_TOLERANCE**2 * largest) for name in whole
        )

    def _add_one_by_one(self, batch: Any, sums: dict[str, Tensor]) -> None:
        for index in range(count(batch)):
            loss = self._losses(rows(batch, torch.tensor([index])), self.examples + index).sum()
            gradients = torch.autograd.grad(loss, list(self._parameters.values()), allow_unused=True)
            for name, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    whole = gradient.to_dense() if gradient.is_sparse else gradient
                    sums[name].add_(self._function(whole.to(torch.float32, copy=True)))

    def _add_whole(self, batch: Any, sums: dict[str, Tensor]) -> bool:
        """Whether it could be done; if not, the sums have not changed."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        taps = _Taps(names, sums, self._function, count(batch))
        handles = [
            module.register_forward_hook(taps.tap)
            for module in self._module.modules()
            if any(id(parameter) in names for parameter in module.parameters(recurse=False))
        ]
        try:
            for parameter in self._parameters.values():
                parameter.requires_grad_(False)  # the gradient of the whole batch is not needed
            loss = self._losses(batch, self.examples).sum()
            if loss.requires_grad:
                loss.backward()
        except _UnknownShapeError:  # in the forward pass
            return False
        finally:
            for handle in handles:
                handle.remove()
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
        return True


class _UnknownShapeError(Exception):
    """A module's input or output is not [examples, ...], or the module is used twice."""


class _Taps:
    """Reads modules' inputs and the gradients of their outputs, and adds the examples' gradients to the sums."""

    def __init__(
        self, names: Mapping[int, str], sums: dict[str, Tensor], function: Callable[[Tensor], Tensor], examples: int
    ) -> None:
        self._names = names
        self._sums = sums
        self._function = function
        self._examples = examples
        self._seen: set[int] = set()

    def tap(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        """A forward hook; the output that it returns is the same, with a gradient for every example."""
        # A weight that is used twice has the sum of two gradients, and the square of a sum is not a sum of squares.
        if id(module) in self._seen or not inputs or not isinstance(output, Tensor):
            raise _UnknownShapeError
        self._seen.add(id(module))
        given = inputs[0].detach()
        if len(given) == 1 and self._examples > 1:  # the same for all, as the embeddings of positions
            given = given.expand(self._examples, *given.shape[1:])
            output = output.expand(self._examples, *output.shape[1:])
        if len(given) != self._examples or len(output) != self._examples:
            raise _UnknownShapeError
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output.register_hook(lambda gradient: self._add(module, given, gradient.detach()))
        return output

    @torch.no_grad()
    def _add(self, module: Any, given: Tensor, gradient: Tensor) -> None:
        weight = self._sums.get(self._names.get(id(module.weight), ""))
        bias = self._sums.get(self._names.get(id(getattr(module, "bias", None)), ""))
        given, gradient = given.detach(), gradient.float()
        if isinstance(module, nn.Embedding):
            self._add_rows(module, weight, given, gradient)
            return
        # [examples, tokens, features]; all but the first and the last dimension are the tokens.
        tokens = gradient.reshape(self._examples, -1, gradient.shape[-1])
        values = given.float()
        if isinstance(module, nn.LayerNorm):
            dims = len(module.normalized_shape)
            normed = nn.functional.layer_norm(values, module.normalized_shape, eps=module.eps)
            over = tuple(range(1, gradient.dim() - dims))
            for total, each in ((weight, gradient * normed), (bias, gradient)):
                if total is not None:
                    total.add_(self._function(each.sum(over) if over else each.clone()).sum(0))
            return
        if bias is not None:
            bias.add_(self._function(tokens.sum(1)).sum(0))
        if weight is not None:
            values = values.reshape(self._examples, -1, values.shape[-1])
            # One example after the other, so that its gradient stays in the processor's cache.
            scratch = torch.empty_like(weight)
            for index in range(self._examples):
                torch.mm(tokens[index].T, values[index], out=scratch)
                weight.add_(self._function(scratch))

    def _add_rows(self, module: nn.Embedding, weight: Tensor | None, given: Tensor, gradient: Tensor) -> None:
        """Of each example, only the rows of its tokens have a gradient; that of a padding row is not counted."""
        if weight is None:
            return
        ids = given.reshape(self._examples, -1)
        numbered = ids + torch.arange(self._examples, device=ids.device)[:, None] * module.num_embeddings
        rows, places = numbered.flatten().unique(return_inverse=True)
        of_rows = gradient.new_zeros(len(rows), gradient.shape[-1])
        of_rows.index_add_(0, places, gradient.reshape(-1, gradient.shape[-1]))
        tokens = rows % module.num_embeddings
        if module.padding_idx is not None:
            of_rows.masked_fill_((tokens == module.padding_idx)[:, None], 0.0)
        weight.index_add_(0, tokens, self._function(of_rows))


def first_rows(batch: Any, number: int) -> Any:
    """The first examples of a batch, in the batch's own form; the batch itself if it has no more."""
    return batch if number >= count(batch) else rows(batch, torch.arange(number))


def _only_known_kinds(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether each parameter is in exactly one module, of a kind whose gradients are known."""
    wanted = {id(parameter) for parameter in parameters.values()}
    owners = [
        (id(parameter), each)
        for each in module.modules()
        for parameter in each.parameters(recurse=False)
        if id(parameter) in wanted
    ]
    return len(owners) == len(wanted) and all(
        type(each) in _KINDS and not getattr(each, "scale_grad_by_freq", False) for _, each in owners
    )


@contextmanager
def _computing(module: nn.Module, parameters: Any) -> Iterator[None]:
    """Gradients for exactly these parameters, and batches as they are; everything is restored afterwards."""
    before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in module.parameters()}
    # A module that joins the texts of a batch in one row says how to do without.
    padded = getattr(module, "padded_batches", nullcontext)
    try:
        for parameter in before:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad(), padded():
            yield
    finally:
        for parameter, (required, gradient) in before.items():
            parameter.requires_grad_(required)
            parameter.grad = gradient
