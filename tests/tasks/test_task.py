from __future__ import annotations

import subprocess
import sys

import pytest

from lr_dist.errors import ConfigurationError, LRDistError, TaskDataError
from lr_dist.tasks import load_task
from lr_dist.tasks.draw import with_fewer_scored
from lr_dist.tasks.task import Task, column_values, make_split, take_rows

ROWS = [("one fish", 0), ("two fish", 1), ("red fish", 0), ("blue fish", 1)]


def test_a_task_knows_its_head_its_outputs_and_its_number_of_texts(make_task):
    task = make_task(ROWS)
    assert (task.head, task.num_outputs, task.num_texts, task.primary) == ("toy", 2, 1, "accuracy")


def test_a_regression_of_pairs_has_one_output_and_two_texts():
    split = make_split(["a", "b"], ["c", "d"], [0.5, 2.5], "regression")
    task = Task("r", "regression", (), ("pearson",), split, split, split, head="shared")
    assert (task.num_outputs, task.num_texts, task.head) == (1, 2, "shared")


def test_an_empty_text_is_named_with_split_row_and_column(make_task):
    with pytest.raises(TaskDataError, match=r"dev, row 1 \(counted from 0\): text_a is '  ';.*remove or fill"):
        make_task(ROWS, dev=[("fine", 0), ("  ", 1)])


def test_a_missing_text_counts_as_empty(make_task):
    with pytest.raises(TaskDataError, match=r"validation, row 0.*None"):
        make_task(ROWS, validation=[(None, 0), ("x", 1)])


def test_one_class_only_in_train_is_refused(make_task):
    with pytest.raises(TaskDataError, match="train: every label is 'yes'"):
        make_task(ROWS, train=[("a", 1), ("b", 1)])


def test_a_label_of_validation_that_train_lacks_is_named(make_task):
    with pytest.raises(TaskDataError, match=r"validation, row 2.*'maybe' never occurs in train \(no, yes\)"):
        make_task(ROWS, classes=("no", "yes", "maybe"), validation=[("a", 0), ("b", 1), ("c", 2)])


@pytest.mark.parametrize("label", [-1, 2, None])
def test_a_label_that_is_no_class_is_refused(make_task, label):
    with pytest.raises(TaskDataError, match=f"train, row 1.*label is {label}"):
        make_task(ROWS, train=[("a", 0), ("b", label), ("c", 1)])


@pytest.mark.parametrize("label", [float("nan"), float("inf"), None])
def test_a_target_that_is_no_number_is_refused(label):
    good = make_split(["a", "b"], None, [0.5, 2.5], "regression")
    bad = make_split(["a", "b"], None, [0.5, label], "regression")
    with pytest.raises(TaskDataError, match=r"validation, row 1.*finite number"):
        Task("r", "regression", (), ("pearson",), good, good, bad)


def test_splits_with_different_columns_are_refused():
    single = make_split(["a", "b"], None, [0, 1], "classification")
    pair = make_split(["a", "b"], ["c", "d"], [0, 1], "classification")
    with pytest.raises(TaskDataError, match="dev: columns"):
        Task("t", "classification", ("n", "y"), ("accuracy",), single, pair, single)


def test_a_split_without_rows_is_refused(make_task):
    with pytest.raises(TaskDataError, match="dev: there are no rows"):
        make_task(ROWS, dev=[])


def test_a_score_of_the_other_kind_is_refused(make_task):
    with pytest.raises(TaskDataError, match=r"pearson.*accuracy, f1, matthews"):
        make_task(ROWS, metrics=("pearson",))


def test_the_error_is_a_value_error_of_this_library(make_task):
    with pytest.raises(ValueError) as caught:
        make_task(ROWS, dev=[])
    assert isinstance(caught.value, LRDistError)


def test_the_fingerprint_changes_with_any_text_label_class_or_split(make_task):
    changed = [
        make_task(ROWS, train=[("one fish!", 0), *ROWS[1:]]),
        make_task(ROWS, train=[("one fish", 1), *ROWS[1:]]),
        make_task(ROWS, dev=ROWS[:2]),
        make_task(ROWS, validation=ROWS[::-1]),
        make_task(ROWS, classes=("no", "si")),
        # the same letters, another border between the texts
        make_task(ROWS, train=[("one fisht", 0), ("wo fish", 1), *ROWS[2:]]),
    ]
    prints = [task.fingerprint for task in [make_task(ROWS), *changed]]
    assert len(set(prints)) == 7
    assert make_task(ROWS, name="other").fingerprint == prints[0]


def test_the_fingerprint_of_rows_taken_by_index_is_that_of_the_rows(make_task):
    task = make_task(ROWS)
    picked = Task("t", "classification", ("no", "yes"), ("accuracy",), task.train.select([2, 1]), task.dev, task.dev)
    taken = Task("t", "classification", ("no", "yes"), ("accuracy",), take_rows(task.train, [2, 1]), task.dev, task.dev)
    assert column_values(picked.train, "text_a") == ["red fish", "two fish"]
    assert picked.fingerprint == taken.fingerprint != task.fingerprint


def test_the_fingerprint_is_the_same_in_another_process():
    code = "from lr_dist.tasks import load_task; print(load_task('demo-entailment', limit=9).fingerprint)"
    prints = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        )
        prints.add(done.stdout.strip())
    assert len(prints) == 1
    assert len(prints.pop()) == 64


def test_importing_the_tasks_imports_no_heavy_library():
    code = (
        "import sys, lr_dist.tasks, lr_dist.tasks.glue, lr_dist.tasks.registry\n"
        "print([m for m in ('torch', 'datasets', 'transformers', 'pyarrow', 'torchmetrics') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "[]"


def test_fewer_examples_to_score_on_are_the_same_ones_and_said() -> None:
    task = load_task("demo-sentiment")
    few = with_fewer_scored(task, "validation", 40)
    again = with_fewer_scored(load_task("demo-sentiment"), "validation", 40)
    texts = few.validation["text_a"]
    assert list(texts) == list(again.validation["text_a"])
    assert len(texts) == 40
    # A sample, in the order of the whole, not its beginning.
    places = [list(task.validation["text_a"]).index(text) for text in texts]
    assert places == sorted(places)
    assert places[-1] > len(task.validation) // 2
    assert few.train is task.train
    assert few.fingerprint != task.fingerprint
    assert f"scored on 40 of {len(task.validation)} validation examples" in few.note
    assert with_fewer_scored(task, "dev", 10**6) is task
    with pytest.raises(ConfigurationError, match="eval_limit must be"):
        with_fewer_scored(task, "dev", 5)
