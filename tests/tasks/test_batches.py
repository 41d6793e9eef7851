from __future__ import annotations

import numpy as np
import pytest
import torch

from lr_dist.errors import ConfigurationError
from lr_dist.tasks.batches import BucketBatchSampler, Collator, eval_loader, train_loader
from lr_dist.tasks.token_cache import FlatRows
from lr_dist.tasks.tokens import TokenSplit

LENGTHS = np.random.default_rng(0).integers(3, 60, 1003)


def split_of(lengths, types=False):
    """Row i holds the token i + 1, as often as it is long; its label is i."""
    rows = [np.full(length, index + 1, dtype=np.int32) for index, length in enumerate(lengths)]
    features = {"input_ids": np.concatenate(rows)}
    if types:
        features["token_type_ids"] = np.ones(sum(lengths), dtype=np.int8)
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    return TokenSplit(FlatRows(features, offsets), torch.arange(len(lengths)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_is_in_one_batch_an_epoch(shuffle):
    sampler = BucketBatchSampler(LENGTHS, 16, seed=1, shuffle=shuffle)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(1003))
    assert len(batches) == len(sampler) == 63
    assert sorted({len(batch) for batch in batches}) == [11, 16]


def test_the_order_depends_on_seed_and_epoch_only():
    one, two = BucketBatchSampler(LENGTHS, 16, seed=1), BucketBatchSampler(LENGTHS, 16, seed=1)
    list(two)
    two.set_epoch(0)
    assert list(one) == list(two)
    assert one.epoch_batches(3) == two.epoch_batches(3)
    assert one.epoch_batches(3) != one.epoch_batches(4)
    assert one.epoch_batches(3) != BucketBatchSampler(LENGTHS, 16, seed=2).epoch_batches(3)


def test_each_iteration_begins_the_next_epoch():
    sampler = BucketBatchSampler(LENGTHS, 16)
    assert [list(sampler), list(sampler)] == [sampler.epoch_batches(0), sampler.epoch_batches(1)]


def test_rows_change_their_company_between_epochs_even_in_a_small_set():
    sampler = BucketBatchSampler(LENGTHS[:200], 16)
    first, second = ({frozenset(batch) for batch in sampler.epoch_batches(epoch)} for epoch in (0, 1))
    assert not first & second


def test_buckets_save_most_of_the_padding():
    def padded(batches):
        return sum(len(batch) * LENGTHS[batch].max() for batch in batches) / LENGTHS.sum()

    shuffled = np.random.default_rng(1).permutation(1003)
    at_random = padded([shuffled[start : start + 16] for start in range(0, 1003, 16)])
    assert at_random > 1.7
    assert padded(BucketBatchSampler(LENGTHS, 16)) < 1.15


def test_batches_do_not_come_sorted_by_length():
    means = [LENGTHS[batch].mean() for batch in BucketBatchSampler(LENGTHS, 16)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.4


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_a_batch_size_below_one_is_refused(size):
    with pytest.raises(ConfigurationError, match=f"batch_size must be a whole number of at least 1, not {size}"):
        BucketBatchSampler(LENGTHS, size)


def test_a_batch_is_padded_to_its_longest_row():
    split = split_of([2, 4, 1], types=True)
    batch = Collator(pad_token_id=9)(split.__getitems__([0, 2]))
    assert batch["input_ids"].tolist() == [[1, 1], [3, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["token_type_ids"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [0, 2]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_token_types_are_only_given_where_the_tokenizer_made_them():
    assert "token_type_ids" not in Collator(0)(split_of([2, 4]).__getitems__([0, 1]))


def test_a_row_keeps_its_tokens_and_its_label_through_the_loader():
    split = split_of(LENGTHS.tolist())
    seen = []
    for batch in train_loader(split, 16, seed=0, pad_token_id=0):
        for row, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            assert set(row[mask == 1].tolist()) == {label.item() + 1}
            assert mask.sum() == LENGTHS[label]
            assert row[mask == 0].sum() == 0
            seen.append(label.item())
    assert sorted(seen) == list(range(1003))


def test_evaluation_goes_from_long_to_short_and_never_changes():
    split = split_of(LENGTHS.tolist())
    loader = eval_loader(split, 100, pad_token_id=0)
    first, second = ([batch["labels"].tolist() for batch in loader] for _ in range(2))
    assert first == second
    lengths = LENGTHS[[row for batch in first for row in batch]]
    assert (np.diff(lengths) <= 0).all()


def test_lightning_sets_the_epoch():
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loader = train_loader(split_of([3, 4, 5]), 2, seed=0, pad_token_id=0)
    _set_sampler_epoch(loader, 7)
    assert loader.batch_sampler.epoch == 7


def test_rows_outside_a_split_are_refused():
    split = split_of([2, 3])
    assert split[-1]["input_ids"].tolist() == [2, 2, 2]
    with pytest.raises(IndexError, match="row 2 of a split of 2"):
        split[2]
