"""Studies that were altered by hand or lie on a damaged database: a named error in one line, or a right answer."""

from __future__ import annotations

import copy
import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from studies import config_of, study_of

from lr_dist.cli import main
from lr_dist.cli.dashboard import serve
from lr_dist.cli.search import overview
from lr_dist.errors import InvalidTrialsError, LRDistError, StorageError
from lr_dist.search.combining.sources import from_study
from lr_dist.search.engine.slots import REASON, fill, release_dead
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import drain
from lr_dist.search.page.export import write_csv
from lr_dist.search.page.findings import Findings
from lr_dist.search.page.report import render_report
from lr_dist.search.trials.study import IDENTITY
from lr_dist.search.trials.summary import StudySummary

PLAN = [{"params": {}, "attrs": {}}] * 8
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "x", "[/b]", "flat:lr=1e-4"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["tasks", "p_o", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)

# A case that fails is small as it is; making it smaller takes minutes.
CASES = settings(
    deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True, phases=[Phase.generate]
)
# Drawing a page takes a second.
PAGES = st.sampled_from([False] * 19 + [True])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything in nested lists and mappings."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def altered(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with something else at a place; `...` leaves it out."""
    if not path:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is ... and isinstance(inner, (dict, list)):
        del inner[path[-1]]
    else:
        inner[path[-1]] = None if new is ... else new
    return value


BASE = study_of(config_of(seeds=(0, 1)), 5, pruned=1, failed=1)
ATTRIBUTES = [json.loads(json.dumps(dict(t.user_attrs))) for t in BASE.trials]
SEARCHED = json.loads(json.dumps(BASE.user_attrs[IDENTITY]))


def study_with(identity: Any, attributes: list[Any]) -> optuna.Study:
    study = optuna.create_study(study_name="altered", direction="maximize")
    if identity is not ...:
        study.set_user_attr(IDENTITY, identity)
    for trial, attrs in zip(BASE.trials, attributes, strict=True):
        study.add_trial(
            create_trial(
                state=trial.state,
                params=trial.params,
                distributions=trial.distributions,
                values=trial.values,
                intermediate_values=trial.intermediate_values,
                user_attrs=attrs,
            )
        )
    return study


def read_everything(study: optuna.Study, folder: Path, *, page: bool) -> int:
    """Look at a study in every way; returns how many ways ended with a named error."""
    looks: list[Callable[[], Any]] = [
        lambda: overview(StudySummary.of(study)),
        lambda: write_csv(study, folder / "trials.csv"),
        lambda: from_study(study),
        lambda: Findings.of(study),
        lambda: release_dead(study),
    ]
    if page:
        looks.append(lambda: render_report(study, storage="sqlite:///study.db"))
    refused = []
    for look in looks:
        try:
            look()
        except LRDistError as error:
            refused.append(str(error))
    assert all(0 < len(message) < 2000 for message in refused)
    return len(refused)


def test_a_study_as_it_was_written_is_read_in_every_way(tmp_path: Path) -> None:
    assert read_everything(study_with(SEARCHED, ATTRIBUTES), tmp_path, page=True) == 0


@settings(CASES, max_examples=80)
@given(st.data())
def test_whatever_stands_in_a_trial_s_attributes_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    which = data.draw(st.integers(0, len(ATTRIBUTES) - 1))
    place = data.draw(st.sampled_from(places(ATTRIBUTES[which])[1:]))
    changed = altered(ATTRIBUTES[which], place, data.draw(JSON | st.just(...)))
    attributes = [changed if i == which else attrs for i, attrs in enumerate(ATTRIBUTES)]
    read_everything(study_with(SEARCHED, attributes), tmp_path_factory.getbasetemp(), page=data.draw(PAGES))


@settings(CASES, max_examples=40)
@given(st.data())
def test_whatever_a_study_says_that_it_searches_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from(places(SEARCHED)))
    identity = altered(SEARCHED, place, data.draw(JSON))
    read_everything(study_with(identity, ATTRIBUTES), tmp_path_factory.getbasetemp(), page=data.draw(PAGES))


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("sequences", [{"tasks": ["sst2"]}], "sequences must be a list of task sequences"),
        ("seconds", math.nan, "seconds must be a finite number, not nan"),
        ("distribution", {"family": "none"}, "distribution is invalid"),
        ("label", ["x"], r"label must be text, not \['x'\]"),
        ("value_sd", "small", "value_sd must be a spread for each value"),
    ],
)
def test_the_trial_the_entry_and_its_value_are_named(attribute: str, value: Any, says: str) -> None:
    attributes = [{**attrs, attribute: value} if i == 2 else attrs for i, attrs in enumerate(ATTRIBUTES)]
    with pytest.raises(InvalidTrialsError, match=f"Trial 2 of the study 'altered' was altered or damaged: its {says}"):
        Findings.of(study_with(SEARCHED, attributes))


