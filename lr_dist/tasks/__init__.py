"""Tasks: GLUE, a user's own data, generated demo tasks, and shifts of one task.

Names are imported when they are first used, so that importing this package loads neither torch nor datasets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lr_dist.lazy import lazy_names

if TYPE_CHECKING:
    from lr_dist.tasks.batches import BucketBatchSampler, Collator, eval_loader, train_loader
    from lr_dist.tasks.demo import DEMO_TASKS
    from lr_dist.tasks.glue import GLUE_TASKS, load_glue
    from lr_dist.tasks.registry import load_task, load_tasks, task_names
    from lr_dist.tasks.scores import Scorer, baseline_scores
    from lr_dist.tasks.shifts import cls_encoder, data_shift, embedding_shift
    from lr_dist.tasks.task import Task, check_task
    from lr_dist.tasks.tokens import TokenizedTask, TokenSplit, tokenize_task

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "batches": ("BucketBatchSampler", "Collator", "eval_loader", "train_loader"),
        "demo": ("DEMO_TASKS",),
        "glue": ("GLUE_TASKS", "load_glue"),
        "registry": ("load_task", "load_tasks", "task_names"),
        "scores": ("Scorer", "baseline_scores"),
        "shifts": ("cls_encoder", "data_shift", "embedding_shift"),
        "task": ("Task", "check_task"),
        "tokens": ("TokenSplit", "TokenizedTask", "tokenize_task"),
    },
)

__all__ = [
    "BucketBatchSampler",
    "Collator",
    "DEMO_TASKS",
    "GLUE_TASKS",
    "Scorer",
    "Task",
    "TokenSplit",
    "TokenizedTask",
    "baseline_scores",
    "check_task",
    "cls_encoder",
    "data_shift",
    "embedding_shift",
    "eval_loader",
    "load_glue",
    "load_task",
    "load_tasks",
    "task_names",
    "tokenize_task",
    "train_loader",
]
