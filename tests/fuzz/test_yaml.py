"""Whatever a YAML file, a preset or the place of one holds: it is read right, or refused with an error of ours."""

from __future__ import annotations

import functools
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from generated import PRESETS, WILD, YAML_PIECES, distributions, mutated, spoiled
from harness import cases, ours
from hypothesis import given
from hypothesis import strategies as st

from lr_dist import LRDistribution
from lr_dist.errors import (
    InvalidDistributionError,
    InvalidRateError,
    InvalidYAMLError,
    LRDistError,
    UnreadableFileError,
    UnwritableFileError,
)
from lr_dist.presets import Preset, get_preset, list_presets, load_preset, read_preset, resolve_distribution
from lr_dist.presets.registry import ENV_FOLDERS, SHIPPED, register_preset, unregister_preset
from lr_dist.yaml_io import dump_yaml, load_yaml, parse_yaml

SHIPPED_TEXTS = [path.read_text(encoding="utf-8") for path in sorted(SHIPPED.glob("*.yaml"))]
DISTRIBUTIONS = distributions(means=1)
# Written files once more, and the flow and block styles that people write by hand.
BY_HAND = [
    "family: flat\nlr: 1e-4\n",
    "{family: decay, lr: 4e-4, factor: 0.7}",
    "family: from_layers\nembeddings: 1e-5\nlayers: [1e-5, 2e-5]\nhead: 1e-3\n",
    "family: linear\nfirst: 1e-6\nlast: 1e-4\nedits:\n- {from: embeddings, to: 0.5, rate: 0}\n",
    "family: geometric_mean\nof:\n- family: flat\n  lr: 1\n- family: flat\n  lr: 4\nweights:\n- 1\n- 1\n",
    "%YAML 1.2\n--- # a comment\n'family': \"flat\"\n? lr\n: 1.0e-4\nrelative: true\n...\n",
]
TEXTS = st.one_of(
    st.sampled_from(BY_HAND),
    DISTRIBUTIONS.map(LRDistribution.to_yaml),
    st.sampled_from(BY_HAND),
    DISTRIBUTIONS.map(LRDistribution.to_yaml),
    PRESETS.map(Preset.to_yaml),
)
NEAR_YAML = st.one_of(
    mutated(TEXTS, YAML_PIECES),
    mutated(TEXTS, YAML_PIECES),
    mutated(TEXTS, YAML_PIECES),
    st.lists(st.sampled_from(YAML_PIECES), max_size=12).map("".join),
    st.text(max_size=40),
)


@st.composite
def near_bytes(draw: st.DrawFn) -> bytes:
    """The bytes of a YAML text, some of them changed; other encodings too."""
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-32", "utf-8-sig", "utf-7"]))
    data = bytearray(draw(TEXTS).encode(encoding))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3)):
        if place < len(data):
            data[place] = byte
    return bytes(data)


@functools.cache
def folder() -> Path:
    """A folder of this process; removed with it."""
    folder.kept = tempfile.TemporaryDirectory(prefix="lr-dist-fuzz-")  # type: ignore[attr-defined]
    return Path(folder.kept.name)  # type: ignore[attr-defined]


def plain(data: Any) -> bool:
    """Whether data holds nothing but what YAML's core schema knows."""
    if isinstance(data, dict):
        return type(data) is dict and all(type(key) is str and plain(value) for key, value in data.items())
    if isinstance(data, list):
        return type(data) is list and all(map(plain, data))
    return data is None or type(data) in (bool, int, float, str)


# Reading -------------------------------------------------------------------------------------------------


@cases(250)
@given(st.one_of(NEAR_YAML, near_bytes()))
def test_yaml_is_refused_or_read_as_plain_data_that_reads_back(text: str | bytes) -> None:
    data = ours(parse_yaml, text, source="x.yaml")
    if not isinstance(data, LRDistError):
        assert plain(data)
        assert repr(parse_yaml(dump_yaml(data), source="again")) == repr(data)


@cases(150)
@given(st.one_of(NEAR_YAML.map(lambda text: text.encode("utf-8", "surrogatepass")), near_bytes()))
def test_a_file_is_refused_or_holds_a_distribution_like_any_other(data: bytes) -> None:
    path = folder() / "x.yaml"
    path.write_bytes(data)
    found = ours(resolve_distribution, str(path))
    if isinstance(found, LRDistError):
        assert str(path) in str(found)
        return
    assert isinstance(found, LRDistribution)
    assert LRDistribution.from_yaml(found.to_yaml()) == found
    rates = ours(found.rates, 12)
    if not isinstance(rates, LRDistError):
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates.values())
    preset = ours(read_preset, path)
    if isinstance(preset, Preset):
        assert preset.distribution == found


