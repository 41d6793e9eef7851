"""Metrics of an accuracy matrix, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from lr_dist.sequence.metrics import METRICS, above_baseline, sequence_metrics, was_learned
from lr_dist.sequence.summary import summarise

TWO = [[0.50, 0.40], [0.90, 0.45], [0.70, 0.80]]
THREE = [
    [0.50, 0.30, 0.20],
    [0.80, 0.35, 0.22],
    [0.85, 0.90, 0.30],
    [0.60, 0.70, 0.95],
]


def test_two_tasks_give_the_papers_p_o_and_p_s():
    metrics = sequence_metrics(TWO)
    assert metrics["p_o"] == pytest.approx(0.70)
    assert metrics["p_s"] == pytest.approx(0.80)
    assert metrics["average_accuracy"] == pytest.approx(0.75)
    assert metrics["backward_transfer"] == pytest.approx(0.70 - 0.90)
    assert metrics["forgetting"] == pytest.approx(0.90 - 0.70)
    assert metrics["forward_transfer"] == pytest.approx(0.45 - 0.40)


def test_three_tasks_average_over_the_right_entries():
    metrics = sequence_metrics(THREE)
    assert metrics["average_accuracy"] == pytest.approx((0.60 + 0.70 + 0.95) / 3)
    assert metrics["backward_transfer"] == pytest.approx(((0.60 - 0.80) + (0.70 - 0.90)) / 2)
    # Task 1 was best after task 2 (.85), not after itself (.80): forgetting takes the best earlier score.
    assert metrics["forgetting"] == pytest.approx(((0.85 - 0.60) + (0.90 - 0.70)) / 2)
    assert metrics["forward_transfer"] == pytest.approx(((0.35 - 0.30) + (0.30 - 0.20)) / 2)
    assert metrics["p_o"] == pytest.approx((0.60 + 0.70) / 2)
    assert metrics["p_s"] == pytest.approx(0.95)


def test_above_baseline_puts_the_majority_class_at_0_and_a_perfect_score_at_1():
    rescaled = above_baseline([[0.68, 1.0], [0.84, 0.5]], [0.68, 0.5])
    assert rescaled == [[pytest.approx(0.0), pytest.approx(1.0)], [pytest.approx(0.5), pytest.approx(0.0)]]


def test_a_score_at_the_majority_class_is_not_learned():
    # 408 examples at .684: one standard error is .023
    assert not was_learned(0.683, 0.684, 408)
    assert not was_learned(0.72, 0.684, 408)
    assert was_learned(0.74, 0.684, 408)
    # Matthews and Pearson start at 0
    assert not was_learned(0.05, 0.0, 1043)
    assert was_learned(0.10, 0.0, 1043)


def test_a_single_task_has_a_score_and_nothing_that_needs_an_earlier_task():
    metrics = sequence_metrics([[0.50], [0.90]])
    assert metrics == {**dict.fromkeys(METRICS), "p_s": 0.90, "average_accuracy": 0.90}


def test_from_a_start_forgetting_counts_from_its_score_and_there_is_no_forward_transfer():
    start = [[0.90, 0.45], [0.90, 0.45], [0.70, 0.80]]
    metrics = sequence_metrics(start, from_start=True)
    assert metrics["forgetting"] == pytest.approx(0.90 - 0.70)
    assert metrics["forward_transfer"] is None


@pytest.mark.parametrize("matrix", [[[0.5]], [], [[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.5], [0.5, 0.5]]])
def test_a_matrix_of_the_wrong_shape_is_refused(matrix):
    with pytest.raises(ValueError, match="N \\+ 1 rows"):
        sequence_metrics(matrix)


def test_summary_gives_the_sample_standard_deviation():
    summary = summarise([{"p_o": 0.6}, {"p_o": 0.8}])
    assert summary["p_o"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.02**0.5), "n": 2}
    assert summarise([{"p_o": 0.6}])["p_o"]["sd"] == 0.0
    assert summarise([{"p_o": None}, {"p_o": None}]) == {"p_o": None}
