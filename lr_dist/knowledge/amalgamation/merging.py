"""Merging teachers' weights instead of training a student: averaged encoders and task arithmetic (baselines)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lr_dist.checks import check_finite
from lr_dist.errors import ConfigurationError, ModelMismatchError, TeacherError
from lr_dist.knowledge.amalgamation.labels import LabelUnion
from lr_dist.knowledge.amalgamation.scores import score_texts
from lr_dist.knowledge.amalgamation.targets import vkd_targets
from lr_dist.knowledge.amalgamation.teacher import ModelTeacher
from lr_dist.knowledge.amalgamation.texts import Texts
from lr_dist.layers import assign_layers
from lr_dist.tasks.tokens import tokenizer_fingerprint


def average_teachers(teachers: Sequence[ModelTeacher]) -> list[ModelTeacher]:
    """Each teacher with the mean of all teachers' bodies, and its own head.

    Args:
        teachers: of one architecture, with one tokenizer. They are not changed.

    Raises:
        TeacherError: fewer than two.
        ModelMismatchError: other architectures or tokenizers.
    """
    bodies = _bodies(teachers)
    merged = {name: torch.stack([body[name] for body in bodies]).mean(dim=0) for name in bodies[0]}
    return [_with_body(teacher, merged) for teacher in teachers]


def add_task_vectors(
    teachers: Sequence[ModelTeacher], pretrained: nn.Module, *, scale: float = 1.0
) -> list[ModelTeacher]:
    """Each teacher with the body theta_0 + scale * sum_k (theta_k - theta_0), and its own head.

    Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089). With scale = 1 / teachers it is `average_teachers`.

    Args:
        teachers: fine-tuned from one pre-trained model. They are not changed.
        pretrained: that model, as a sequence classifier; its head is not used.
        scale: of the sum.

    Raises:
        TeacherError: fewer than two.
        ModelMismatchError: other architectures or tokenizers.
        ConfigurationError: a scale that is not a finite number of at least 0.
    """
    check_finite("scale", scale, error=ConfigurationError)
    bodies, start = _bodies(teachers), _body(pretrained)
    _check_same(teachers[0].name, bodies[0], "the pre-trained model", start)
    merged = {name: value + scale * sum(body[name] - value for body in bodies) for name, value in start.items()}
    return [_with_body(teacher, merged) for teacher in teachers]


def merged_probabilities(teachers: Sequence[ModelTeacher], texts: Texts, *, batch_size: int = 64) -> Tensor:
    """Probabilities [texts, labels of the union]: the softmax of the teachers' logits side by side."""
    union = LabelUnion.of({f"{k}. {each.name}": each.labels for k, each in enumerate(teachers, start=1)})
    scores = [score_texts(teacher, texts, passes=0, batch_size=batch_size) for teacher in teachers]
    return vkd_targets([each.logits for each in scores], union)


def _bodies(teachers: Sequence[ModelTeacher]) -> list[dict[str, Tensor]]:
    if len(teachers) < 2:
        raise TeacherError(f"Merging needs at least two teachers, not {len(teachers)}.")
    bodies = [_body(teacher.model) for teacher in teachers]
    for teacher, body in zip(teachers[1:], bodies[1:], strict=True):
        _check_same(teachers[0].name, bodies[0], teacher.name, body)
        if tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(teachers[0].tokenizer):
            raise ModelMismatchError(f"{teachers[0].name} and {teacher.name} have different tokenizers.")
    return bodies


def _body(model: nn.Module) -> dict[str, Tensor]:
    group_of = assign_layers(model).group_of
    return {
        name: parameter.detach() for name, parameter in model.named_parameters() if group_of.get(name, "head") != "head"
    }


def _check_same(name: str, body: Mapping[str, Tensor], other: str, theirs: Mapping[str, Tensor]) -> None:
    shapes, others = ({n: tuple(w.shape) for n, w in each.items()} for each in (body, theirs))
    if shapes != others:
        different = sorted(n for n in shapes.keys() | others.keys() if shapes.get(n) != others.get(n))
        raise ModelMismatchError(
            f"{name} and {other} are not of one architecture: {', '.join(different[:4])}. Their weights cannot be "
            "merged; a student can learn from both."
        )


@torch.no_grad()
def _with_body(teacher: ModelTeacher, body: Mapping[str, Tensor]) -> ModelTeacher:
    merged = copy.copy(teacher)
    merged.model = copy.deepcopy(teacher.model)
    for name, parameter in merged.model.named_parameters():
        if name in body:
            parameter.copy_(body[name])
    return merged
