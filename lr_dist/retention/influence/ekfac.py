"""Influence for transformers with EK-FAC, within a stage and through two stages.

Within a stage, after Grosse et al., arXiv 2308.03296, the score of a training example z for a measure f is

    - grad f . (C + damping)^-1 grad l(z)

where C is the EK-FAC approximation of the stage's curvature. Through two stages, after Bao et al., arXiv 2505.05017,
with the second stage seen as the minimum of its loss + (alpha/2) |W' - W|^2 (see `lr_dist.retention.influence.exact`),

    - alpha * grad f(W') . (C_2 + alpha)^-1 (C_1 + damping)^-1 grad l(z; W)

over the linear layers W that both stages have. The signs are those of the exact scores: positive where more of an
example raises f. What is approximated:

- the curvature: Gauss-Newton instead of the Hessian, a block for each layer (so what a head or another layer would do
  in answer to a change is left out), and in each block the eigenbasis of a Kronecker product;
- the weights: only linear layers; embeddings, norms, tied and new heads are taken as constant;
- the training: both stages are taken to be at a minimum. The pull alpha stands for the start from W and the few steps
  of fine-tuning; it is not measured, and scores depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lr_dist.checks import check_finite
from lr_dist.errors import InfluenceError, ModelMismatchError, listed
from lr_dist.retention.influence.factors import Factors, InverseCurvature
from lr_dist.retention.influence.layer_gradients import collected, layer_gradients
from lr_dist.retention.influence.model_stage import ModelStage, to_device
from lr_dist.retention.influence.objectives import Batch

Measure = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class LayerScores:
    """Scores by layer.

    Attributes:
        layers: path of a layer -> its part of the scores [queries, examples].
    """

    layers: Mapping[str, Tensor]

    @property
    def total(self) -> Tensor:
        """Scores [queries, examples]."""
        return torch.stack(list(self.layers.values())).sum(0)


@dataclass(frozen=True)
class Queries:
    """What is asked about: a measure of each row of some batches.

    Attributes:
        batches: of rows; they are few, and their gradients are held in memory.
        measure: (model, batch) -> one number for each row, such as the log-probability of a label.
    """

    batches: Sequence[Batch]
    measure: Measure

    def gradients(self, model: nn.Module, layers: Sequence[str], *, mixed: bool = False) -> dict[str, Tensor]:
        """Layer -> gradients [queries, outputs, inputs (+ 1)].

        Raises:
            InfluenceError: no queries.
        """
        if not self.batches:
            raise InfluenceError("No queries: name at least one text.")
        device = next(model.parameters()).device
        batches = (to_device(batch, device) for batch in self.batches)
        return collected(layer_gradients(model, layers, batches, self.measure, mixed=mixed), layers)


@dataclass(frozen=True)
class MeanQuery(Queries):
    """One query: the mean of the measure over all rows, such as the loss on held-out examples."""

    def gradients(self, model: nn.Module, layers: Sequence[str], *, mixed: bool = False) -> dict[str, Tensor]:
        """Layer -> gradient [1, outputs, inputs (+ 1)]; only the sum over rows is held in memory."""
        total: dict[str, Tensor] = {}
        rows = 0
        for batch in self.batches:
            parts = Queries([batch], self.measure).gradients(model, layers, mixed=mixed)
            rows += len(next(iter(parts.values())))
            total = {name: total.get(name, 0) + part.sum(0, keepdim=True) for name, part in parts.items()}
        if not rows:
            raise InfluenceError("No queries: name at least one text.")
        return {name: part / rows for name, part in total.items()}


def stage_influence(
    stage: ModelStage, inverse: InverseCurvature, queries: Queries, *, mixed: bool = False
) -> LayerScores:
    """Scores of a stage's own examples.

    Args:
        stage: model and candidates.
        inverse: of factors of this stage; they may have been fitted on other rows than the candidates.
        queries: measured on the stage's model.
        mixed: compute the passes in bf16 autocast.

    Raises:
        ModelMismatchError: factors of another model.
    """
    _check_factors(stage, inverse.factors, stage.layers)
    gradients = queries.gradients(stage.model, stage.layers, mixed=mixed)
    back = {name: inverse.apply(name, gradients.pop(name)) for name in stage.layers}
    return _scores(stage, back, mixed=mixed)


def two_stage_influence(
    first: ModelStage,
    second: ModelStage,
    first_inverse: InverseCurvature,
    second_factors: Factors,
    queries: Queries,
    *,
    pull: float,
    mixed: bool = False,
) -> LayerScores:
    """Scores of the first stage's examples for measures of the second stage's model.

    Args:
        first: model and candidates.
        second: the model that went on from it.
        first_inverse: of factors of the first stage.
        second_factors: of the second stage.
        queries: measured on the second stage's model.
        pull: alpha, in units of the second stage's curvature (see `Factors.mean_value`).
        mixed: compute the passes in bf16 autocast.

    Raises:
        ModelMismatchError: models of two architectures, or factors of another model.
        InfluenceError: a pull of 0, with which nothing of the first stage is left.
    """
    check_finite(
        "pull", pull, positive=True, error=InfluenceError, hint="With 0, nothing of the first stage would be left."
    )
    shared = shared_layers(first, second)
    _check_factors(first, first_inverse.factors, shared)
    _check_factors(second, second_factors, shared)
    pulled = InverseCurvature(second_factors, second_factors.constant_damping(pull))
    gradients = queries.gradients(second.model, shared, mixed=mixed)
    back = {name: pull * first_inverse.apply(name, pulled.apply(name, gradients.pop(name))) for name in shared}
    return _scores(first, back, mixed=mixed)


def gradient_products(first: ModelStage, second: ModelStage, queries: Queries, *, mixed: bool = False) -> LayerScores:
    """The same without any curvature, - grad f(W') . grad l(z; W): what influence has to beat."""
    shared = shared_layers(first, second)
    return _scores(first, queries.gradients(second.model, shared, mixed=mixed), mixed=mixed)


def shared_layers(first: ModelStage, second: ModelStage) -> list[str]:
    """Paths of the layers that take part in both stages.

    Raises:
        ModelMismatchError: none, or layers of other shapes.
    """
    shared = [name for name in first.layers if name in second.layers]
    if not shared:
        raise ModelMismatchError(
            f"The two models share no linear layer: the first has {listed(first.layers)}, the second "
            f"{listed(second.layers)}. Give two checkpoints of one model."
        )
    for name in shared:
        ours, theirs = _shape(first.model, name), _shape(second.model, name)
        if ours != theirs:
            raise ModelMismatchError(
                f"{name} is {list(ours)} in the first model and {list(theirs)} in the second: the checkpoints are of "
                "two architectures."
            )
    return shared


def _scores(stage: ModelStage, back: Mapping[str, Tensor], *, mixed: bool) -> LayerScores:
    layers = list(back)
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    flat = {name: value.flatten(1) for name, value in back.items()}
    for batch in layer_gradients(stage.model, layers, stage.batches(), stage.objective.losses, mixed=mixed):
        for name in layers:
            parts[name].append(-(flat[name] @ batch[name]().flatten(1).T).cpu())
    return LayerScores(
        {
            name: torch.cat(each, dim=1).unflatten(1, (stage.examples, stage.repeats)).mean(-1)
            for name, each in parts.items()
        }
    )


def _shape(model: nn.Module, name: str) -> tuple[int, ...]:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return (module.out_features, module.in_features + (module.bias is not None))


def _check_factors(stage: ModelStage, factors: Factors, layers: Sequence[str]) -> None:
    for name in layers:
        found = factors.layers.get(name)
        if found is None or tuple(found.values.shape) != _shape(stage.model, name):
            shape = "none" if found is None else list(found.values.shape)
            raise ModelMismatchError(
                f"The factors for {name} are {shape}, and the layer needs {list(_shape(stage.model, name))}: they were "
                "fitted for another model. Fit them for this one."
            )
