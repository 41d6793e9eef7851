"""Learn a later stage again without some of its examples, from the same weights before it.

The check of what `Tracer` names: without the k examples that did most to the forgetting, the earlier task should be
kept better than without k others, drawn at random.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lr_dist.checks import check_whole
from lr_dist.errors import InfluenceError
from lr_dist.methods import Needs
from lr_dist.sequence.arm import Arm, parse_arms
from lr_dist.sequence.classifier import SequenceClassifier
from lr_dist.sequence.heavy_tail import with_rates_of
from lr_dist.sequence.learn_stage import learn_stage
from lr_dist.sequence.observers import SequenceState
from lr_dist.sequence.runner import new_module, stages_of
from lr_dist.tasks import eval_loader
from lr_dist.tracing.kept_run import KeptRun, objective_of


@dataclass(frozen=True)
class Scores:
    """Of a model after the later stage.

    Attributes:
        p_o: primary score on the earlier task.
        p_s: primary score on the later task.
        loss: mean loss on the earlier task, which is finer than its score.
    """

    p_o: float
    p_s: float
    loss: float


@dataclass(frozen=True)
class Removal:
    """The later stage without the k forgetting-makers, and without k random examples, once for each draw.

    Attributes:
        removed: k.
        training_examples: of the later stage, k included.
        scores: `nothing`, `forgetting-makers` and `random` -> one entry for each draw. A draw decides which examples
            are the random ones, and the order and dropout of all three.
    """

    removed: int
    training_examples: int
    scores: dict[str, list[Scores]]

    def difference(self, name: str) -> tuple[float, float | None]:
        """Mean of forgetting-makers minus random, paired by draw, and its standard error (None for one draw).

        Args:
            name: `p_o`, `p_s` or `loss`.
        """
        pairs = zip(self.scores["forgetting-makers"], self.scores["random"], strict=True)
        each = [getattr(ours, name) - getattr(other, name) for ours, other in pairs]
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
        return statistics.fmean(each), error

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "removed": self.removed,
            "training_examples": self.training_examples,
            "scores": {name: [dict(vars(each)) for each in rows] for name, rows in self.scores.items()},
            "forgetting-makers minus random": {
                name: dict(zip(("mean", "standard_error"), self.difference(name), strict=True))
                for name in ("p_o", "p_s", "loss")
            },
        }


def remove_and_learn(
    run: KeptRun,
    stage: int,
    ranked: Sequence[int],
    count: int,
    draws: int,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> Removal:
    """Learn a stage again, in each draw without its forgetting-makers, without random examples, and whole.

    Args:
        run: with kept weights.
        stage: number of the later stage (from 1).
        ranked: numbers of the stage's candidates, those that did most to the forgetting first. Random examples are
            drawn from them, too.
        count: k.
        draws: how many.
        report: receives a line for each training.

    Raises:
        InfluenceError: too many examples to remove, or an arm with methods.
    """
    check_whole("draws", draws, 1, error=InfluenceError)
    check_removal(run, count, len(ranked))
    everything = len(run.bench.tokens[stage].train)
    scores: dict[str, list[Scores]] = {"nothing": [], "forgetting-makers": [], "random": []}
    for draw in range(draws):
        chosen = np.random.default_rng([draw, stage]).permutation(len(ranked))[:count]
        left_out = {
            "nothing": frozenset[int](),
            "forgetting-makers": frozenset(ranked[:count]),
            "random": frozenset(ranked[int(place)] for place in chosen),
        }
        for name, rows in left_out.items():
            report(f"Learning again, draw {draw + 1} of {draws}: without {name}")
            scores[name].append(learn_without(run, stage, rows, seed=int(run.run["seed"]) + draw)[1])
    return Removal(count, everything, scores)


def check_removal(run: KeptRun, count: int, candidates: int) -> None:
    """Check what can be known before anything is computed.

    Raises:
        InfluenceError: too many examples to remove, or an arm with methods.
    """
    check_whole("remove", count, 1, error=InfluenceError)
    if not count < candidates:
        raise InfluenceError(
            f"{count} of {candidates} candidates cannot be removed: nothing would be left to choose from. Remove "
            "fewer, or raise --candidates."
        )
    if _arm(run).methods:
        raise InfluenceError(
            f"The arm {run.run['arm']} has methods, which would have to learn the earlier stages again: they cannot be "
            "taken up in the middle. Remove examples in a run of an arm without methods."
        )


def learn_without(
    run: KeptRun, stage: int, left_out: Collection[int], *, seed: int
) -> tuple[SequenceClassifier, Scores]:
    """Learn a stage from the kept weights before it, without some of its training examples.

    Args:
        run: with kept weights.
        stage: number of the stage (from 1).
        left_out: numbers of training examples.
        seed: of order and dropout; with the run's own seed and nothing left out, the kept weights come out again.

    Returns:
        The model and its scores.
    """
    bench = run.bench
    view = bench.view(Needs(full_vocabulary=True))
    plan = _arm(run).plan
    tokens = list(view.tokens)
    kept = [row for row in range(len(tokens[stage].train)) if row not in left_out]
    if left_out:
        tokens[stage] = replace(tokens[stage], train=tokens[stage].train.rows_at(kept))
    module = new_module(bench, view)
    module.load_state_dict(run.model(stage - 1).state_dict())
    stages = stages_of(bench, tokens, plan)
    state = SequenceState(bench, view, module, seed, stages)
    learn_stage(state, stages[stage], (), ())
    earlier, later = bench.tasks[stage - 1], bench.tasks[stage]
    return module, Scores(
        p_o=state.test(stage - 1)[earlier.primary], p_s=state.test(stage)[later.primary], loss=_loss(run, module, stage)
    )


def _arm(run: KeptRun) -> Arm:
    """The arm of the run, read again from the comparison's settings."""
    config = run.result.config
    (stored,) = (arm for arm in run.result.arms if arm["label"] == run.run["arm"])
    specs = config.get("arms") or config.get("distributions") or ()
    for arm in parse_arms([with_rates_of(spec, run.bench.backbone) for spec in specs]).values():
        if (arm.label, arm.plan.fingerprint, list(arm.methods)) == tuple(
            stored[key] for key in ("label", "fingerprint", "methods")
        ):
            return arm
    raise InfluenceError(
        f"The rates of the arm {run.run['arm']} are no longer what they were in {run.folder}, so its stages cannot be "
        "learned again. A preset or a file may have changed: run the comparison again."
    )


def _loss(run: KeptRun, module: SequenceClassifier, stage: int) -> float:
    """Mean loss on the split of the earlier task that its score is of."""
    tokens = run.bench.tokens[stage - 1]
    split = getattr(tokens, run.bench.settings.evaluate_on)
    objective = objective_of(tokens.task)
    was_training = module.training
    module.eval()
    with torch.no_grad():
        losses = [objective.losses(module, b) for b in eval_loader(split, 64, tokens.pad_token_id)]
    module.train(was_training)
    return float(torch.cat([each.flatten() for each in losses]).mean())
