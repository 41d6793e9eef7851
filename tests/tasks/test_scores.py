from __future__ import annotations

import math

import pytest
import torch

from lr_dist.tasks.scores import Scorer, baseline_scores
from lr_dist.tasks.task import Task, make_split

ROWS = [("a", 0), ("b", 1)]
# labels 1 1 1 0 0 0 0 0, answers 1 1 0 1 0 0 0 0: TP 2, FN 1, FP 1, TN 4
LABELS = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])
ANSWERS = [1, 1, 0, 1, 0, 0, 0, 0]


def logits(answers, classes=2):
    return torch.nn.functional.one_hot(torch.tensor(answers), classes).float() * 3 - 1


def regression(labels=(0.0, 1.0)):
    split = make_split([f"t{i}" for i in range(len(labels))], None, list(labels), "regression")
    return Task("r", "regression", (), ("pearson", "spearman"), split, split, split)


def scores_of(task, outputs, labels):
    scorer = Scorer(task)
    scorer.update(outputs, labels)
    return scorer.compute()


def test_accuracy_f1_and_matthews_by_hand(make_task):
    task = make_task(ROWS, metrics=("matthews", "accuracy", "f1"))
    scores = scores_of(task, logits(ANSWERS), LABELS)
    assert scores["accuracy"] == pytest.approx(6 / 8)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["matthews"] == pytest.approx((2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5))


def test_the_primary_score_comes_first(make_task):
    task = make_task(ROWS, metrics=("matthews", "accuracy"))
    assert Scorer(task).primary == "matthews"
    assert list(scores_of(task, logits(ANSWERS), LABELS)) == ["matthews", "accuracy"]


def test_batches_score_as_one(make_task):
    task = make_task(ROWS, metrics=("matthews", "accuracy", "f1"))
    scorer = Scorer(task)
    for start in (0, 3, 6):
        scorer.update(logits(ANSWERS[start : start + 3]), LABELS[start : start + 3])
    assert scorer.compute() == scores_of(task, logits(ANSWERS), LABELS)


def test_f1_of_three_classes_is_their_mean(make_task):
    task = make_task([("a", 0), ("b", 1), ("c", 2)], classes=("x", "y", "z"), metrics=("f1",))
    # class 0: TP 1 FP 1 FN 1 -> 1/2; class 1: TP 1 FP 1 -> 2/3; class 2: TP 1 FN 1 -> 2/3
    scores = scores_of(task, logits([0, 1, 1, 2, 0], 3), torch.tensor([0, 0, 1, 2, 2]))
    assert scores["f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)


def test_pearson_and_spearman_by_hand():
    # x = 0 1 2 3, y = 0 1 4 9: Pearson 15 / sqrt(5 * 49); the ranks agree.
    task = regression()
    scores = scores_of(task, torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0.0, 1.0, 4.0, 9.0]))
    assert scores["pearson"] == pytest.approx(15 / math.sqrt(5 * 49), abs=1e-9)
    assert scores["spearman"] == pytest.approx(1.0, abs=1e-6)
    # one pair of neighbours swapped: 1 - 6 * 2 / (4 * 15)
    swapped = scores_of(task, torch.tensor([[1.0], [0.0], [2.0], [3.0]]), torch.tensor([0.0, 1.0, 4.0, 9.0]))
    assert swapped["spearman"] == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(
    ("answers", "labels"),
    [([1, 1, 1, 1], [0, 1, 1, 0]), ([0, 1, 0, 1], [1, 1, 1, 1]), ([1, 1, 1, 1], [1, 1, 1, 1])],
)
def test_matthews_of_one_class_is_exactly_zero(make_task, answers, labels):
    task = make_task(ROWS, metrics=("matthews",))
    assert scores_of(task, logits(answers), torch.tensor(labels)) == {"matthews": 0.0}


@pytest.mark.parametrize("answers", [[2.7, 2.7, 2.7], [float("nan"), 1.0, 2.0], [float("inf"), 1.0, 2.0]])
def test_an_undefined_correlation_is_zero_and_warns_nobody(answers, recwarn):
    outputs = torch.tensor(answers)[:, None]
    scores = scores_of(regression(), outputs, torch.tensor([1.0, 2.0, 3.0]))
    assert scores == {"pearson": 0.0, "spearman": 0.0}
    assert not recwarn.list


def test_f1_without_the_class_is_zero(make_task):
    task = make_task(ROWS, metrics=("f1",))
    assert scores_of(task, logits([0, 0]), torch.tensor([0, 0])) == {"f1": 0.0}


def test_half_precision_outputs_score_as_their_argmax(make_task):
    task = make_task(ROWS, metrics=("accuracy",))
    assert scores_of(task, logits(ANSWERS).bfloat16(), LABELS) == {"accuracy": 0.75}


def test_outputs_of_another_shape_are_refused(make_task):
    with pytest.raises(ValueError, match=r"shape \(2, 3\).*needs \(2, 2\)"):
        Scorer(make_task(ROWS)).update(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_nothing_to_score_is_an_error(make_task):
    with pytest.raises(ValueError, match="call update first"):
        Scorer(make_task(ROWS)).compute()


def test_the_baseline_answers_trains_majority_not_validations(make_task):
    train = [("a", 1), ("b", 1), ("c", 0)]
    validation = [("d", 0), ("e", 0), ("f", 0), ("g", 1)]
    task = make_task(train, metrics=("accuracy", "f1", "matthews"), validation=validation)
    scores = baseline_scores(task)
    assert scores["accuracy"] == pytest.approx(1 / 4)
    assert scores["f1"] == pytest.approx(2 / 5)
    assert scores["matthews"] == 0.0
    assert baseline_scores(task, "train")["accuracy"] == pytest.approx(2 / 3)


def test_the_baseline_of_a_regression_correlates_with_nothing():
    assert baseline_scores(regression((0.1, 0.2, 0.7))) == {"pearson": 0.0, "spearman": 0.0}
