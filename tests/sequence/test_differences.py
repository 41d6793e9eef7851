"""Differences from a control: paired, with the right interval, and only between what may be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from comparison import FLAT, FROZEN

from lr_dist.cli import main
from lr_dist.errors import ConfigurationError, InvalidResultError
from lr_dist.sequence.differences import DIFFERENCES, differences
from lr_dist.sequence.result import ComparisonResult

METRICS = dict.fromkeys((*DIFFERENCES, "backward_transfer", "forward_transfer"), 0.5)


def result_of(real: ComparisonResult, name: str, p_o: dict[str, list[float | None]]) -> ComparisonResult:
    """A result whose runs have these p_o, seed by seed; None diverged."""
    runs = [
        {"arm": label, "seed": seed, "status": "diverged", "reason": "too fast"}
        if score is None
        else {
            **{
                "arm": label,
                "seed": seed,
                "status": "done",
                "matrix": [[0.5, 0.5]] * 3,
                "seconds": 1,
                "train_seconds": 1,
            },
            **{"metrics": {**METRICS, "p_o": score}, "metrics_above_baseline": METRICS},
        }
        for label, scores in p_o.items()
        for seed, score in enumerate(scores)
    ]
    tasks = [{**task, "name": part} for task, part in zip(real.tasks, name.split(">"), strict=True)]
    return replace(real, tasks=tasks, runs=runs)


@pytest.fixture(scope="module")
def real(tiny_comparison) -> ComparisonResult:
    return tiny_comparison[0]


def test_of_one_sequence_seeds_are_paired_and_the_interval_is_students(real):
    (row,) = differences([result_of(real, "a>b", {FLAT: [0.70, 0.50], FROZEN: [0.72, 0.54]})], FLAT)
    found = row.metrics["p_o"]
    assert (row.sequence, row.arm, found.n, row.left_out) == ("a>b", FROZEN, 2, 0)
    assert found.mean == pytest.approx(0.03)
    # sd .0141 / sqrt 2 = .01, times t(.975, 1 degree of freedom) = 12.706; unpaired it would be ten times as wide.
    assert found.half == pytest.approx(0.12706, rel=1e-4)
    assert differences([result_of(real, "a>b", {FLAT: [0.5, 0.7], FROZEN: [0.52, 0.74]})], FLAT, 0.5)[0].metrics[
        "p_o"
    ].half == pytest.approx(0.01)  # t(.75, 1) = 1
    assert row.metrics["p_s"].mean == row.metrics["p_s"].half == 0


def test_of_all_sequences_the_means_count_not_the_seeds(real):
    means = {"a>b": 0.03, "b>a": 0.01, "a>c": 0.02}
    results = [
        result_of(real, name, {FLAT: [0.5, 0.6], FROZEN: [0.5 + m - 0.2, 0.6 + m + 0.2]}) for name, m in means.items()
    ]
    *each, together = differences(results, FLAT)
    assert {row.sequence: pytest.approx(row.metrics["p_o"].mean) for row in each} == means
    assert (together.sequence, together.metrics["p_o"].n) == (None, 3)
    assert together.metrics["p_o"].mean == pytest.approx(0.02)
    # sd .01 / sqrt 3 times t(.975, 2) = 4.3027; the seeds' own spread of .28 does not enter.
    assert together.metrics["p_o"].half == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)


def test_a_diverged_run_takes_its_partner_with_it_and_is_counted(real):
    (row,) = differences([result_of(real, "a>b", {FLAT: [0.5, 0.5, 0.1], FROZEN: [0.6, 0.7, None]})], FLAT)
    assert (row.metrics["p_o"].n, row.left_out) == (2, 1)
    assert row.metrics["p_o"].mean == pytest.approx(0.15)


def test_a_single_seed_has_no_interval(real):
    (row,) = differences([result_of(real, "a>b", {FLAT: [0.5], FROZEN: [0.6]})], FLAT)
    assert row.metrics["p_o"].half is None


def test_what_may_not_be_compared_is_refused(real):
    scores: dict[str, list[float | None]] = {FLAT: [0.5, 0.6], FROZEN: [0.6, 0.7]}
    one, other = result_of(real, "a>b", scores), result_of(real, "b>a", scores)
    with pytest.raises(InvalidResultError, match="Two results are of a>b"):
        differences([one, one], FLAT)
    with pytest.raises(InvalidResultError, match="no arm 'flat:lr=1'; it has flat:lr=1e-3, "):
        differences([one], "flat:lr=1")
    longer = replace(other, config={**other.config, "epochs": 7})
    with pytest.raises(InvalidResultError, match="epochs is 2 in one and 7 in the other"):
        differences([one, longer], FLAT)
    renamed = [{**entry, "fingerprint": "x"} for entry in other.arms]
    with pytest.raises(InvalidResultError, match=r"arm flat:lr=1e-3 is '.*' in one and 'x'"):
        differences([one, replace(other, arms=renamed)], FLAT)
    # An arm that the first result does not have.
    first = replace(one, arms=[entry for entry in one.arms if entry["label"] == FLAT])
    frozen = [{**entry, "fingerprint": "x"} if entry["label"] == FROZEN else entry for entry in other.arms]
    third = replace(result_of(real, "a>c", scores), arms=frozen)
    with pytest.raises(InvalidResultError, match=r"The results of b>a and a>c .* in one and 'x'"):
        differences([first, other, third], FLAT)
    with pytest.raises(InvalidResultError, match="no seed for which both"):
        differences([result_of(real, "a>b", {FLAT: [0.5, None], FROZEN: [None, 0.6]})], FLAT)
    alone = replace(one, arms=[entry for entry in one.arms if entry["label"] == FLAT])
    with pytest.raises(InvalidResultError, match=r"only arm of the results is flat:lr=1e-3"):
        differences([alone], FLAT)
    with pytest.raises(ConfigurationError, match=r"level=95 must lie between 0 and 1"):
        differences([one], FLAT, 95)


def test_the_command_prints_the_differences_of_several_files(real, tmp_path, capsys):
    files = []
    for number, (name, gain) in enumerate({"a>b": 0.03, "b>a": 0.01, "a>c": 0.02}.items()):
        files.append(str(tmp_path / f"{number}.json"))
        result_of(real, name, {FLAT: [0.5, 0.5], FROZEN: [0.499 + gain, 0.501 + gain]}).save(
            tmp_path / f"{number}.json"
        )
    assert main(["report", *files, "--against", FLAT, "--markdown", "true"]) == 0
    text = capsys.readouterr().out
    assert f"| b>a (2 seeds) | `{FROZEN}` | +.010 ± .013 | +.000 ± .000 |" in text
    assert f"| all 3 sequences | `{FROZEN}` | +.020 ± .025 |" in text
    assert "95% confidence interval" in text
    assert main(["report", *files, "--against", FLAT, "--level", "0.5"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "all 3 sequences" in text
    assert "50% confidence interval" in text
    assert main(["report", *files, "--against", "nothing"]) == 2
    assert "InvalidResultError" in capsys.readouterr().err


def test_an_interval_without_0_stands_out(real, tmp_path, capsys):
    result_of(real, "a>b", {FLAT: [0.5, 0.6, 0.7], FROZEN: [0.599, 0.7, 0.801]}).save(tmp_path / "clear.json")
    assert main(["report", str(tmp_path / "clear.json"), "--against", FLAT, "--markdown", "true"]) == 0
    assert "| **+.100 ± .002** | +.000 ± .000 |" in capsys.readouterr().out


def test_several_results_have_a_table_and_a_page_each(tiny_comparison, tmp_path, capsys):
    real, _, _ = tiny_comparison
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        real.save(tmp_path / name / "result.json")
    files = [str(tmp_path / name / "result.json") for name in ("one", "two")]
    assert main(["report", *files]) == 0
    assert capsys.readouterr().out.count(FLAT) >= 2
    assert all((tmp_path / name / "report.html").is_file() for name in ("one", "two"))
    assert main(["report", *files, "--output-file", str(tmp_path / "page.html")]) == 2
    assert "--output-file names one page, but there are 2 results" in capsys.readouterr().err
