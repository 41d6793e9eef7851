"""What a student learns from the scores of its teachers, and the loss that it learns by (pure torch).

MUKA: Li et al. 2021, arXiv 2112.07327. UHC: Vongkulbhisal et al. 2019, arXiv 1904.08439. VKD is what MUKA's authors
call plain distillation from the concatenated logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from lr_dist.checks import check_finite
from lr_dist.errors import ConfigurationError, NonFiniteScoresError, TeacherError
from lr_dist.knowledge.amalgamation.certainties import certainty, margin_weights
from lr_dist.knowledge.amalgamation.config import TARGETS
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.names import one_of

TAU = 0.2


@dataclass(frozen=True)
class Objective:
    """What a student is trained towards.

    Attributes:
        targets: [examples, columns]: probabilities of the union's labels; for UHC, those of every teacher's labels, one
            teacher after the other.
        weights: weight of each example, [examples].
        loss: (outputs of the student [batch, labels of the union], targets [batch, columns]) -> loss of each example
            [batch], without the weight.
    """

    targets: Tensor
    weights: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """The mean weighted loss of a batch.

        Args:
            outputs: of the student, [batch, labels of the union].
            rows: the examples of the batch, [batch].
        """
        targets, weights = self.targets[rows].to(outputs), self.weights[rows].to(outputs)
        return (weights * self.loss(outputs, targets)).mean()


def hard_targets(probabilities: Sequence[Tensor], certainties: Tensor, union: LabelUnion) -> Tensor:
    """The probabilities of the most certain teacher, 0 for the labels that it does not know (MUKA-hard).

    Args:
        probabilities: of each teacher, [examples, its labels].
        certainties: [examples, teachers]. Of equally certain teachers, the first is taken.
        union: the labels.

    Returns:
        [examples, labels of the union].
    """
    padded = _padded(probabilities, union)
    # argmax promises no order among equals; the first of the sorted ones does.
    best = certainties.sort(dim=1, descending=True, stable=True).indices[:, 0]
    return padded[best, torch.arange(padded.shape[1], device=padded.device)]


def soft_targets(
    probabilities: Sequence[Tensor], certainties: Tensor, union: LabelUnion, *, tau: float = TAU
) -> Tensor:
    """The teachers' probabilities, weighted by softmax(certainty / tau) (MUKA-soft).

    A label that several teachers know sums their mass.

    Args:
        probabilities: of each teacher, [examples, its labels].
        certainties: [examples, teachers].
        union: the labels.
        tau: the lower, the more of the weight the most certain teacher has.

    Returns:
        [examples, labels of the union].

    Raises:
        ConfigurationError: tau is not above 0.
    """
    check_finite("tau", tau, positive=True, error=ConfigurationError)
    shares = torch.softmax(certainties / tau, dim=1)
    return torch.einsum("nk,knc->nc", shares, _padded(probabilities, union))


def vkd_targets(logits: Sequence[Tensor], union: LabelUnion, *, temperature: float = 1.0) -> Tensor:
    """The softmax of all teachers' logits side by side; the columns of a shared label are summed.

    Adding a constant to one teacher's logits, which changes nothing in that teacher, changes these targets.

    Args:
        logits: of each teacher, [examples, its labels].
        union: the labels.
        temperature: divides the logits.

    Returns:
        [examples, labels of the union].
    """
    return union.summed(torch.softmax(torch.cat(list(logits), dim=-1) / temperature, dim=-1))


def divergence(outputs: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(targets | softmax(outputs / T)) of each example, [examples], with 0 ln 0 = 0.

    T^2 keeps the size of the gradient where T changes (Hinton et al. 2015, arXiv 1503.02531).
    """
    cross = -(targets * log_softmax(outputs / temperature, dim=-1)).sum(dim=-1)
    return temperature**2 * (cross - torch.special.entr(targets).sum(dim=-1))


def uhc_loss(outputs: Tensor, targets: Tensor, union: LabelUnion, *, temperature: float = 1.0) -> Tensor:
    """The sum over the teachers of KL(teacher | student renormalised within the teacher's labels) (UHC).

    Args:
        outputs: of the student, [examples, labels of the union].
        targets: the teachers' probabilities, one teacher after the other, [examples, labels of all].
        union: the labels.
        temperature: of the student's softmax; the loss is multiplied by its square.

    Returns:
        [examples].
    """
    parts = targets.split([len(labels) for labels in union.teachers], dim=-1)
    each = [divergence(union.select(k, outputs), part, temperature=temperature) for k, part in enumerate(parts)]
    return torch.stack(each).sum(dim=0)


def make_objective(
    kind: str,
    logits: Sequence[Tensor],
    union: LabelUnion,
    *,
    passes: Sequence[Tensor] | None = None,
    tau: float = TAU,
    temperature: float = 1.0,
) -> Objective:
    """The objective of a method.

    Args:
        kind: `soft` or `hard` (MUKA), `vkd` or `uhc`.
        logits: of each teacher, without dropout, [examples, its labels].
        union: the labels.
        passes: of each teacher, the mean softmax over passes with dropout on, [examples, its labels], from which the
            certainty follows. None takes the softmax without dropout.
        tau: see `soft_targets`.
        temperature: of the softmax of teachers and student.

    Raises:
        ConfigurationError: another kind, or a tau or temperature that is not above 0.
        TeacherError: one teacher only, or logits that are not those of the union's teachers.
        NonFiniteScoresError: logits that are NaN or infinite.
    """
    if kind not in TARGETS:
        raise ConfigurationError(f"target must be {one_of(TARGETS, kind)}")
    check_finite("temperature", temperature, positive=True, error=ConfigurationError)
    _check(logits, union)
    soft = [torch.softmax(each / temperature, dim=-1) for each in logits]
    ones = torch.ones(len(logits[0]), dtype=logits[0].dtype)

    def plain(outputs: Tensor, targets: Tensor) -> Tensor:
        return divergence(outputs, targets, temperature=temperature)

    if kind == "vkd":
        return Objective(vkd_targets(logits, union, temperature=temperature), ones, plain)
    if kind == "uhc":
        return Objective(
            torch.cat(soft, dim=-1), ones, lambda outputs, t: uhc_loss(outputs, t, union, temperature=temperature)
        )
    measured = [torch.softmax(each, dim=-1) for each in logits] if passes is None else passes
    certainties = torch.stack([certainty(each) for each in measured], dim=1)
    weights = margin_weights(certainties)
    if kind == "hard":
        return Objective(hard_targets(soft, certainties, union), weights, plain)
    return Objective(soft_targets(soft, certainties, union, tau=tau), weights, plain)


def _padded(probabilities: Sequence[Tensor], union: LabelUnion) -> Tensor:
    return torch.stack([union.padded(k, each) for k, each in enumerate(probabilities)])


def _check(logits: Sequence[Tensor], union: LabelUnion) -> None:
    if len(logits) < 2:
        raise TeacherError(f"Amalgamation needs at least two teachers, not {len(logits)}.")
    shapes = [tuple(each.shape) for each in logits]
    wanted = [(len(logits[0]), len(labels)) for labels in union.teachers]
    if shapes != wanted:
        raise TeacherError(f"The teachers' logits have the shapes {shapes}, and their labels need {wanted}.")
    for number, each in enumerate(logits, start=1):
        if not torch.isfinite(each).all():
            raise NonFiniteScoresError(f"The logits of teacher {number} hold NaN or infinite numbers.")
