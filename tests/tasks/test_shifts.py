from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from lr_dist.errors import TaskDataError
from lr_dist.tasks.shifts import cls_encoder, data_shift, embedding_shift, two_means
from lr_dist.tasks.task import Task, column_values, make_split

ROWS = [("a", 0), ("bb", 1), ("cccc", 0), ("ddddd", 1)]


def texts(split):
    return column_values(split, "text_a")


def test_a_data_shift_splits_at_trains_median_length(make_task):
    task = make_task(ROWS, dev=[("abc", 0), ("abcd", 1)], validation=[("1", 0), ("22", 0), ("333", 1), ("55555", 1)])
    short, long = data_shift(task)
    assert (texts(short.train), texts(long.train)) == (["a", "bb"], ["cccc", "ddddd"])
    # The median of train is 3; a median fitted on validation would be 2.5.
    assert (texts(short.validation), texts(long.validation)) == (["1", "22", "333"], ["55555"])
    assert (texts(short.dev), texts(long.dev)) == (["abc"], ["abcd"])


def test_both_halves_share_the_head_and_keep_the_description(make_task):
    short, long = data_shift(make_task(ROWS, metrics=("matthews", "accuracy")))
    assert (short.name, long.name) == ("toy@short", "toy@long")
    assert short.head == long.head == "toy"
    assert short.classes == long.classes == ("no", "yes")
    assert short.metrics == ("matthews", "accuracy")
    assert "up to and above 3 characters" in short.note


def test_labels_stay_with_their_texts(make_task):
    label_of = dict(ROWS)
    for half in data_shift(make_task(ROWS)):
        for text, label in zip(texts(half.train), column_values(half.train, "label"), strict=True):
            assert label_of[text] == label


def test_the_length_of_a_pair_is_that_of_both_texts():
    split = make_split(["a", "a", "aaaa", "aa"], ["b", "bbbbb", "b", "b"], [0.0, 1.0, 2.0, 3.0], "regression")
    short, long = data_shift(Task("p", "regression", (), ("pearson",), split, split, split))
    assert column_values(short.train, "label") == [0.0, 3.0]
    assert column_values(long.train, "label") == [1.0, 2.0]


def test_a_half_with_one_class_is_refused(make_task):
    with pytest.raises(TaskDataError, match=r"'toy' cannot be split by length.*every label is 'no'"):
        data_shift(make_task([("a", 0), ("bb", 0), ("cccc", 1), ("ddddd", 0)]))


def test_a_half_without_rows_in_dev_is_refused(make_task):
    with pytest.raises(TaskDataError, match=r"toy@long.*dev: there are no rows.*dev_size"):
        data_shift(make_task(ROWS, dev=[("a", 0)]))


def test_two_means_finds_two_clouds():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 0.3, (70, 5)), rng.normal(2, 0.3, (30, 5))])
    centres = two_means(points)
    assert sorted(np.round(centres.mean(1), 1)) == [0.0, 2.0]
    assert np.array_equal(centres, two_means(points))


def test_two_means_leaves_a_local_minimum_for_the_better_one():
    # A flat rectangle: split into left and right costs 4, into top and bottom 100.
    points = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])
    for seed in range(20):
        assert sorted(map(tuple, two_means(points, seed=seed))) == [(0.0, 1.0), (10.0, 1.0)]


def by_vowels(texts_a, texts_b):
    return np.array([[sum(letter in "aeiou" for letter in text) * 10.0, len(text)] for text in texts_a])


def test_an_embedding_shift_gathers_what_the_vectors_gather(make_task):
    rows = [("ooo", 0), ("xyz", 1), ("aei", 1), ("qwr", 0), ("zzz", 0)]
    first, second = embedding_shift(make_task(rows, validation=[("uuu", 0), ("ttt", 1)]), by_vowels)
    assert (texts(first.train), texts(second.train)) == (["xyz", "qwr", "zzz"], ["ooo", "aei"])
    assert (texts(first.validation), texts(second.validation)) == (["ttt"], ["uuu"])
    assert (first.name, second.name, first.head, second.head) == ("toy@cluster0", "toy@cluster1", "toy", "toy")


def test_clusters_are_fitted_on_train_only(make_task):
    rows = [("ooo", 0), ("xyz", 1), ("aei", 1), ("qwr", 0), ("zzz", 0)]
    # Ten vowels would be a cluster of their own if validation took part.
    outlier = [("a" * 40, 0), ("uuu", 1), ("ttt", 1)]
    _, second = embedding_shift(make_task(rows, validation=outlier), by_vowels)
    assert texts(second.validation) == ["a" * 40, "uuu"]


def test_texts_that_are_all_alike_cannot_be_clustered(make_task):
    with pytest.raises(TaskDataError, match="cannot be split by 2-means"):
        embedding_shift(make_task(ROWS), lambda texts_a, texts_b: np.ones((len(texts_a), 3)))


def test_an_encoder_that_returns_too_few_rows_is_refused(make_task):
    with pytest.raises(TaskDataError, match=r"\(1, 3\) for 4 rows"):
        embedding_shift(make_task(ROWS), lambda texts_a, texts_b: np.ones((1, 3)))


@pytest.mark.minilm
def test_the_encoder_gives_each_text_its_own_cls_vector_without_dropout(minilm_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config).train()
    inputs = ["a rather long sentence about fish", "fish", "two fish", "blue"]
    seconds = ["yes", "no", "certainly not today", "maybe"]
    vectors = cls_encoder(model, tokenizer, max_length=32, batch_size=3)(inputs, seconds)
    assert vectors.shape == (4, 16)
    assert model.training
    model.eval()
    for row in range(4):
        alone = model(**tokenizer(inputs[row], seconds[row], return_tensors="pt")).last_hidden_state[0, 0]
        np.testing.assert_allclose(vectors[row], alone.detach().numpy(), atol=1e-5)