@cases(50)
@given(PRESETS)
def test_a_preset_reads_back_from_its_file_and_by_its_name(preset: Preset) -> None:
    place = folder() / "presets"
    place.mkdir(exist_ok=True)
    path = place / f"{preset.name}.yaml"
    path.write_text(preset.to_yaml(), encoding="utf-8")
    try:
        assert read_preset(path) == Preset.from_dict(preset.to_dict()) == preset
        assert load_preset_from(place, preset.name) == preset.distribution
    finally:
        path.unlink()


def load_preset_from(place: Path, name: str) -> Any:
    """`load_preset` with the folder `place` of a user."""
    before = os.environ.get(ENV_FOLDERS)
    os.environ[ENV_FOLDERS] = str(place)
    try:
        return load_preset(name)
    finally:
        del os.environ[ENV_FOLDERS]
        if before is not None:
            os.environ[ENV_FOLDERS] = before


@cases(120)
@given(st.one_of(spoiled(PRESETS.map(Preset.to_dict)), WILD))
def test_no_data_of_a_preset_raises_anything_but_an_error_of_ours(data: Any) -> None:
    preset = ours(Preset.from_dict, data)
    if not isinstance(preset, LRDistError):
        assert isinstance(preset, Preset)
        assert Preset.from_dict(parse_yaml(preset.to_yaml(), source="again")) == preset


@pytest.mark.parametrize("text", SHIPPED_TEXTS)
def test_a_shipped_preset_with_any_one_line_left_out_is_refused_or_read(text: str) -> None:
    lines = text.splitlines(keepends=True)
    for left_out in range(len(lines)):
        changed = "".join(lines[:left_out] + lines[left_out + 1 :])
        ours(lambda changed=changed: Preset.from_dict(parse_yaml(changed, source="x"), source="x"))


# What is asked for ---------------------------------------------------------------------------------------

_NAMES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["kenneweg2022", "Kenneweg2022", "kenneweg", "..", "/", "a" * 5000, "\0", "\ud800"]),
    st.text(max_size=8).map(lambda name: f"{name}.yaml"),
    st.sampled_from(
        ["\0.yaml", "\ud800.yaml", f"{'x' * 300}.yml", f"{'x/' * 3000}x.yaml", "C:\\a.yaml", "/.yaml", ".yml"]
    ),
)


@cases(150)
@given(st.one_of(_NAMES, _NAMES.map(lambda name: Path(name or "x")), WILD))
def test_nothing_that_is_asked_for_raises_anything_but_an_error_of_ours(spec: Any) -> None:
    for look_up in (resolve_distribution, load_preset, read_preset, unregister_preset, register_preset):
        found = ours(look_up, spec)
        assert isinstance(found, (LRDistError, LRDistribution))
        if isinstance(found, LRDistribution):
            assert str(spec).strip() == "kenneweg2022"


@cases(15)
@given(st.dictionaries(_NAMES, near_bytes(), max_size=4))
def test_a_folder_of_broken_files_keeps_nobody_from_the_shipped_presets(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        for name, data in files.items():
            try:
                Path(place, name.replace("/", "_")).write_bytes(data)
            except (OSError, ValueError):
                continue  # no file can have that name
        patch.setenv(ENV_FOLDERS, f"{place}{os.pathsep}{place}-none")
        entries = ours(list_presets)
        assert isinstance(entries, list)
        by_name = {entry.name: entry for entry in entries}
        for path in SHIPPED.glob("*.yaml"):
            assert by_name[path.stem].preset is not None or len([e for e in entries if e.name == path.stem]) > 1
        for entry in entries:
            assert (entry.preset is None) == (entry.problem is not None)
            ours(get_preset, entry.name)


# Files that are none -------------------------------------------------------------------------------------


def unreadable(place: Path) -> Iterator[tuple[str, Path]]:
    """Things where a file is expected, each with what the error has to say."""
    (place / "folder.yaml").mkdir()
    yield "Is a directory", place / "folder.yaml"
    yield "No such file", place / "missing.yaml"
    (place / "dangling.yaml").symlink_to(place / "nowhere")
    yield "No such file", place / "dangling.yaml"
    (place / "loop.yaml").symlink_to(place / "loop.yaml")
    yield "Too many levels", place / "loop.yaml"
    (place / "file").write_text("x")
    yield "Not a directory", place / "file" / "x.yaml"
    yield "File name too long", place / f"{'x' * 300}.yaml"
    yield "null byte", Path("a\0.yaml")
    yield "codec can't encode", Path("\ud800.yaml")


def test_what_is_no_file_is_refused_by_every_reader(tmp_path: Path) -> None:
    for message, path in unreadable(tmp_path):
        for read in (resolve_distribution, lambda path: resolve_distribution(str(path)), read_preset):
            with pytest.raises(UnreadableFileError, match=message):
                read(path)


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("family: flat\nlr: 1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(UnreadableFileError, match="Permission denied"):
        resolve_distribution(path)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"# only a comment\n", b"\xef\xbb\xbf", b"---\n...\n", b"null", b"[]", b"1"]
)
def test_a_file_with_nothing_in_it_is_no_distribution(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_bytes(data)
    with pytest.raises(InvalidDistributionError, match=r"empty\.yaml: A distribution is a mapping"):
        resolve_distribution(tmp_path / "empty.yaml")


def test_a_sparse_file_of_a_gigabyte_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(2**30)
    start = time.process_time()
    for read in (resolve_distribution, read_preset, load_yaml):
        with pytest.raises(InvalidYAMLError, match=r"larger than 1,000,000 bytes"):
            read(path)
    assert time.process_time() - start < 0.5


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
def test_a_device_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidYAMLError, match=r"larger than 1,000,000 bytes"):
        resolve_distribution(Path("/dev/zero"))