@pytest.mark.parametrize("slot", ["1", -1, 1.5, None, True, [1]])
def test_a_trial_whose_slot_is_none_is_left_aside_and_its_slot_filled_again(slot: Any) -> None:
    attributes = [{**attrs, "slot": slot} if i == 2 else attrs for i, attrs in enumerate(ATTRIBUTES)]
    study = study_with(SEARCHED, attributes)
    fill(study, PLAN)
    assert sorted(t.user_attrs["slot"] for t in study.trials if t.state == TrialState.WAITING) == [2, 7]


# What each of these does to the tables of Optuna, and what the error says.
DAMAGE = {
    "an attribute that is no JSON": "UPDATE trial_user_attributes SET value_json = '{cut' WHERE key = 'runs'",
    "a study's attribute that is no JSON": "UPDATE study_user_attributes SET value_json = 'None'",
    "a time that is none": "UPDATE trials SET datetime_start = 'yesterday' WHERE number = 1",
    "a state that is none": "UPDATE trials SET state = 'ASLEEP' WHERE number = 1",
    "a value of a kind that is none": "UPDATE trial_values SET value_type = 'NAN'",
    "a value that is a text": "UPDATE trial_values SET value = 'much' WHERE trial_id = 1",
    "a value that is not there": "UPDATE trial_values SET value = NULL WHERE trial_id = 1",
    "no values": "DELETE FROM trial_values WHERE trial_id = 1",
    "a parameter that is a text": "UPDATE trial_params SET param_value = 'large' WHERE trial_id = 1",
    "a distribution that is none": "UPDATE trial_params SET distribution_json = '{}' WHERE trial_id = 1",
    "a direction that is none": "UPDATE study_directions SET direction = 'UP'",
    "a study that is minimised": "UPDATE study_directions SET direction = 'MINIMIZE'",
    "no direction": "DELETE FROM study_directions",
    "no parameters": "DELETE FROM trial_params WHERE trial_id = 1",
    "a table that is missing": "DROP TABLE trial_values",
    "a constraint that is a text": "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES "
    "(1, 'constraints', '\"none\"')",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / "study.db"
    storage = open_storage(f"sqlite:///{file}")
    study_of(config_of(), 4, name="study", storage=storage)
    storage.engine.dispose()  # type: ignore[attr-defined]
    return file.read_bytes()


def every_command(url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What each command that looks at a study says; each must end well or with one named line."""
    where, said = ["--storage", url], {}
    for name, arguments in {
        "status": ["search", "status", *where, "--study", "study"],
        "report": ["search", "report", *where, "--study", "study", "--output-file", str(folder / "report.html")],
        "export": ["search", "export", *where, "--study", "study", "--csv", str(folder / "trials.csv")],
        "combine": ["combine", "study", *where, "--output-file", str(folder / "mine.yaml")],
    }.items():
        status = main(arguments)
        error = capsys.readouterr().err
        assert status in (0, 2)
        assert (status == 0) == (error == "")
        assert len(error.splitlines()) <= 1
        said[name] = error
    try:
        serve(url, "", "127.0.0.1", 0).server_close()
        said["dashboard"] = ""
    except LRDistError as error:
        said["dashboard"] = f"{type(error).__name__}: {error}"
    return said


@pytest.mark.parametrize("command", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_database_is_named_by_every_command(
    command: str, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.db"
    file.write_bytes(whole)
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute(command).rowcount != 0
    said = every_command(f"sqlite:///{file}", tmp_path, capsys)
    for name in ("status", "report", "export", "combine"):
        # The status does not say what is searched.
        if not (name == "status" and "study_user_attributes" in command):
            assert "StorageError: " in said[name] or "InvalidTrialsError: " in said[name], name


@pytest.mark.parametrize("damage", ["cut", "zeros", "noise", "header", "empty"])
def test_a_file_that_is_no_database_any_more_is_named_by_every_command(
    damage: str, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    middle = len(whole) // 2
    file = tmp_path / "study.db"
    file.write_bytes(
        {
            "cut": whole[:middle],
            "zeros": whole[:4096] + bytes(len(whole) - 4096),
            "noise": whole[:4096] + bytes(range(256)) * ((len(whole) - 4096) // 256),
            "header": b"x" * 100 + whole[100:],
            "empty": b"",
        }[damage]
    )
    said = every_command(f"sqlite:///{file}", tmp_path, capsys)
    assert all("Error: " in said[name] for name in ("status", "report", "export", "combine"))


def test_a_search_on_a_damaged_study_is_a_storage_error(whole: bytes, tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.write_bytes(whole)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(DAMAGE["an attribute that is no JSON"])
    study = optuna.load_study(study_name="study", storage=open_storage(f"sqlite:///{file}"))
    with pytest.raises(StorageError, match=r"'study' in sqlite:.* holds a record that Optuna cannot read: .*backup"):
        drain(study, lambda trial: (1.0,), PLAN)


def test_a_failed_trial_without_a_text_as_reason_is_refused() -> None:
    attributes = [{**attrs, REASON: 3} if REASON in attrs else attrs for attrs in ATTRIBUTES]
    with pytest.raises(InvalidTrialsError, match="reason must be text, not 3"):
        StudySummary.of(study_with(SEARCHED, attributes))
