"""How much of its targets a student has learned: whose labels a text has, and which of these (pure torch).

The two are told apart by the chain rule. With the labels in groups g (those that the same teachers know), Q_g the
probability of a group and q_g the probabilities within it,

    KL(q, s) = KL(Q, S) + sum_g Q_g KL(q_g, s_g).

The first part tells the teachers' texts apart, which is easy where they are of different tasks. A student can have
learned it and nothing else: then its loss is low, and within each teacher's labels it is at chance.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from lr_dist.errors import UndertrainedStudentWarning
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.knowledge.amalgamation.targets import Objective

# Below it, the student has learned next to nothing of a part.
LITTLE = 0.1
# Nats: targets that say less have nothing to learn.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Learned:
    """Shares of what the targets say about texts that were not trained on; 1: all of it, 0: what a constant would.

    A share below 0 is worse than the mean of the targets. None: the targets say nothing of that kind.

    Attributes:
        between: of which teachers' labels a text has.
        within: of which of these labels.
        between_nats, within_nats: what the targets say, in nats a text: their mean divergence from their mean.
    """

    between: float | None
    within: float | None
    between_nats: float
    within_nats: float


def what_was_learned(
    kind: str, objective: Objective, rows: Tensor, outputs: Tensor, union: LabelUnion, *, temperature: float = 1.0
) -> Learned:
    """Compare a student with the mean of the targets, which is the best constant answer.

    Args:
        kind: of the targets, see `make_objective`; those of UHC say nothing about whose labels a text has.
        objective: targets and weights of all texts.
        rows: numbers of texts that were not trained on, [texts].
        outputs: of the student for these, [texts, labels of the union].
        union: the labels.
        temperature: of the softmax of teachers and student.
    """
    targets, weights = objective.targets.double(), objective.weights.double()
    mean = (weights[:, None] * targets).sum(dim=0) / weights.sum()
    weights = weights[rows] / weights[rows].sum()
    student, constant = outputs.double() / temperature, mean.clamp_min(1e-30).log().expand(len(rows), -1)
    if kind == "uhc":
        sizes = [len(labels) for labels in union.teachers]
        parts = zip(targets[rows].split(sizes, dim=-1), constant.split(sizes, dim=-1), strict=True)
        apart = [(target, union.select(k, student), each) for k, (target, each) in enumerate(parts)]
        left = sum(_divergence(target, outputs_in, weights) for target, outputs_in, _ in apart)
        said = sum(_divergence(target, each, weights) for target, _, each in apart)
        return Learned(None, _share(left, said), 0.0, said)
    groups = one_hot(label_groups(union)).double()
    own = [_parts(targets[rows], each, groups, weights) for each in (student, constant)]
    (left_between, left_within), (between, within) = own
    return Learned(_share(left_between, between), _share(left_within, within), between, within)


def warn_if_little(kind: str, learned: Learned, epochs: int) -> None:
    """Say so if a student has learned next to nothing of which labels its texts have.

    Args:
        kind: of the targets.
        learned: by the student.
        epochs: of its training.

    Warns:
        UndertrainedStudentWarning: see `Learned.within`.
    """
    if learned.within is None or learned.within >= LITTLE:
        return
    routing = "" if learned.between is None else f", and {max(learned.between, 0):.0%} of which teacher it is"
    other = ", or take --target vkd or uhc, which say less about the teacher" if kind in ("soft", "hard") else ""
    warnings.warn(
        f"The student has learned {max(learned.within, 0.0):.0%} of what its targets say about the label of a text "
        f"among those of its teacher{routing} (on the held-out texts): within a teacher's labels it is at chance. "
        f"Train longer than {epochs} epochs, with higher rates, or on more texts{other}.",
        UndertrainedStudentWarning,
        stacklevel=3,
    )


def label_groups(union: LabelUnion) -> Tensor:
    """The number of each label's group [labels]: labels that the same teachers know are one group."""
    known = [tuple(label in labels for labels in union.teachers) for label in union.labels]
    number = {each: place for place, each in enumerate(dict.fromkeys(known))}
    return torch.tensor([number[each] for each in known])


def _parts(targets: Tensor, outputs: Tensor, groups: Tensor, weights: Tensor) -> tuple[float, float]:
    """Divergence between the groups and within them, in nats; their sum is that of the labels."""
    whole = _divergence(targets, outputs, weights)
    of_groups = log_softmax(outputs, dim=-1).exp() @ groups
    between = _divergence(targets @ groups, of_groups.clamp_min(1e-300).log(), weights)
    return between, whole - between


def _divergence(targets: Tensor, outputs: Tensor, weights: Tensor) -> float:
    """The weighted mean of KL(targets, softmax(outputs))."""
    cross = -(targets * log_softmax(outputs, dim=-1)).sum(dim=-1)
    return float((weights * (cross - torch.special.entr(targets).sum(dim=-1))).sum())


def _share(left: float, said: float) -> float | None:
    return 1 - left / said if said > _NOTHING else None
