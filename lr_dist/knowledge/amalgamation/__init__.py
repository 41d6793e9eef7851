"""Amalgamation: several teachers into one student that knows all their labels, from unlabelled text alone.

Names are imported when they are first used, so that importing this package does not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lr_dist.lazy import lazy_names

if TYPE_CHECKING:
    from lr_dist.knowledge.amalgamation.certainties import certainty, entropy, margin_weights
    from lr_dist.knowledge.amalgamation.config import AmalgamationConfig, StudentSettings
    from lr_dist.knowledge.amalgamation.dropout import TopLayers, dropout_on
    from lr_dist.knowledge.amalgamation.labels import LabelUnion
    from lr_dist.knowledge.amalgamation.layer_error import top_layers_errors
    from lr_dist.knowledge.amalgamation.load import load_teacher
    from lr_dist.knowledge.amalgamation.merging import add_task_vectors, average_teachers, merged_probabilities
    from lr_dist.knowledge.amalgamation.pipeline import Amalgamated, AmalgamationListener, amalgamate
    from lr_dist.knowledge.amalgamation.scores import TeacherScores, score_texts
    from lr_dist.knowledge.amalgamation.student import TrainedStudent, student_logits, train_student
    from lr_dist.knowledge.amalgamation.targets import (
        Objective,
        divergence,
        hard_targets,
        make_objective,
        soft_targets,
        uhc_loss,
        vkd_targets,
    )
    from lr_dist.knowledge.amalgamation.teacher import FunctionTeacher, ModelTeacher, Teacher
    from lr_dist.knowledge.amalgamation.texts import Texts, tokenise

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "certainties": ("certainty", "entropy", "margin_weights"),
        "config": ("AmalgamationConfig", "StudentSettings"),
        "dropout": ("TopLayers", "dropout_on"),
        "labels": ("LabelUnion",),
        "layer_error": ("top_layers_errors",),
        "learned": ("Learned", "what_was_learned"),
        "load": ("load_teacher",),
        "merging": ("add_task_vectors", "average_teachers", "merged_probabilities"),
        "pipeline": ("Amalgamated", "AmalgamationListener", "amalgamate"),
        "scores": ("TeacherScores", "score_texts"),
        "student": ("TrainedStudent", "student_logits", "train_student"),
        "targets": (
            *("Objective", "divergence", "hard_targets", "make_objective", "soft_targets", "uhc_loss", "vkd_targets"),
        ),
        "teacher": ("FunctionTeacher", "ModelTeacher", "Teacher"),
        "texts": ("Texts", "tokenise"),
    },
)

__all__ = [
    "Amalgamated",
    "AmalgamationConfig",
    "AmalgamationListener",
    "FunctionTeacher",
    "LabelUnion",
    "Learned",
    "ModelTeacher",
    "Objective",
    "StudentSettings",
    "Teacher",
    "TeacherScores",
    "Texts",
    "TopLayers",
    "TrainedStudent",
    "add_task_vectors",
    "amalgamate",
    "average_teachers",
    "certainty",
    "divergence",
    "dropout_on",
    "entropy",
    "hard_targets",
    "load_teacher",
    "make_objective",
    "margin_weights",
    "merged_probabilities",
    "score_texts",
    "soft_targets",
    "student_logits",
    "tokenise",
    "top_layers_errors",
    "train_student",
    "uhc_loss",
    "vkd_targets",
    "what_was_learned",
]
