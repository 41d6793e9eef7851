from __future__ import annotations

import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lr_dist.errors import ConfigurationError
from lr_dist.tasks.task import Task, make_split
from lr_dist.tasks.token_cache import FlatRows, cache_folder, load_entry
from lr_dist.tasks.tokens import tokenize_task, tokenizer_fingerprint

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "one", "two", "red", "blue", "fish"]


class CountingTokenizer(PreTrainedTokenizerFast):
    calls = 0

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


def tokenizer_of(words=WORDS, **settings):
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    defaults = {"pad_token": "[PAD]", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    return CountingTokenizer(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", **(defaults | settings)
    )


@pytest.fixture
def task(make_task):
    return make_task([("one fish", 0), ("two red fish", 1), ("blue", 0), ("green fish", 1)])


@pytest.fixture
def pair():
    split = make_split(["one fish", "red"], ["two", "blue fish"], [0.25, 4.5], "regression")
    return Task("pair", "regression", (), ("pearson",), split, split, split)


def ids(split):
    return [split[row]["input_ids"].tolist() for row in range(len(split))]


def calls_of(function):
    before = CountingTokenizer.calls
    function()
    return CountingTokenizer.calls - before


def test_tokens_lengths_and_labels(task, tmp_path):
    found = tokenize_task(task, tokenizer_of(), 16, tmp_path)
    assert ids(found.train) == [[1, 4, 8, 2], [1, 5, 6, 8, 2], [1, 7, 2], [1, 3, 8, 2]]
    assert found.train.lengths.tolist() == [4, 5, 3, 4]
    assert found.train.labels.tolist() == [0, 1, 0, 1]
    assert found.train.labels.dtype == torch.int64
    assert found.pad_token_id == 0


def test_a_pair_carries_token_types_and_a_regression_float_labels(pair, tmp_path):
    found = tokenize_task(pair, tokenizer_of(), 16, tmp_path)
    assert ids(found.dev) == [[1, 4, 8, 2, 5, 2], [1, 6, 2, 7, 8, 2]]
    assert found.dev[0]["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    assert found.dev.labels.tolist() == [0.25, 4.5]
    assert found.dev.labels.dtype == torch.float32


def test_no_token_types_where_the_tokenizer_makes_none(pair, tmp_path):
    tokenizer = tokenizer_of(model_input_names=["input_ids", "attention_mask"])
    assert set(tokenize_task(pair, tokenizer, 16, tmp_path).train[0]) == {"input_ids", "label"}


def test_long_inputs_are_cut(task, tmp_path):
    assert ids(tokenize_task(task, tokenizer_of(), 4, tmp_path).train)[1] == [1, 5, 6, 2]


def test_the_second_load_does_not_call_the_tokenizer(task, tmp_path):
    assert calls_of(lambda: tokenize_task(task, tokenizer_of(), 16, tmp_path)) == 3
    again = []
    assert calls_of(lambda: again.append(tokenize_task(task, tokenizer_of(), 16, tmp_path))) == 0
    assert ids(again[0].validation) == [[1, 4, 8, 2], [1, 5, 6, 8, 2], [1, 7, 2], [1, 3, 8, 2]]


def test_another_length_task_or_tokenizer_misses(task, pair, make_task, tmp_path):
    tokenize_task(task, tokenizer_of(), 16, tmp_path)
    other_words = [*WORDS[:-1], "green", "fish"]
    assert calls_of(lambda: tokenize_task(task, tokenizer_of(), 15, tmp_path)) == 3
    assert calls_of(lambda: tokenize_task(pair, tokenizer_of(), 16, tmp_path)) == 3
    assert calls_of(lambda: tokenize_task(task, tokenizer_of(other_words), 16, tmp_path)) == 3
    assert len(list(tmp_path.iterdir())) == 4


def test_what_a_tokenizer_was_called_with_does_not_change_its_fingerprint():
    tokenizer = tokenizer_of()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["one fish", "two"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(tokenizer_of(truncation_side="left")) != before


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "missing", "no meta", "empty folder"])
def test_a_damaged_entry_is_made_again(task, tmp_path, damage):
    tokenize_task(task, tokenizer_of(), 16, tmp_path)
    (entry,) = tmp_path.iterdir()
    tokens = entry / "train.tokens.arrow"
    content = tokens.read_bytes()
    match damage:
        case "truncated":
            tokens.write_bytes(content[: len(content) // 2])
        case "zeroed":
            # The token ids of the first row become padding; the file stays well-formed.
            place = content.index(np.array([1, 4, 8, 2], dtype=np.int32).tobytes())
            tokens.write_bytes(content[:place] + bytes(16) + content[place + 16 :])
        case "missing":
            tokens.unlink()
        case "no meta":
            (entry / "lr-dist.json").unlink()
        case _:
            for path in entry.iterdir():
                path.unlink()
    found = []
    assert calls_of(lambda: found.append(tokenize_task(task, tokenizer_of(), 16, tmp_path))) == 3
    assert ids(found[0].train)[0] == [1, 4, 8, 2]
    assert calls_of(lambda: tokenize_task(task, tokenizer_of(), 16, tmp_path)) == 0
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def test_arrays_from_the_cache_are_mapped_not_copied(task, tmp_path):
    tokenize_task(task, tokenizer_of(), 16, tmp_path)
    (entry,) = tmp_path.iterdir()
    found = load_entry(entry, {"train": 4})
    assert isinstance(found["train"], FlatRows)
    assert not found["train"].features["input_ids"].flags.owndata
    assert not found["train"].features["input_ids"].flags.writeable
    assert load_entry(entry, {"train": 5}) is None


def _tokenize_in_a_process(folder, barrier, results):
    rows = (["one fish", "two red fish"] * 1500, None, [0, 1] * 1500)
    split = make_split(*rows, "classification")
    task = Task("t", "classification", ("n", "y"), ("accuracy",), split, split, split)
    barrier.wait()
    found = tokenize_task(task, tokenizer_of(), 16, folder)
    results.put((len(found.train), int(found.train.rows.features["input_ids"].sum())))


def test_several_processes_may_tokenise_the_same_task_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_tokenize_in_a_process, args=(tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert answers == [(3000, 1500 * (1 + 4 + 8 + 2) + 1500 * (1 + 5 + 6 + 8 + 2))] * 3
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_killed_processes_go_after_a_day(task, tmp_path):
    for name, age in (("tokens-a.tmp-old", 2 * 86_400), ("tokens-b.tmp-new", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    tokenize_task(task, tokenizer_of(), 16, tmp_path)
    assert [path.name for path in tmp_path.glob("*.tmp-*")] == ["tokens-b.tmp-new"]


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LR_DIST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert cache_folder("/elsewhere").as_posix() == "/elsewhere"
    monkeypatch.delenv("LR_DIST_CACHE")
    assert cache_folder().parts[-2:] == (".cache", "lr-dist")


def test_a_cache_that_cannot_be_written_names_the_variable(task, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="set LR_DIST_CACHE"):
        tokenize_task(task, tokenizer_of(), 16, tmp_path / "file" / "cache")


@pytest.mark.parametrize("length", [2, 513, 8.0, True])
def test_a_length_that_does_not_fit_is_refused(task, tmp_path, length):
    with pytest.raises(ConfigurationError, match=f"max_length must be a whole number from 3 to 512, not {length}"):
        tokenize_task(task, tokenizer_of(model_max_length=512), length, tmp_path)


def test_a_tokenizer_without_padding_is_refused(task, tmp_path):
    with pytest.raises(ConfigurationError, match="no padding token"):
        tokenize_task(task, tokenizer_of(pad_token=None), 16, tmp_path)
