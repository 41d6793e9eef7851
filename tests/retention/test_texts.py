"""Text files as rows of tokens, and what is said of files that cannot be used."""

from __future__ import annotations

import pytest
from tiny_mlm import sentences, tokenizer

from lr_dist.errors import RetentionTextError
from lr_dist.retention.texts import read_texts, rows_fingerprint, token_rows


def test_lines_are_texts_and_long_ones_are_cut(tmp_path) -> None:
    path = tmp_path / "text.txt"
    long = " ".join(["the old river finds the stone"] * 10)  # 60 words
    path.write_text(f"\n = Title = \n{long}\n\nthe small garden holds a silver letter near .\n")
    texts = read_texts(path)
    assert len(texts) == 3
    rows = token_rows(texts, tokenizer(), max_length=26)
    # 24 ordinary tokens a row; the title and nothing else is too short.
    assert [len(row) for row in rows] == [24, 24, 12, 9]
    assert all(row.ids[0] == 2 and row.ids[-1] == 3 for row in rows)


def test_a_text_ends_only_where_an_editor_ends_a_line(tmp_path) -> None:
    (tmp_path / "text.txt").write_bytes("one\u2028two\x85three\r\nfour\rfive\n".encode())
    assert read_texts(tmp_path / "text.txt") == ["one\u2028two\x85three", "four", "five"]


def test_a_draw_keeps_the_order_and_follows_the_seed() -> None:
    texts = list(dict.fromkeys(sentences(80)))
    every = [row.ids.tolist() for row in token_rows(texts, tokenizer())]
    some = [row.ids.tolist() for row in token_rows(texts, tokenizer(), limit=10, seed=3)]
    places = [every.index(ids) for ids in some]
    assert len(some) == 10
    assert places == sorted(places)
    other = token_rows(texts, tokenizer(), limit=10, seed=4)
    assert rows_fingerprint(other) != rows_fingerprint(token_rows(texts, tokenizer(), limit=10, seed=3))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is empty"), (b" \n\n", "is empty"), (b"\xff\xfe\x00t", "not text in UTF-8"), (None, "cannot be read")],
)
def test_files_without_text_are_refused(tmp_path, content, says: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RetentionTextError, match=says):
        read_texts(path)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "There is no text"),
        (["", "  "], "There is no text"),
        (["the river ."], "The longest text has 3 tokens that can be masked, and 8 are needed"),
        (["zebra zebra zebra zebra zebra zebra zebra zebra zebra"], "knows no token of the text"),
    ],
)
def test_texts_that_cannot_be_masked_are_refused(texts, says: str) -> None:
    with pytest.raises(RetentionTextError, match=says):
        token_rows(texts, tokenizer())


def test_a_length_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(RetentionTextError, match="max_length must be a whole number of at least 10, not 9"):
        token_rows(sentences(2), tokenizer(), max_length=9)
