"""How far passes with dropout in the top layers only are from those with dropout everywhere, and what they save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lr_dist.errors import ConfigurationError
from lr_dist.knowledge.amalgamation.certainties import certainty
from lr_dist.knowledge.amalgamation.scores import TeacherScores, score_texts
from lr_dist.knowledge.amalgamation.teacher import Teacher
from lr_dist.knowledge.amalgamation.texts import Texts


@dataclass(frozen=True)
class LayerError:
    """One way of computing the passes against dropout everywhere.

    Attributes:
        top_layers: dropout in so many layers; None for everywhere, with another seed: what chance alone brings.
        certainty: mean absolute difference of the certainty.
        bias: mean difference of the certainty (above 0: more certain than with dropout everywhere).
        order: share of the pairs of texts that the certainty puts in the same order.
        seconds: for all texts, the pass without dropout included.
        reference_seconds: of dropout everywhere.
    """

    top_layers: int | None
    certainty: float
    bias: float
    order: float
    seconds: float
    reference_seconds: float


def top_layers_errors(
    teacher: Teacher, texts: Texts, layers: Sequence[int], *, passes: int = 16, seed: int = 0, batch_size: int = 16
) -> list[LayerError]:
    """Measure `top_layers` on texts; the first row is dropout everywhere with another seed.

    Args:
        teacher: a model with dropout.
        texts: some of those that are to be scored.
        layers: values of `top_layers`.
        passes: with dropout on.
        seed: of the reference; the first row has the next one.
        batch_size: texts of one batch.

    Raises:
        ConfigurationError: a number of layers that the model does not have, or no passes.
        DropoutOffError: passes that do not differ.
    """
    if not passes:
        raise ConfigurationError("passes is 0; dropout in some layers can be compared with at least 2 passes.")

    def scores(top_layers: int | None, seed: int) -> TeacherScores:
        return score_texts(teacher, texts, passes=passes, top_layers=top_layers, seed=seed, batch_size=batch_size)

    reference = scores(None, seed)
    expected = _certainty(reference)
    rows = []
    for top_layers in (None, *layers):
        other = scores(top_layers, seed + 1 if top_layers is None else seed)
        measured = _certainty(other)
        rows.append(
            LayerError(
                top_layers,
                (measured - expected).abs().mean().item(),
                (measured - expected).mean().item(),
                _same_order(measured, expected),
                other.seconds,
                reference.seconds,
            )
        )
    return rows


def _certainty(scores: TeacherScores) -> Tensor:
    assert scores.passes is not None
    return certainty(scores.passes.double())


def _same_order(first: Tensor, second: Tensor) -> float:
    signs = [(each[:, None] - each[None, :]).sign() for each in (first, second)]
    above = signs[0].new_ones(signs[0].shape).triu(1).bool()
    return (signs[0] == signs[1])[above].double().mean().item() if len(first) > 1 else 1.0
