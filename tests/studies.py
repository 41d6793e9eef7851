"""Studies with trials as `SequenceObjective` leaves them, without training anything: scores follow from the rates."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from lr_dist.distribution import LRDistribution
from lr_dist.search.engine.slots import REASON, SLOT
from lr_dist.search.space import Space
from lr_dist.search.trials.config import Goal, SearchConfig
from lr_dist.search.trials.objective import Reference, p_o, p_s, value, violation
from lr_dist.search.trials.study import IDENTITY
from lr_dist.sequence.metrics import was_learned

BASELINE, ALONE, FLAT_P_S, EXAMPLES = 0.5, 0.9, 0.8, 200
ENVIRONMENT: dict[str, Any] = {
    "python": "3.11.2",
    "platform": "Linux x86_64",
    "processor": "a processor",
    "cores": 2,
    "usable_cores": 2,
    "threads": 1,
    "accelerator": "none",
    "precision": {
        "asked": "auto",
        "chosen": "32-true",
        "reason": "a bf16 product takes at least 7.2 times as long as fp32 here",
        "ratio": 7.2,
        "device": "cpu",
        "name": "a processor",
        "capability": "AVX2",
    },
    "fused_adamw": True,
    "packed": True,
    "versions": {"lr-dist": "0.1.0", "torch": "2.13.0+cpu"},
}


def config_of(
    mode: str = "relative",
    family: str = "knots",
    sequences: Sequence[Sequence[str]] = (("sst2", "qqp"),),
    **changes: Any,
) -> SearchConfig:
    space = changes.pop("space", None) or Space(family)
    tuples = tuple(tuple(sequence) for sequence in sequences)
    return SearchConfig("no-such-model", tuples, space, Goal(mode), **changes)


def empty_study(config: SearchConfig, name: str = "a study", storage: Any = None) -> Study:
    """A new study with the identity of `config`, in memory unless a storage is given."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=storage, study_name=name, directions=config.directions)
    study.set_user_attr(IDENTITY, config.identity("w" * 64, [["d" * 64] * len(s) for s in config.sequences]))
    return study


def study_of(config: SearchConfig, trials: int, *, pruned: int = 0, failed: int = 0, **options: Any) -> Study:
    """A study of complete trials with random rates, the first three queued flat ones; then pruned and failed ones."""
    study = empty_study(config, **options)
    rng = random.Random(0)
    added = []
    for slot in range(trials):
        flat = (1e-5, 2e-5, 1e-4)[slot] if slot < 3 else None
        params = drawn(config.space, rng, flat)
        attrs = {"label": f"flat {flat:g}"} if flat else {}
        added.append(complete_trial(config, slot, params, learn(config, params, rng), **attrs))
    for slot in range(trials, trials + pruned):
        added.append(ended(config, slot, drawn(config.space, rng, None), TrialState.PRUNED))
    for slot in range(trials + pruned, trials + pruned + failed):
        reason = {REASON: "The loss of sst2 became NaN in epoch 1"}
        added.append(ended(config, slot, drawn(config.space, rng, None), TrialState.FAIL, **reason))
    study.add_trials(added)
    return study


def drawn(space: Space, rng: random.Random, flat: float | None) -> dict[str, float]:
    params = {}
    for name in space.searched:
        low, high = (math.log(bound) for bound in space.bounds(name))
        params[name] = math.exp(rng.uniform(low, high))
    return params if flat is None else space.project(LRDistribution.flat(flat), 12) or params


def learn(config: SearchConfig, params: Mapping[str, float], rng: random.Random) -> list[list[float]]:
    """Final scores for each sequence: more is learned, and more is forgotten, with the head's rate."""
    rates = [value for name, value in params.items() if config.space.kind.bounds(name) is None]
    heat = statistics.fmean(math.log10(rate) for rate in rates) + 6
    learned = 0.4 / (1 + math.exp(-3 * (heat - 1)))
    finals = []
    for sequence in config.sequences:
        first = [BASELINE + learned * (1 - 0.15 * max(heat, 0)) + rng.gauss(0, 0.01) for _ in sequence[:-1]]
        finals.append([*first, BASELINE + learned + rng.gauss(0, 0.01)])
    return finals


