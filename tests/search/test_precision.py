"""A study with `auto`: each machine chooses, each trial records it, and studies that mix precisions are named."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import studies
import tiny_search
from optuna.trial import TrialState
from rich.console import Console

from lr_dist.cli.search import overview
from lr_dist.errors import MixedHardwareWarning, StudyMismatchError
from lr_dist.runs import precision
from lr_dist.runs.precision import choose_precision, measure
from lr_dist.search.engine.slots import claim
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.engine.worker import run_trial
from lr_dist.search.page.report import render_report
from lr_dist.search.trials.precision import in_precision_of_study, precisions, warn_of_mixed
from lr_dist.search.trials.session import Search, identity, load_benches
from lr_dist.search.trials.study import IDENTITY, load_study
from lr_dist.search.trials.summary import StudySummary
from lr_dist.search.trials.trial import SequenceObjective
from lr_dist.sequence.settings import SequenceSettings


def study_in(*chosen: str | None) -> Any:
    """A study of complete trials, each in the precision that its machine chose; None for one that does not say."""
    config = studies.config_of()
    study = studies.study_of(config, len(chosen))
    for trial, name in zip(study.get_trials(deepcopy=False), chosen, strict=True):
        choice = {**studies.ENVIRONMENT["precision"], "chosen": name, "ratio": 1 + trial.number}
        # A finished trial's attributes cannot be set by the study, but in its storage in memory.
        trial.user_attrs["environment"] = {**studies.ENVIRONMENT, "precision": choice}
        if name is None:
            del trial.user_attrs["environment"]["precision"]
    return study


def test_a_study_whose_workers_chose_differently_is_named_with_the_counts() -> None:
    study = study_in("bf16-mixed", "32-true", "bf16-mixed", None)
    assert precisions(study.get_trials(deepcopy=False)) == {"bf16-mixed": 2, "32-true": 1}
    with pytest.warns(MixedHardwareWarning, match=r"'a study'.*2 trial\(s\) in bf16-mixed, 1 trial\(s\) in 32-true"):
        warn_of_mixed(study)
    with io.StringIO() as text:
        Console(file=text, width=200).print(overview(StudySummary.of(study)))
        assert "2 trial(s) in bf16-mixed, 1 trial(s) in 32-true" in text.getvalue()
    page = render_report(study, storage="sqlite:///study.db")
    assert "The trials ran in environments with different values of: precision." in page


def test_a_study_in_one_precision_is_not_warned_of_until_a_machine_joins_that_chose_the_other() -> None:
    study = study_in("bf16-mixed", "bf16-mixed", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_mixed(study)
        warn_of_mixed(study, "bf16-mixed")
    # What the probe measured differs from start to start, and is no difference.
    assert "environments with different values of: precision" not in render_report(study, storage="sqlite:///study.db")
    with pytest.warns(MixedHardwareWarning, match=r"2 trial\(s\) in bf16-mixed, this machine chose 32-true"):
        warn_of_mixed(study, "32-true")


def test_a_trial_records_what_was_asked_chosen_and_why_and_the_next_machine_is_warned(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_search.config_of(tiny_model, precision="auto", trials=2)
    search = Search(config, tiny_search.sqlite(tmp_path), "study")
    choice = choose_precision("auto")
    assert search.prepare() == choice
    study = load_study(open_storage(search.storage), "study")
    assert study.user_attrs[IDENTITY]["settings"]["precision"] == "auto"
    trial = claim(study)
    assert trial is not None
    benches = load_benches(config)
    assert identity(config, benches)["settings"]["precision"] == "auto"
    run_trial(study, trial, SequenceObjective(config, benches, [studies.Reference((0.5, 0.5))]))
    done = study.get_trials(states=(TrialState.COMPLETE,))[0]
    assert done.user_attrs["environment"]["precision"] == choice.to_dict()
    assert done.user_attrs["environment"]["fused_adamw"] is True
    assert done.user_attrs["runs"][0]["precision"] == choice.chosen
    # A machine on which the probe says the opposite.
    here = measure()
    monkeypatch.setitem(precision._MEASURED, here.device, replace(here, fast=not here.fast))
    with pytest.warns(MixedHardwareWarning, match=rf"1 trial\(s\) in {choice.chosen}, this machine chose"):
        joined = search.prepare()
    assert (joined.asked, joined.chosen != choice.chosen) == ("auto", True)


@pytest.mark.parametrize("named", ["32-true", "bf16-mixed"])
def test_a_study_that_names_its_precision_is_continued_with_auto_and_keeps_it(named: str, tmp_path: Path) -> None:
    storage = open_storage(tiny_search.sqlite(tmp_path))
    settings = SequenceSettings(evaluate_on="dev", precision=named)
    studies.empty_study(studies.config_of(settings=settings), "study", storage)
    auto = studies.config_of(settings=replace(settings, precision="auto"))
    assert in_precision_of_study(storage, "study", auto).settings == settings
    assert in_precision_of_study(storage, "another", auto) == auto


def test_a_study_with_auto_is_not_continued_with_a_precision(tiny_model: str, tmp_path: Path) -> None:
    config = tiny_search.config_of(tiny_model, precision="auto", trials=1)
    Search(config, tiny_search.sqlite(tmp_path), "study").prepare()
    named = replace(config, settings=replace(config.settings, precision="32-true"))
    with pytest.raises(StudyMismatchError, match=r"'precision': 'auto'.*'precision': '32-true'"):
        Search(named, tiny_search.sqlite(tmp_path), "study").prepare()
