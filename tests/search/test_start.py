"""A search from a start: trials learn the later tasks alone, and the start's score is the first task's reference."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from starts import bert_with_head
from tiny_search import PAIR, config_of, sqlite

from lr_dist.errors import ConfigurationError, StudyMismatchError
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.page.report import render_report
from lr_dist.search.trials.config import Goal
from lr_dist.search.trials.references import run_references
from lr_dist.search.trials.session import identity, load_benches
from lr_dist.search.trials.study import open_study
from lr_dist.search.trials.trial import SequenceObjective
from lr_dist.tasks import load_task


@pytest.fixture(scope="module")
def start(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert_with_head(tiny_model, load_task(PAIR[0]), tmp_path_factory.mktemp("start"))


def test_only_the_later_task_is_learned_and_pruned(start: str, tiny_model: str, tmp_path: Path) -> None:
    config = config_of(tiny_model, start=start, goal=Goal(reference_rates=(1e-3, 1e-4)), epochs=2)
    storage = open_storage(sqlite(tmp_path))
    benches = load_benches(config)
    references = run_references(storage, config, benches)
    assert references is not None
    names = {name.split("/")[1]: name for name in _names(storage)}
    # The start has one score, whatever the rate; the second task alone is tuned.
    assert len(_trials(storage, names[PAIR[0]])) == 1
    assert len(_trials(storage, names[PAIR[1]])) == 2
    study = open_study(storage, "study", config, identity(config, benches))
    assert study.pruner._max_resource == 2
    drain(study, SequenceObjective(config, benches, references), [{"params": {"lr": 1e-3}, "attrs": {"label": "flat"}}])
    (trial,) = study.trials
    (one,) = trial.user_attrs["runs"]
    assert references[0].alone is not None
    assert one["matrix"][1][0] == references[0].alone[0]
    # A step for every epoch of the task that is trained.
    assert list(trial.intermediate_values) == [1, 2]
    page = render_report(study, storage=sqlite(tmp_path))
    assert f"{start}, which has learned {PAIR[0]}" in page
    assert f"lr-dist compare --start {start} --tasks" in page


def test_a_start_with_another_head_is_another_study(start: str, tiny_model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    storage = open_storage(sqlite(tmp_path))
    moved = tmp_path / "moved"
    shutil.copytree(start, moved)

    def opened(**changes: Any) -> Any:
        config = config_of(tiny_model, **changes)
        return open_study(storage, "study", config, identity(config, load_benches(config)))

    opened(start=start)
    opened(start=str(moved))
    weights = load_file(moved / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudyMismatchError, match="head of the start"):
        opened(start=str(moved))
    with pytest.raises(StudyMismatchError):
        opened()


def test_sequences_begin_with_the_task_of_the_start(start: str, tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match="begin with different ones"):
        config_of(tiny_model, start=start, sequences=(PAIR, PAIR[::-1]))


def test_a_method_that_must_see_the_training_is_refused(start: str, tiny_model: str) -> None:
    with pytest.raises(ConfigurationError, match="while it is trained"):
        load_benches(config_of(tiny_model, start=start, method="si:strength=1"))


def _names(storage: Any) -> list[str]:
    import optuna

    return optuna.get_all_study_names(storage)


def _trials(storage: Any, name: str) -> list[Any]:
    import optuna

    return optuna.load_study(study_name=name, storage=storage).trials
