from __future__ import annotations

from collections import Counter

import pytest

from lr_dist.errors import ConfigurationError, TaskDataError, UnknownTaskError
from lr_dist.tasks.draw import dev_rows, draw_order, draw_task
from lr_dist.tasks.registry import load_task, load_tasks, split_shift, task_names
from lr_dist.tasks.task import RawTask, column_values, make_split, text_keys


def raw_task(labels, texts=None, classes=("no", "yes")):
    texts = texts or [f"text {index}" for index in range(len(labels))]
    train = make_split(texts, None, labels, "classification")
    validation = make_split(["v1", "v2"], None, [0, 1], "classification")
    return RawTask("toy", "classification", classes, ("accuracy",), train, validation)


def texts(split):
    return column_values(split, "text_a")


def draw(raw, limit=None, dev_size=None, seed=0):
    return draw_task(raw, limit=limit, dev_size=dev_size, seed=seed)


def test_all_glue_and_demo_tasks_have_names():
    assert len(task_names()) == 12
    assert {"sst2", "stsb", "demo-sentiment"} <= set(task_names())


def test_dev_is_a_tenth_of_train_and_at_most_a_thousand():
    assert [dev_rows(rows, None) for rows in (5, 100, 101, 9_999, 67_349)] == [1, 10, 11, 1000, 1000]
    assert dev_rows(200, 0.25) == 50
    assert dev_rows(200, 7) == 7


@pytest.mark.parametrize("size", [0, -3, 200, 1.5, 1.0, True])
def test_a_dev_size_that_leaves_nothing_is_refused(size):
    with pytest.raises(ConfigurationError, match=f"dev_size must be a whole number from 1 to 199 .*, not {size}"):
        dev_rows(200, size)


def test_train_and_dev_are_disjoint_and_together_everything():
    task = draw(raw_task([0, 1] * 50), dev_size=20)
    assert len(task.dev) == 20
    assert sorted(texts(task.train) + texts(task.dev)) == sorted(f"text {index}" for index in range(100))


def test_rows_of_train_that_repeat_a_dev_text_are_dropped():
    repeated = [f"text {index % 20}" for index in range(100)]
    task = draw(raw_task([0, 1] * 50, repeated), dev_size=10)
    assert not set(text_keys(task.train)) & set(text_keys(task.dev))
    dev_texts = set(texts(task.dev))
    assert len(task.train) == sum(text not in dev_texts for text in repeated)


def test_dev_depends_neither_on_limit_nor_on_the_seed():
    raw = raw_task([0, 1] * 100)
    first, other = draw(raw, limit=10, seed=1), draw(raw, limit=50, seed=2)
    assert texts(first.dev) == texts(other.dev)


def test_dev_stays_the_same_over_versions():
    # A recorded draw: a change of the generator would change every published figure.
    assert draw_order(10, "dev") == [7, 4, 1, 0, 2, 3, 6, 8, 9, 5]


def test_limit_draws_by_its_seed():
    raw = raw_task([0, 1] * 100)
    assert texts(draw(raw, limit=20, seed=3).train) == texts(draw(raw, limit=20, seed=3).train)
    assert texts(draw(raw, limit=20, seed=3).train) != texts(draw(raw, limit=20, seed=4).train)


def test_a_smaller_limit_draws_part_of_a_larger_one():
    raw = raw_task([0, 1] * 100)
    assert set(texts(draw(raw, limit=20).train)) < set(texts(draw(raw, limit=60).train))


@pytest.mark.parametrize("seed", range(8))
def test_limit_keeps_every_class(seed):
    labels = [0] * 170 + [1] * 27 + [2] * 3
    raw = raw_task(labels, classes=("a", "b", "c"))
    task = draw(raw, limit=4, dev_size=1, seed=seed)
    assert len(task.train) == 4
    assert set(column_values(task.train, "label")) == {0, 1, 2}
    # each text still has its own label
    for text, label in zip(texts(task.train), column_values(task.train, "label"), strict=True):
        assert labels[int(text.split()[1])] == label


def test_a_limit_below_the_number_of_classes_is_refused():
    raw = raw_task([0, 1, 2] * 30, classes=("a", "b", "c"))
    with pytest.raises(ConfigurationError, match="limit is 2, but train has 3 classes"):
        draw(raw, limit=2)


@pytest.mark.parametrize("limit", [0, -1, True, 2.5])
def test_a_limit_that_is_no_number_of_rows_is_refused(limit):
    with pytest.raises(ConfigurationError, match=f"limit must be a whole number of at least 2, not {limit}"):
        draw(raw_task([0, 1] * 20), limit=limit)


def test_a_limit_above_all_rows_keeps_all():
    assert len(draw(raw_task([0, 1] * 20), limit=1000).train) == 36


def test_train_that_only_repeats_dev_is_refused():
    with pytest.raises(TaskDataError, match="no other row is left"):
        draw(raw_task([0, 1] * 5, ["same"] * 10), dev_size=2)


def test_an_unknown_name_lists_what_exists_and_suggests_the_nearest():
    with pytest.raises(UnknownTaskError, match=r"'sts-b'.*Did you mean stsb.*cola.*demo-sentiment.*my=PATH"):
        load_task("sts-b")
    with pytest.raises(UnknownTaskError, match="Did you mean demo-sentiment"):
        load_task("demo-sentimant")


def test_load_task_refuses_a_shift():
    with pytest.raises(ConfigurationError, match="two tasks"):
        load_task("demo-sentiment@length")


def test_an_unknown_shift_is_refused():
    with pytest.raises(UnknownTaskError, match=r"'width'.*length, embedding"):
        load_tasks(["sst2@width"])


def test_a_path_may_hold_an_at_sign_and_still_be_shifted():
    assert split_shift("my=/data/a@b") == ("my=/data/a@b", None)
    assert split_shift("my=/data/a@b@length") == ("my=/data/a@b", "length")
    assert split_shift("sst2@embedding") == ("sst2", "embedding")


def test_a_sequence_expands_shifts_in_its_order():
    tasks = load_tasks(["demo-entailment", "demo-sentiment@length"])
    assert [task.name for task in tasks] == ["demo-entailment", "demo-sentiment@short", "demo-sentiment@long"]
    assert [task.head for task in tasks] == ["demo-entailment", "demo-sentiment", "demo-sentiment"]


def test_an_embedding_shift_needs_an_encoder():
    with pytest.raises(ConfigurationError, match="encode=cls_encoder"):
        load_tasks(["demo-sentiment@embedding"])


def test_a_name_twice_in_a_sequence_is_refused():
    with pytest.raises(ConfigurationError, match="names demo-sentiment more than once"):
        load_tasks(["demo-sentiment", "demo-entailment", "demo-sentiment"])


@pytest.mark.parametrize("specs", [[], "sst2"])
def test_a_sequence_is_a_list_of_at_least_one(specs):
    with pytest.raises(ConfigurationError, match="give a list"):
        load_tasks(specs)


def test_limit_and_dev_size_reach_every_task():
    counts = [
        (len(task.train), len(task.dev))
        for task in load_tasks(["demo-entailment", "demo-sentiment"], limit=30, dev_size=40, seed=5)
    ]
    assert Counter(counts) == {(30, 40): 2}


def test_the_environment_names_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LR_DIST_DATA", str(tmp_path))
    with pytest.raises(TaskDataError, match=f"{tmp_path}.*as data_dir or in LR_DIST_DATA"):
        load_task("rte")