def complete_trial(
    config: SearchConfig,
    slot: int,
    params: Mapping[str, float],
    finals: Sequence[Sequence[float]],
    lost: float | None = None,
    **attrs: Any,
) -> FrozenTrial:
    """A complete trial with the given scores after each sequence; every seed after the first is 0.01 better.

    `lost` is what it has lost of the pre-training, if that is measured.
    """
    references = [
        Reference(tuple([BASELINE] * len(f)), alone=tuple([ALONE] * len(f)), flat_p_s=FLAT_P_S) for f in finals
    ]
    runs, by_seed = [], []
    for place, seed in enumerate(config.seeds):
        scores = [[score + 0.01 * place for score in final] for final in finals]
        # What is learned costs some of the pre-training.
        costs = [(row[-1] - BASELINE) / 4 for row in scores]
        each = [value(config.goal, *row) for row in zip(references, scores, costs, strict=True)]
        by_seed.append([statistics.fmean(column) for column in zip(*each, strict=True)])
        runs += [
            {
                "sequence": index,
                "seed": seed,
                "precision": ENVIRONMENT["precision"]["chosen"],
                "matrix": [[BASELINE] * len(row), *([row] * len(row))],
                "final": row,
                "scores": [{"accuracy": score} for score in row],
                "seconds": 10.5,
                "train_seconds": 8.25,
                "tokens": 12345,
            }
            for index, row in enumerate(scores)
        ]
    means = [
        [statistics.fmean(column) for column in zip(*(r["final"] for r in runs if r["sequence"] == i), strict=True)]
        for i in range(len(finals))
    ]
    excess = [violation(config.goal, reference, mean) for reference, mean in zip(references, means, strict=True)]
    constraints = {f"p_s of sequence {i}": x for i, x in enumerate(excess) if x is not None}
    if lost is not None:
        constraints |= {f"nats lost of sequence {i}": lost - config.most_lost for i in range(len(finals))}
    return create_trial(
        params=dict(params),
        distributions=distributions(config.space),
        values=[statistics.fmean(column) for column in zip(*by_seed, strict=True)],
        constraints=constraints or None,
        user_attrs={
            **_begun(config, slot, params, attrs),
            "runs": runs,
            "values_by_seed": by_seed,
            "value_sd": [_sd(column) for column in zip(*by_seed, strict=True)],
            "sequences": [_sequence(config, i, mean, runs) for i, mean in enumerate(means)],
            "seconds": 10.5 * len(runs),
            "worker_peak_memory_mb": 512.0,
            "progress": {"done": 40 * len(runs), "total": 40 * len(runs), "seconds": 10.5 * len(runs)},
        },
    )


def ended(config: SearchConfig, slot: int, params: Mapping[str, float], state: TrialState, **attrs: Any) -> FrozenTrial:
    """A trial that ended without a value."""
    return create_trial(
        state=state,
        params=dict(params),
        distributions=distributions(config.space),
        intermediate_values={1: 0.1} if state == TrialState.PRUNED else None,
        user_attrs=_begun(config, slot, params, attrs),
    )


def distributions(space: Space) -> dict[str, FloatDistribution]:
    return {name: FloatDistribution(*space.bounds(name), log=True) for name in space.searched}


def _begun(config: SearchConfig, slot: int, params: Mapping[str, float], attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        SLOT: slot,
        "owner": {"host": "here", "pid": 1, "started": 1.0},
        "distribution": config.space.distribution(params).to_dict(),
        "environment": ENVIRONMENT,
        **attrs,
    }


def _sequence(
    config: SearchConfig, index: int, mean: Sequence[float], runs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    finals = [run["final"] for run in runs if run["sequence"] == index]
    return {
        "tasks": list(config.sequences[index]),
        "p_o": p_o(mean),
        "p_s": p_s(mean),
        "p_o_sd": _sd([p_o(final) for final in finals]),
        "p_s_sd": _sd([p_s(final) for final in finals]),
        "final": list(mean),
        "baseline": [BASELINE] * len(mean),
        "learned": [was_learned(score, BASELINE, EXAMPLES) for score in mean],
    }


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
