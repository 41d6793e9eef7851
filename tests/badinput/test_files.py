"""Result files, data files and output places that are something else are named, and show nothing that they hold."""

from __future__ import annotations

import copy
import csv
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mutate import VALUES, mutated_bytes
from result_files import LABELS, result_data

from lr_dist.errors import ConfigurationError, InvalidResultError, LRDistError, OutputInUseError, TaskDataError
from lr_dist.report.markdown import markdown_table
from lr_dist.sequence.differences import differences
from lr_dist.sequence.output import checked_folder, locked
from lr_dist.sequence.result import ComparisonResult
from lr_dist.sequence.schema import check_run
from lr_dist.tasks import load_task

SECRETS = ("root:x:0:0:root:/root:/bin/bash", "hunter2", "-----BEGIN PRIVATE KEY-----", "AKIA0123,s3cr3t/key==")


# Result files --------------------------------------------------------------------------------------------


def places(data: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in plain data."""
    if way:
        yield way
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*way, key))
    elif isinstance(data, list):
        for i, value in enumerate(data[:2]):
            yield from places(value, (*way, i))


def saved(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_a_whole_result_is_read(tmp_path: Path) -> None:
    result = ComparisonResult.load(saved(tmp_path / "result.json", result_data()))
    assert "flat:lr=1e-4" in markdown_table(result)
    for run in result.runs:
        check_run(run, 2, "x")


def test_a_value_of_another_kind_at_any_place_is_read_or_named(tmp_path: Path) -> None:
    """At every place of the file, in turn, another value; what is read can be shown and compared."""
    whole, draw, refused = result_data(), random.Random(0), []
    for way in places(whole):
        data = copy.deepcopy(whole)
        inner = data
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = draw.choice(VALUES)
        try:
            result = ComparisonResult.load(saved(tmp_path / "result.json", data))
            markdown_table(result)
            differences([result], LABELS[0])
        except LRDistError as error:
            refused.append(str(error))
    assert len(refused) > 100
    assert max(map(len, refused)) < 2_000


@pytest.mark.parametrize(
    ("way", "value", "place"),
    [
        (("runs", 0, "matrix", 1), [0.5], r"runs\[0\]\.matrix is not 3 rows of 2 scores"),
        (("runs", 0, "metrics", "p_o"), "0.9", r"runs\[0\]\.metrics\.p_o is '0\.9', and not a number"),
        (("runs", 1, "status"), "fine", r"runs\[1\]\.status is 'fine'"),
        (("runs", 0, "arm"), "mine", r"runs\[0\]\.arm is 'mine', which is not in"),
        (("arms", 0, "stages", 0, "rates", "head"), -1, r"arms\[0\]\.stages\[0\]\.rates\.head is -1"),
        (("tasks", 1, "examples", "validation"), 0, r"tasks\[1\]\.examples\.validation is 0"),
        (("summary", 0, "matrix", "sd"), None, r"summary\[0\]\.matrix\.sd is None"),
        (("planned_runs",), 1.5, r"planned_runs is 1\.5"),
        (("tasks",), [], r"tasks is empty"),
    ],
)
def test_what_was_altered_is_named_with_its_place(way: tuple[Any, ...], value: Any, place: str, tmp_path: Path) -> None:
    data = inner = result_data()
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    with pytest.raises(InvalidResultError, match=rf"result\.json was altered or cut: {place}"):
        ComparisonResult.load(saved(tmp_path / "result.json", data))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"NaN", b"9" * 5_000, b'{"kind": "compare"}'])
def test_a_result_that_is_no_json_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(InvalidResultError, match=r"result\.json"):
        ComparisonResult.load(tmp_path / "result.json")


def test_a_result_with_nan_is_refused_where_it_stands_too(tmp_path: Path) -> None:
    text = json.dumps(result_data()).replace('"p_s": 0.', '"p_s": NaN, "x": 0.', 1)
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InvalidResultError, match="NaN is not a number of JSON"):
        ComparisonResult.load(tmp_path / "result.json")


# Data ----------------------------------------------------------------------------------------------------


def task_folder(folder: Path, suffix: str, train: bytes) -> str:
    for split in ("train", "validation"):
        (folder / f"{split}.{suffix}").write_bytes(train)
    return f"mine={folder}"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_file_that_is_something_else_shows_none_of_its_content(suffix: str, secret: str, tmp_path: Path) -> None:
    lines = f"{secret}\n{secret}\nmore:{secret}\n".encode()
    with pytest.raises(TaskDataError) as raised:
        load_task(task_folder(tmp_path, suffix, lines))
    for piece in (secret, *secret.split(",")):
        assert piece not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "\\ud800", "label": 1}',
        '{"\\udfff": "a", "text": "b", "label": 1}',
        '{"text": "a", "label": ' + "9" * 5_000 + "}",
        '{"text": ' + "[" * 100_000,
        '{"text": ' + '{"a":' * 100_000,
        "[1, 2]",
        '"text"',
        "NaN",
        '{"text": {"a": 1}, "label": [1]}',
    ],
)
def test_a_line_that_is_no_row_is_named(line: str, tmp_path: Path) -> None:
    good = "".join(f'{{"text": "film {i}", "label": {i % 2}}}\n' for i in range(8))
    with pytest.raises(TaskDataError, match=r"train\.jsonl") as raised:
        load_task(task_folder(tmp_path, "jsonl", (good + line).encode()))
    assert len(str(raised.value)) < 1_000


def test_parquet_with_maps_bad_utf8_and_others_metadata_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = pa.array([b"\xff\xfe", b"b"] * 8)
    columns = {
        "map": pa.array([[("a", 1)]] * 16, pa.map_(pa.string(), pa.int64())),
        "bytes": pa.Array.from_buffers(pa.string(), 16, bad.buffers()),
        "far date": pa.array([10**18] * 16, pa.timestamp("us")),
        "nothing": pa.array([None] * 16),
    }
    for column in ("text", "label"):
        for odd in columns.values():
            table = pa.table({"text": ["a", "b"] * 8, "label": ["x", "y"] * 8})
            table = table.set_column(table.column_names.index(column), column, odd)
            for metadata in (None, {b"huggingface": b"{"}, {b"huggingface": b'{"info": {"features": 7}}'}):
                pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train.parquet")
                pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "validation.parquet")
                with pytest.raises(TaskDataError):
                    load_task(f"mine={tmp_path}")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_damaged_data_is_read_or_named(suffix: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    rows = {"text": [f"film {i}" for i in range(16)], "label": ["x", "y"] * 8}
    path = tmp_path / f"whole.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(rows), path)
    elif suffix == "jsonl":
        path.write_text(
            "".join(json.dumps(dict(zip(rows, row, strict=True))) + "\n" for row in zip(*rows.values(), strict=True))
        )
    else:
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="," if suffix == "csv" else "\t").writerows(
                [rows, *zip(*rows.values(), strict=True)]
            )
    draw, whole, refused = random.Random(1), path.read_bytes(), 0
    for _ in range(60):
        try:
            load_task(task_folder(tmp_path, suffix, mutated_bytes(draw, whole)))
        except LRDistError:
            refused += 1
    assert refused > 20


# Output --------------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    odd = ["file", "file/below", "loop", "pipe", "x" * 300, "nul\0"]
    for place in [*(str(tmp_path / name) for name in odd), "/proc/out", "~nobody-of-that-name/x"]:
        with pytest.raises((ConfigurationError, LRDistError)) as raised:
            checked_folder(place)
        assert "\0" not in str(raised.value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert checked_folder("~/runs") == tmp_path / "runs"
    assert not (tmp_path / "~").exists()


def test_something_else_in_place_of_the_lock_is_named(tmp_path: Path) -> None:
    for make in (os.mkdir, os.mkfifo):
        place = tmp_path / make.__name__
        place.mkdir()
        make(place / ".lock")
        with pytest.raises(ConfigurationError, match=r"\.lock"), locked(place):
            pass
    with locked(tmp_path), pytest.raises(OutputInUseError), locked(tmp_path):
        pass
