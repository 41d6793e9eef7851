"""A trial's record under the names that stored studies have, and no other module that knows those names."""

from __future__ import annotations

import ast
from pathlib import Path

import optuna
import pytest

from lr_dist import LRDistribution
from lr_dist.search.trials.record import NAMES, SequenceScores, TrialRecord, keep

SEARCH = (Path(__file__).parents[2] / "lr_dist" / "search").resolve()
SCORES = SequenceScores(["sst2", "qqp"], 0.75, 0.5, 0.25, None, [0.75, 0.5], [0.5, 0.625], [True, False])
STORED = {
    "environment": {"versions": {"torch": "2.13.0"}, "precision": {"chosen": "bf16-mixed"}},
    "runs": [{"seed": 0, "sequence": 0}],
    "sequences": [
        {
            "tasks": ["sst2", "qqp"],
            "p_o": 0.75,
            "p_s": 0.5,
            "p_o_sd": 0.25,
            "p_s_sd": None,
            "final": [0.75, 0.5],
            "baseline": [0.5, 0.625],
            "learned": [True, False],
        }
    ],
    "value_sd": [None],
    "seconds": 1.5,
}


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


def test_a_record_is_stored_as_it_always_was(study: optuna.Study) -> None:
    trial = study.ask()
    keep(trial, distribution=LRDistribution.flat(1e-5), sequences=[SCORES], value_sd=[None], seconds=1.5)
    keep(trial, environment=STORED["environment"], runs=STORED["runs"])
    stored = study.trials[0].user_attrs
    assert stored == {**STORED, "distribution": LRDistribution.flat(1e-5).to_dict()}
    assert list(stored["sequences"][0]) == list(STORED["sequences"][0])


def test_a_stored_trial_is_read(study: optuna.Study) -> None:
    distribution = LRDistribution.decay(1e-4, 0.9)
    study.enqueue_trial({}, user_attrs={**STORED, "distribution": distribution.to_dict(), "slot": 3, "label": "decay"})
    record = TrialRecord.of(study.trials[0])
    assert (record.slot, record.label, record.is_queued, record.seconds) == (3, "decay", True, 1.5)
    assert record.tried == distribution
    assert record.scores == [SCORES]
    assert record.scores[0].not_learned == ["sst2>qqp: qqp"]
    assert record.precision == "bf16-mixed"


def test_a_trial_that_has_not_begun_has_an_empty_record(study: optuna.Study) -> None:
    record = TrialRecord.of(study.ask())
    assert record == TrialRecord()
    assert (record.tried, record.scores, record.precision, record.is_queued) == (None, [], None, False)


def test_what_others_wrote_beside_the_record_is_left_alone(study: optuna.Study) -> None:
    trial = study.ask()
    trial.set_user_attr("mine", 1)
    keep(trial, seconds=2.0)
    assert TrialRecord.of(study.trials[0]) == TrialRecord(seconds=2.0)
    with pytest.raises(TypeError, match=r"no field 'secs'.*seconds"):
        keep(trial, secs=2.0)
    assert study.trials[0].user_attrs == {"mine": 1, "seconds": 2.0}


def test_only_the_record_the_engine_and_the_check_touch_user_attributes() -> None:
    """The engine has entries of its own (owner, beat, ...); the check must see what an altered trial really holds."""
    found = {
        path.relative_to(SEARCH).as_posix()
        for path in SEARCH.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("user_attrs", "set_user_attr", "set_trial_user_attr")
        and not (isinstance(node.value, ast.Name) and node.value.id == "study")
    }
    assert found == {
        *("engine/slots.py", "engine/worker.py", "trials/record.py", "trials/checked.py", "space/sampler.py"),
    }


def test_the_check_and_the_engine_name_entries_of_the_record() -> None:
    from lr_dist.search.engine import slots
    from lr_dist.search.trials import checked

    assert set(checked._ATTRIBUTES) <= set(NAMES)
    assert {slots.SLOT, slots.LABEL, slots.REASON, slots.ERROR, slots.RUNS} <= set(NAMES)
