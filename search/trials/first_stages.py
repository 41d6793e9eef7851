"""The first stage of every trial, where its rates are given: learned once for each sequence and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lr_dist.methods import Needs
from lr_dist.rate_plan import RatePlan
from lr_dist.search.trials.config import SearchConfig
from lr_dist.sequence.arm import Arm
from lr_dist.sequence.bench import Bench
from lr_dist.sequence.runner import needs_of
from lr_dist.sequence.stage_key import bench_key, stage_keys
from lr_dist.sequence.stage_store import StageStore

FOLDER = "stages"


def first_stages(
    folder: Path | None,
    config: SearchConfig,
    benches: Sequence[Bench],
    seeds: Sequence[int],
    measured: Needs = Needs(),  # noqa: B008  (frozen)
) -> StageStore | None:
    """A store that keeps the first stages, for `run_sequence`; None if they are not shared.

    The files are named by what their weights depend on, so all workers, studies and starts with the same output folder
    share them. Two workers that begin at the same time can both learn a stage; the result is the same.

    Args:
        folder: the output folder; None to learn the first stage in every trial.
        config: of the study.
        benches: one per sequence.
        seeds: of the runs.
        measured: parts of the model that measures of the runs need.
    """
    first = config.first_rates
    if folder is None or first is None or not config.keep_stages:
        return None
    store = StageStore(folder / FOLDER, needs=measured)
    arm = Arm("first", RatePlan((first,)), config.methods)
    needs = needs_of(arm) | store.needs
    keys = [stage_keys(bench_key(bench, needs), bench, arm, seed)[0] for bench in benches for seed in seeds]
    store.keep_only(key.trained for key in keys)
    return store
