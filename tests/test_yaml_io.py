"""Reading YAML from anyone: what is hostile is refused quickly, and what we write is read back."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lr_dist.errors import InvalidYAMLError, LRDistError
from lr_dist.yaml_io import MAX_BYTES, dump_yaml, load_yaml, parse_yaml

LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1\nlr: 2", "'lr' occurs twice"),
        ("a: {b: 1, b: 2}", "'b' occurs twice"),
        ("!!python/object/apply:os.system ['touch hacked']", "the tag .*os.system.* is not allowed"),
        ("a: !!python/name:os.system", "is not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("a: !mine 1", "is not allowed"),
        ("a: ! 1", "is not allowed"),
        (LAUGHS, "anchors and aliases are not allowed"),
        ("a: &x 1\nb: *x", "anchors and aliases"),
        ("a: *x", "anchors and aliases"),
        ("base: &b {lr: 1}\nflat: {<<: *b}", "anchors and aliases"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
        ("[" * 900_000, "nested deeper than 32"),
        ("- " * 400_000, "nested deeper than 32"),
        ("a: 1\0", "not valid YAML"),
        ("a: 1\n---\nb: 2", "single document"),
        ("1: a", "the key 1 is not a text"),
        ("null: a", "the key None is not a text"),
        ("? [a, b]\n: 1", r"the key \['a', 'b'\] is not a text"),
        ("a: [1", "not valid YAML"),
        ("a:\n\tb: 1", "not valid YAML"),
        ("a: " + "9" * 6000, "cannot be read as YAML"),
        ("a: 1e-400", "'1e-400' is too small for a floating-point number"),
        ('a: "\\UFFFFFFFF"', "cannot be read as YAML"),
        ('a: "\\ud800"', "cannot be read as YAML"),
        ("a: \ud800", "cannot be read as YAML"),
        ("%YAML 99.1\n---\na: 1", "not valid YAML"),
        ("- a\n" * 60_000, "more than 50,000 nodes"),
        ("---\n" * 60_000, "more than 50,000 nodes"),
        ("#" * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
        ("é" * (MAX_BYTES // 2 + 1), "larger than 1,000,000 bytes"),
    ],
)
def test_hostile_yaml_is_refused_within_seconds_and_runs_nothing(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    with pytest.raises(InvalidYAMLError, match=message) as info:
        parse_yaml(text, source="evil.yaml")
    assert time.process_time() - start < 5
    assert str(info.value).startswith("evil.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["!" + "a" * 900_000 + " 1", f"? {'a' * 900_000}\n? {'a' * 900_000}\n", "a: !" + "a" * 900_000 + "!b 1"]
)
def test_a_message_quotes_at_most_a_few_lines(text: str) -> None:
    with pytest.raises(InvalidYAMLError) as info:
        parse_yaml(text, source="x")
    assert len(str(info.value)) < 800


@pytest.mark.parametrize("text", [None, 5, bytearray(b"a: 1"), ["a: 1"]])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(InvalidYAMLError, match="must be YAML text"):
        parse_yaml(text, source="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"\xff\xfea\0:\0", b"a: \xe9", b"\x80"])
def test_bytes_that_are_not_utf_8_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidYAMLError, match=r"bad\.yaml cannot be read as YAML: 'utf-8' codec"):
        parse_yaml(data, source="bad.yaml")


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_yaml(b"\xef\xbb\xbfa: 1", source="x") == {"a": 1}


def test_a_merge_key_is_an_ordinary_key_that_merges_nothing() -> None:
    assert parse_yaml("<<: {lr: 1}\nb: 2", source="x") == {"<<": {"lr": 1}, "b": 2}


def test_a_file_of_100_mb_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.write(b"a: 1\n")
        file.truncate(100_000_000)
    start = time.process_time()
    with pytest.raises(InvalidYAMLError, match=r"huge\.yaml is larger than 1,000,000 bytes"):
        load_yaml(path)
    # Reading and decoding it all takes far longer than one read of 1 MB.
    assert time.process_time() - start < 0.5


def test_a_missing_file_is_a_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2E3", 2000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("-0", 0),
        ("010", 10),
        (".inf", math.inf),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2024-04-01", "2024-04-01"),
        ("yes", "yes"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("=", "="),
        ("1e", "1e"),
        ("'1e-5'", "1e-5"),
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(f"a: {text}", source="x")["a"]
    assert read == value
    assert type(read) is type(value)


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
    st.sampled_from(
        ["1e-5", "08", "1E5", ".5e3", "12:30", "yes", "null", "~", "", "\x85", "\u2028", "\ufeff", "- a", "<<"]
    ),
    st.from_regex(r"[-+.0-9eE_:x]{1,8}", fullmatch=True),
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=10,
)


@settings(max_examples=300)
@given(PLAIN)
def test_what_is_written_is_read_back_with_its_types(data: object) -> None:
    read = parse_yaml(dump_yaml(data), source="x")
    # repr tells 1 from 1.0 and True, and -0.0 from 0.0.
    assert repr(read) == repr(data)


PIECES = [
    *"{}[],:?-&*!|>'\"%@` \n\t#=~\\",
    "a",
    "1",
    "<<",
    "!!",
    "---",
    "...",
    "\n  ",
    "\\U",
    "FFFF",
    "\0",
    "\ufeff",
    "\x85",
]


@settings(max_examples=500)
@given(
    st.one_of(st.binary(max_size=40), st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=24).map("".join))
)
def test_no_input_raises_anything_but_an_error_of_ours(text: str | bytes) -> None:
    with contextlib.suppress(LRDistError):
        parse_yaml(text, source="x")
