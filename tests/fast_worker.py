"""A worker whose trials take a moment: `fast_worker.py URL STUDY TRIALS`. Each finished trial leaves a line in LOG."""

from __future__ import annotations

import os
import random
import sys
import time

import optuna
from optuna.trial import Trial

from lr_dist.search.slots import SLOT
from lr_dist.search.storage import open_storage
from lr_dist.search.worker import drain


def plan_of(trials: int) -> list[dict[str, dict[str, object]]]:
    """The first three slots have fixed rates, the others are sampled."""
    fixed = [{"params": {"lr": 10.0 ** -(i + 3)}, "attrs": {"label": f"flat {i}"}} for i in range(3)]
    return [*fixed, *({"params": {}, "attrs": {}} for _ in range(trials - 3))]


def objective(trial: Trial) -> tuple[float, ...]:
    lr = trial.suggest_float("lr", 1e-7, 1.0, log=True)
    time.sleep(random.uniform(0.01, 0.1))
    trial.set_user_attr("ran", f"{os.getpid()} {trial.user_attrs[SLOT]}")
    return (lr,)


def main() -> None:
    url, name, trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=open_storage(url), study_name=name, direction="maximize", load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(),
    )  # fmt: skip
    drain(study, objective, plan_of(trials), poll_s=0.1)


if __name__ == "__main__":
    main()
