"""`lr-dist combine` on the authors' trials gives the published table, and a preset that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import config_of, study_of

from lr_dist.cli import main
from lr_dist.presets import read_preset
from lr_dist.search.combining.sources import from_csv, from_study
from lr_dist.search.engine.storage import open_storage
from lr_dist.search.page.export import write_csv
from lr_dist.search.space import Space

PAIRS = ["sst2>mrpc", "mrpc>sst2", "qqp>mrpc", "mrpc>qqp"]
# Rates x 1e-6 of embeddings, g1 ... g8, head: all trials and task-shift trials, with and without the flat ones.
TABLE = {
    (): [3.30, 4.37, 0.922, 1.92, 2.85, 2.14, 3.26, 3.70, 3.18, 11.2],
    ("--without-flat",): [2.62, 2.76, 0.489, 0.872, 1.47, 1.12, 2.73, 2.40, 2.14, 7.43],
    ("--setting", "taskshift"): [2.10, 3.29, 1.05, 0.991, 2.40, 1.59, 3.47, 4.20, 1.77, 7.94],
    ("--setting", "taskshift", "--without-flat"): [1.50, 2.46, 0.714, 0.587, 1.84, 1.05, 3.37, 3.54, 1.44, 6.84],
}


@pytest.mark.data
@pytest.mark.parametrize("options", TABLE)
def test_the_authors_trials_give_their_table_to_three_digits(
    options: tuple[str, ...], data_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "ours.yaml"
    trials = str(data_dir / "kenneweg2022" / "trials.csv")
    assert main(["combine", trials, "--pairs", *PAIRS, *options, "--output-file", str(output)]) == 0
    preset = read_preset(output)
    assert preset.name == "ours"
    rates = [rate for _, rate in preset.distribution.values]
    assert [float(f"{rate * 1e6:.3g}") for rate in rates] == TABLE[options]
    assert preset.provenance.tasks == tuple(PAIRS)


def test_an_exported_file_combines_to_what_its_study_does_also_with_fixed_rates(tmp_path: Path) -> None:
    study = study_of(config_of(space=Space("knots", fixed={"head": 1e-3})), 12)
    write_csv(study, tmp_path / "trials.csv")
    (source,) = from_csv(tmp_path / "trials.csv")
    assert source.trials == from_study(study).trials
    assert {trial.rates["head"] for trial in source.trials} == {1e-3}


def test_what_cannot_be_combined_is_a_named_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.csv"
    file.write_text("a,b\n1,2\n")
    assert main(["combine", str(file)]) == 2
    assert "InvalidTrialsError" in capsys.readouterr().err
    assert main(["combine", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["combine", "study", "--storage", f"sqlite:///{tmp_path / 'new.db'}"]) == 2
    assert "new.db' does not exist" in capsys.readouterr().err
    assert not (tmp_path / "new.db").exists()
    open_storage(f"sqlite:///{tmp_path / 'new.db'}")
    assert main(["combine", "study", "--storage", f"sqlite:///{tmp_path / 'new.db'}"]) == 2
    assert "UnknownStudyError" in capsys.readouterr().err
