"""Comparisons in which arms share stages: the same numbers for less training, and nothing is left in the folder."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
from comparison import TASKS, Listener
from stage_methods import Halfway, Recall

from lr_dist.methods import METHODS
from lr_dist.sequence.compare import compare
from lr_dist.sequence.compare_config import CompareConfig
from lr_dist.sequence.result import ComparisonResult
from lr_dist.sequence.settings import SequenceSettings

FLAT, OTHER = "flat:lr=1e-3", "flat:lr=2e-3"
ARMS = (FLAT, OTHER, f"{FLAT} + recall", f"{FLAT} + halfway:alpha=0.7", f"{FLAT} + halfway:alpha=0.3")


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Every run collects garbage; what was imported before need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    for method in (Halfway, Recall):
        monkeypatch.setitem(METHODS, method.name, method)


def config_of(model: str, **changes) -> CompareConfig:
    settings = SequenceSettings(epochs=2, batch_size=16, precision="32-true", evaluate_on="dev")
    values = {"tasks": TASKS, "arms": ARMS, "seeds": (0,), "limit": 32, "dev_size": 40, "settings": settings}
    return CompareConfig(model=model, **{**values, **changes})


def numbers(result: ComparisonResult) -> dict[tuple[str, int], object]:
    return {(run["arm"], run["seed"]): (run["matrix"], run["scores"]) for run in result.runs}


def test_arms_share_stages_with_the_same_numbers_and_less_training(tiny_model, tmp_path):
    listener = Listener()
    config = config_of(tiny_model)
    shared = compare(config, tmp_path / "shared", listener=listener, command="test")
    alone = compare(replace(config, keep_stages=False), tmp_path / "alone", listener=Listener(), command="test")
    assert numbers(shared) == numbers(alone)
    assert shared.config == alone.config
    # 2 tasks x 2 epochs x 32 / 16 steps in each of 5 runs, trained or taken over
    assert listener.announced == (5, 0, 40)
    assert listener.steps == 40
    # Two first stages; and three second ones, because a method at the border needs no training of its own.
    assert "5 of 10 stages are trained" in listener.notes[0]
    assert "up to 2 are kept" in listener.notes[0]
    taken = {run["arm"]: run["taken_over"] for run in shared.runs}
    assert taken == {FLAT: [], OTHER: [], ARMS[2]: [0], ARMS[3]: [0, 1], ARMS[4]: [0, 1]}
    for run in shared.runs:
        assert (run["taken_over_seconds"] > 0) == bool(run["taken_over"])
        assert run["train_seconds"] >= run["taken_over_seconds"]
    assert not (tmp_path / "shared" / "stages").exists()
    assert not (tmp_path / "alone" / "stages").exists()
    assert [run["taken_over"] for run in alone.runs] == [[]] * 5


def test_an_arm_that_chooses_on_held_out_examples_shares_the_stages_of_those_that_do_not(tiny_model, tmp_path):
    # Scored on validation, the words of dev are left out unless an arm needs them.
    settings = SequenceSettings(epochs=1, batch_size=16, precision="32-true", evaluate_on="validation")
    auto = f"{FLAT} + interpolate:alpha=auto,evaluations=2"
    config = config_of(tiny_model, arms=(FLAT, auto), settings=settings, dev_size=100)
    shared = compare(config, tmp_path / "shared", listener=Listener(), command="test")
    assert [run["taken_over"] for run in shared.runs] == [[], [0, 1]]
    alone = compare(replace(config, keep_stages=False), tmp_path / "alone", listener=Listener(), command="test")
    assert numbers(shared) == numbers(alone)


def test_only_what_a_later_run_can_use_is_kept_at_any_time(tiny_model, tmp_path):
    class Files(Listener):
        most = 0
        sizes: tuple[int, ...] = ()

        def run_ended(self, run):
            sizes = [path.stat().st_size for path in (tmp_path / "stages").glob("*")]
            self.most = max(self.most, len(sizes))
            self.sizes += tuple(sizes)

    listener = Files()
    compare(config_of(tiny_model), tmp_path, listener=listener, command="test")
    assert listener.most == 2
    told = float(listener.notes[0].split("(about ")[1].split()[0])
    assert sum(sorted(listener.sizes)[-2:]) / 2**20 == pytest.approx(told, abs=0.1)


def test_a_comparison_that_was_stopped_between_stages_goes_on_from_the_kept_ones(tiny_model, tmp_path):
    class Stopped(Exception):
        pass

    class Stop(Listener):
        def progressed(self, progress):
            super().progressed(progress)
            # In the second stage of the first run.
            if progress.phase == "train" and progress.task == TASKS[1]:
                raise Stopped

    config = config_of(tiny_model)
    with pytest.raises(Stopped):
        compare(config, tmp_path, listener=Stop(), command="test")
    kept = list((tmp_path / "stages").iterdir())
    assert len(kept) == 1
    result = compare(config, tmp_path, listener=Listener(), command="test")
    assert next(run for run in result.runs if run["arm"] == FLAT)["taken_over"] == [0]
    assert numbers(result) == numbers(compare(config, tmp_path / "new", listener=Listener(), command="test"))


def test_what_a_stopped_comparison_kept_is_deleted_when_nothing_is_left_to_run(tiny_model, tmp_path):
    config = config_of(tiny_model, arms=(FLAT,))
    compare(config, tmp_path, listener=Listener(), command="test")
    leftover: Path = tmp_path / "stages" / ("0" * 64 + ".safetensors")
    leftover.parent.mkdir()
    leftover.write_bytes(b"")
    idle = Listener()
    compare(config, tmp_path, listener=idle, command="test")
    assert idle.notes == []
    assert not leftover.parent.exists()
