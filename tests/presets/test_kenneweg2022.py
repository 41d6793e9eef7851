"""The shipped presets against the authors' published trials (arXiv 2404.01317)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lr_dist import load_preset
from lr_dist.distribution import GROUPED_KEYS
from lr_dist.errors import InvalidTrialsError, UnreadableFileError
from lr_dist.presets.registry import SHIPPED
from lr_dist.search.combining.combine import Combination
from lr_dist.search.combining.kenneweg2022 import (
    PAIRS,
    PublishedTrial,
    combine_rows,
    every_row,
    main,
    read_trials,
    task_shift,
    task_shift_without_flat,
    without_flat,
)

DATA = Path(os.environ.get("LR_DIST_DATA") or Path(__file__).parents[2] / "../shared/data")
TRIALS = DATA / "kenneweg2022" / "trials.csv"
needs_trials = pytest.mark.skipif(
    not TRIALS.is_file(), reason=f"the authors' trials are not at {TRIALS}; set LR_DIST_DATA to the data folder"
)

# Rates x 1e-6, three digits: embeddings, g1 to g8, head; and how many trials.
TABLE: list[tuple[Callable[[PublishedTrial], bool], int, str]] = [
    (every_row, 159, "3.3 4.37 0.922 1.92 2.85 2.14 3.26 3.7 3.18 11.2"),
    (without_flat, 151, "2.62 2.76 0.489 0.872 1.47 1.12 2.73 2.4 2.14 7.43"),
    (task_shift, 117, "2.1 3.29 1.05 0.991 2.4 1.59 3.47 4.2 1.77 7.94"),
    (task_shift_without_flat, 111, "1.5 2.46 0.714 0.587 1.84 1.05 3.37 3.54 1.44 6.84"),
]


def three_digits(rates: dict[str, float]) -> str:
    return " ".join(f"{rates[key] * 1e6:.3g}" for key in GROUPED_KEYS)


@pytest.mark.data
@needs_trials
@pytest.mark.parametrize(("keep", "trials", "expected"), TABLE)
def test_the_combination_of_the_published_trials_gives_the_known_profiles(
    keep: Callable[[PublishedTrial], bool], trials: int, expected: str
) -> None:
    combination: Combination = combine_rows(read_trials(TRIALS), keep)
    assert three_digits(combination.rates) == expected
    assert sum(combination.trials.values()) == trials


@pytest.mark.data
@needs_trials
def test_the_command_writes_the_shipped_files_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--trials", str(TRIALS), "--output", str(tmp_path / "new")])
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert len(written) == 4
    assert written == {path.name: path.read_bytes() for path in SHIPPED.glob("kenneweg2022*.yaml")}
    assert capsys.readouterr().out.count(".yaml: ") == 4


def test_the_shipped_rates_are_the_first_and_the_last_row_of_the_table() -> None:
    for name, row in (("kenneweg2022", 0), ("kenneweg2022-taskshift", 3)):
        assert three_digits(dict(load_preset(name).values)) == TABLE[row][2]
        relative = dict(load_preset(f"{name}-relative").values)
        assert three_digits({key: value * 1e-5 for key, value in relative.items()}) == TABLE[row][2]


HEADER = "pair_first,pair_second,acc_first_after,acc_second,is_flat,detected_setting," + ",".join(
    f"lr_{key}" for key in GROUPED_KEYS
)


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([HEADER, *rows]))
    return path


def test_a_small_file_is_combined_by_p_o_plus_p_s(tmp_path: Path) -> None:
    # The second row is better only in the sum of both scores; the third belongs to another setting.
    rows = []
    for pair in PAIRS:
        first, second = pair.split(">")
        rows.append(f"{first},{second},0.9,0.1,0,taskshift," + ",".join(["1e-6"] * 10))
        rows.append(f"{first},{second},0.6,0.6,1,taskshift," + ",".join(["1e-4"] * 10))
        rows.append(f"{first},{second},1.0,1.0,0,datashift," + ",".join(["1e-3"] * 10))
    loaded = read_trials(write(tmp_path / "t.csv", *rows))
    # Weights 1 and 1/1.8: log10 rate = (-4 - 6/1.8) / (1 + 1/1.8).
    expected = 10 ** ((-4 - 6 / 1.8) / (1 + 1 / 1.8))
    assert combine_rows(loaded, task_shift).rates["g3"] == pytest.approx(expected, rel=1e-12)
    assert combine_rows(loaded, task_shift_without_flat).rates["g3"] == pytest.approx(1e-6, rel=1e-12)


def test_a_trials_file_that_cannot_be_used_raises_and_names_file_and_line(tmp_path: Path) -> None:
    ones = ",".join(["1e-6"] * 10)
    with pytest.raises(UnreadableFileError, match=r"none\.csv cannot be read"):
        read_trials(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidTrialsError, match=r"other\.csv has no column 'detected_setting'; it has a, b"):
        read_trials(tmp_path / "other.csv")
    with pytest.raises(InvalidTrialsError, match=r"t\.csv, line 3: could not convert string to float: 'x'"):
        read_trials(write(tmp_path / "t.csv", f"a,b,1,1,0,taskshift,{ones}", f"a,b,x,1,0,taskshift,{ones}"))
    with pytest.raises(InvalidTrialsError, match=r"line 2: .*'maybe'"):
        read_trials(write(tmp_path / "t.csv", f"a,b,1,1,maybe,taskshift,{ones}"))
    with pytest.raises(InvalidTrialsError, match="line 2"):
        read_trials(write(tmp_path / "t.csv", "a,b,1,1,0,taskshift,1e-6"))
    (tmp_path / "latin.csv").write_bytes(b"a,b\n\xe9,1\n")
    with pytest.raises(InvalidTrialsError, match="not a CSV file in UTF-8"):
        read_trials(tmp_path / "latin.csv")