def test_saving_where_no_file_can_be_is_an_error_of_ours(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "x.yaml", tmp_path / ("x" * 300), "a\0", "\ud800", 5, None):
        with pytest.raises(UnwritableFileError, match="cannot be written"):
            LRDistribution.flat(1e-4).save(path)  # type: ignore[arg-type]


# What YAML is known for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((text, InvalidRateError) for text in ("1_000", "0x10", "0o17", "12:30", "2024-04-01", "yes", "true", "null")),
        *((text, InvalidRateError) for text in (".nan", ".inf", "-.inf", "1e400", "-1", '"1e-5"', "'1'", "[1]", "{}")),
        *(
            (text, InvalidYAMLError)
            for text in ("1e-400", "0.0e0_0: 1", "9" * 4301, "&a 1", "*a", "!!float 1", "0" * 4301)
        ),
        ("0." + "0" * 400 + "1", InvalidYAMLError),
    ],
)
def test_a_rate_is_a_plain_number_or_refused(value: str, error: type[LRDistError]) -> None:
    with pytest.raises(error):
        LRDistribution.from_yaml(f"family: flat\nlr: {value}\n")


@pytest.mark.parametrize(("value", "rate"), [("010", 10.0), ("1E-5", 1e-5), ("+1.e-5", 1e-5), ("-0", 0), ("0e-999", 0)])
def test_a_rate_is_a_decimal_number(value: str, rate: float) -> None:
    assert LRDistribution.from_yaml(f"family: flat\nlr: {value}\n") == LRDistribution.flat(rate)


SIZE = 150_000  # a text on which quadratic time would be minutes
SLOW = {
    "one long line": "a: " + "b" * SIZE,
    "a long quoted text": 'a: "' + "\\x41" * (SIZE // 4) + '"',
    "line breaks in quotes": 'a: "' + "\n" * SIZE + '"',
    "a long block": "a: |\n" + " b\n" * (SIZE // 3),
    "comments": "#\n" * (SIZE // 2),
    "spaces": "a:" + " " * SIZE,
    "directives": "%a\n" * (SIZE // 3),
    "open brackets": "[" * SIZE,
    "open and closed": "[]," * (SIZE // 3),
    "keys": "".join(f"k{i}: 1\n" for i in range(SIZE // 9)),
    "one key": "a: 1\n" * (SIZE // 5),
    "question marks": "? " * (SIZE // 2),
    "a long tag": "!" + "a" * SIZE + " 1",
    "a long anchor": "&" + "a" * SIZE + " 1",
    "a long key": "a" * SIZE + ": 1",
    "colons": ":a" * (SIZE // 2),
    "digits": "a: " + "1" * SIZE,
    "dots": "a: " + "." * SIZE,
    "digits and an x": "a: " + "1" * SIZE + "x",
    "exponents": "a: 1e" + "1" * SIZE,
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW.keys())
def test_a_long_text_of_anything_is_answered_within_seconds(text: str) -> None:
    start = time.process_time()
    ours(LRDistribution.from_yaml, text)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("number", ["1" * 200_000 + "x", "1" * 200_000, "." * 200_000, "1e" + "1" * 200_000])
def test_a_long_number_in_a_text_takes_no_quadratic_time(number: str) -> None:
    start = time.process_time()
    assert isinstance(ours(LRDistribution.parse, f"flat:lr={number}"), LRDistError)
    assert isinstance(ours(LRDistribution.parse, f"flat:lr=1,freeze={number}..{number}"), LRDistError)
    assert time.process_time() - start < 1
