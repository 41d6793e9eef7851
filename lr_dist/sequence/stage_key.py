"""Keys of stages: two stages with one key give the same weights, bit for bit, on one machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lr_dist.methods import Needs, StageContext
from lr_dist.runs.fused import has_fused_adamw
from lr_dist.runs.machine import training_device
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.environment import describe_environment
from lr_dist.sequence.seeds import derive_seed
from lr_dist.sequence.settings import RUN_VERSION

# Of an environment: where these differ, the same stage is rounded otherwise.
_MACHINE = ("processor", "accelerator", "threads")
_LIBRARIES = ("torch", "lightning", "transformers")

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class StageKeys:
    """The keys of one stage of one run, SHA-256 (hex).

    Attributes:
        start: of the weights before the stage.
        trained: of the weights that its training leaves, before methods act on them at the border.
        end: of the weights after the stage.
    """

    start: str
    trained: str
    end: str


def bench_key(bench: Bench, needs: Needs) -> str:
    """The part of the keys that all arms and seeds of a bench share: model, data, heads, settings and machine.

    Args:
        bench: model, tasks and settings.
        needs: parts of the model that the runs compute with.
    """
    environment = describe_environment()
    return _sha256(
        {
            "version": RUN_VERSION,
            "view": bench.view(needs).fingerprint,
            "tasks": [task.fingerprint for task in bench.tasks],
            # These compute otherwise; the other needs only keep what does not change the numbers.
            "modules": [needs.all_tokens, needs.plain_modules],
            **({} if bench.start is None else {"start": bench.start.fingerprint}),
            # The heads of all tasks are made before the first stage.
            "heads": [(task.head, task.num_outputs, task.kind) for task in bench.tasks],
            "settings": bench.settings.identity(),
            "fused": has_fused_adamw(training_device()),
            **{name: environment[name] for name in _MACHINE},
            **{name: environment["versions"][name] for name in _LIBRARIES},
        }
    )


def stage_keys(shared: str, bench: Bench, arm: Arm, seed: int) -> tuple[StageKeys, ...]:
    """The keys of all stages of a run.

    A stage's training depends on the weights before it, the rates, and the methods that train in it. What such a method
    knows from earlier stages depends on its settings and the weights at their borders, so the key need not hold it.

    Args:
        shared: what `bench_key` gave.
        bench: model and tasks.
        arm: rates and methods.
        seed: seed of the run.
    """
    methods = arm.build_methods()
    start = _sha256({"bench": shared, "seed": seed})
    keys = []
    for index in range(len(bench.tasks)):
        context = context_of(bench, seed, index)
        rates = arm.plan.stage(index).fingerprint
        training = [str(method) for method in methods if method.trains_in(context)]
        content: dict[str, Any] = {"start": start, "stage": index, "rates": rates, "methods": training}
        if index < bench.first_trained:  # the weights are there already, whatever the arm
            content = {"start": start, "stage": index}
        trained = _sha256(content)
        changing = [str(method) for method in methods if method.changes_weights_in(context)]
        end = _sha256({"trained": trained, "methods": changing}) if changing else trained
        keys.append(StageKeys(start, trained, end))
        start = end
    return tuple(keys)


def context_of(bench: Bench, seed: int, index: int, held_out: Mapping[str, Any] | None = None) -> StageContext:
    """Stage `index` as methods see it."""
    task = bench.tasks[index]
    earlier = tuple(dict.fromkeys(each.head for each in bench.tasks[:index]))
    last = index == len(bench.tasks) - 1
    return StageContext(index, task.name, task.head, derive_seed(seed, "methods"), held_out or {}, earlier, last)


def neighbours_first(runs: Iterable[T], keys: Mapping[T, Sequence[StageKeys]]) -> list[T]:
    """The runs in an order in which those that share stages follow each other; otherwise as given."""
    runs = list(runs)
    first: dict[str, int] = {}
    for number, run in enumerate(runs):
        for stage in keys[run]:
            first.setdefault(stage.trained, number)
    return sorted(runs, key=lambda run: [first[stage.trained] for stage in keys[run]])


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
