from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lr_dist.errors import ConfigurationError, TaskDataError
from lr_dist.tasks.custom import load_custom, parse_custom
from lr_dist.tasks.registry import load_task, load_tasks
from lr_dist.tasks.task import column_values

TRAIN = [("good film", "pos"), ("bad film", "neg"), ("so, so", "neg"), ('the "best"', "pos")]
VALIDATION = [("fine", "pos"), ("boring", "neg")]


def write(folder, split, rows, kind="csv", columns=("text", "label")):
    path = folder / f"{split}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True))), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    elif kind == "tsv":
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [columns, *rows]))
    else:
        quoted = [",".join('"' + str(field).replace('"', '""') + '"' for field in row) for row in [columns, *rows]]
        path.write_text("\n".join(quoted) + "\n")


def folder_of(folder, train=TRAIN, validation=VALIDATION, **settings):
    write(folder, "train", train, **settings)
    write(folder, "validation", validation, **settings)
    return f"my={folder}"


def load(spec):
    return load_custom(parse_custom(spec))


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "jsonl"])
def test_each_kind_of_file_gives_the_same_task(tmp_path, kind):
    raw = load(folder_of(tmp_path, kind=kind))
    assert column_values(raw.train, "text_a") == [text for text, _ in TRAIN]
    assert raw.classes == ("neg", "pos")
    assert column_values(raw.train, "label") == [1, 0, 0, 1]
    assert column_values(raw.validation, "label") == [1, 0]
    assert (raw.kind, raw.metrics) == ("classification", ("accuracy",))


def test_it_loads_by_its_name_with_limit_and_dev(tmp_path):
    rows = [(f"text {index}", "ab"[index % 2]) for index in range(60)]
    task = load_task(folder_of(tmp_path, rows, [("x", "a")]), limit=10, dev_size=6)
    assert (task.name, len(task.train), len(task.dev), len(task.validation)) == ("my", 10, 6, 1)


def test_whole_numbers_are_classes_in_the_order_of_their_size(tmp_path):
    raw = load(folder_of(tmp_path, [("a", 10), ("b", 9), ("c", 2)], [("d", 9)]))
    assert raw.classes == ("2", "9", "10")
    assert column_values(raw.train, "label") == [2, 1, 0]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_fractions_are_a_regression(tmp_path, kind):
    raw = load(folder_of(tmp_path, [("a", 0.5), ("b", 2.0)], [("c", 1.25)], kind=kind))
    assert (raw.kind, raw.classes, raw.metrics) == ("regression", (), ("pearson", "spearman"))
    assert column_values(raw.train, "label") == [0.5, 2.0]


def test_kind_turns_whole_numbers_into_targets_and_back(tmp_path):
    path = folder_of(tmp_path, [("a", 1), ("b", 3)], [("c", 2)])[3:]
    raw = load({"name": "my", "path": path, "kind": "regression"})
    assert column_values(raw.validation, "label") == [2.0]
    folder_of(tmp_path, [("a", 1.0), ("b", 3.0)], [("c", 3.0)])
    assert load({"name": "my", "path": path, "kind": "classification"}).classes == ("1", "3")


def test_booleans_are_classes(tmp_path):
    raw = load(folder_of(tmp_path, [("a", True), ("b", False)], [("c", True)], kind="jsonl"))
    assert raw.classes == ("False", "True")


def test_class_labels_of_a_parquet_file_keep_their_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ant"])})
    for split in ("train", "validation"):
        Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features).to_parquet(tmp_path / f"{split}.parquet")
    raw = load(f"my={tmp_path}")
    assert raw.classes == ("ant", "zebra")
    assert column_values(raw.train, "label") == [1, 0]


def test_columns_may_be_named(tmp_path):
    columns = ("headline", "body", "stars", "text")
    path = folder_of(tmp_path, [("a", "b", "x", "t"), ("c", "d", "y", "t")], [("e", "f", "y", "t")], columns=columns)
    raw = load({"name": "my", "path": path[3:], "text": ["headline", "body"], "label": "stars", "metrics": ["f1"]})
    assert column_values(raw.train, "text_a") == ["a", "c"]
    assert column_values(raw.train, "text_b") == ["b", "d"]
    assert raw.metrics == ("f1",)


def test_a_usual_pair_is_found(tmp_path):
    columns = ("idx", "question", "sentence", "label")
    raw = load(folder_of(tmp_path, [(0, "q", "s", 0), (1, "p", "r", 1)], [(2, "o", "t", 1)], columns=columns))
    assert column_values(raw.train, "text_b") == ["s", "r"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("words", "label"), "which columns are text.*none has a usual name.*Found: words, label"),
        (("text", "rating"), "which column is the label.*Found: text, rating"),
    ],
)
def test_columns_that_cannot_be_guessed_are_listed(tmp_path, columns, message):
    with pytest.raises(TaskDataError, match=message):
        load(folder_of(tmp_path, columns=columns))


def test_an_ambiguous_guess_is_refused(tmp_path):
    rows = [("a", "b", 0), ("c", "d", 1)]
    with pytest.raises(TaskDataError, match="several fit: text, review"):
        load(folder_of(tmp_path, rows, rows, columns=("text", "review", "label")))


def test_a_named_column_that_is_missing_lists_the_others(tmp_path):
    path = folder_of(tmp_path)[3:]
    with pytest.raises(TaskDataError, match="train: no column body; found: text, label"):
        load({"name": "my", "path": path, "text": "body"})


def test_a_new_label_in_validation_is_named(tmp_path):
    with pytest.raises(TaskDataError, match=r"validation, row 1.*'meh' never occurs in train \(neg, pos\)"):
        load(folder_of(tmp_path, validation=[("a", "pos"), ("b", "meh")]))


def test_one_class_only_is_refused(tmp_path):
    with pytest.raises(TaskDataError, match=r"only class in train is \['pos'\]"):
        load(folder_of(tmp_path, [("a", "pos"), ("b", "pos")], [("c", "pos")]))


def test_an_empty_text_is_named(tmp_path):
    with pytest.raises(TaskDataError, match=r"train, row 1.*text_a is ''"):
        load(folder_of(tmp_path, [("a", "pos"), ("", "neg")]))


@pytest.mark.parametrize("label", [None, float("nan")])
def test_a_missing_label_is_named(tmp_path, label):
    rows = [("a", 0.5), ("b", label), ("c", 1.5)]
    with pytest.raises(TaskDataError, match=r"train, row 1.*label is"):
        load(folder_of(tmp_path, rows, rows, kind="parquet"))


def test_an_empty_label_in_csv_is_named(tmp_path):
    with pytest.raises(TaskDataError, match=r"validation, row 0.*label is ''"):
        load(folder_of(tmp_path, validation=[("a", "")]))


def test_a_regression_on_names_is_refused(tmp_path):
    path = folder_of(tmp_path)[3:]
    with pytest.raises(TaskDataError, match="label is 'pos', but a regression needs numbers"):
        load({"name": "my", "path": path, "kind": "regression"})


def test_a_text_column_of_numbers_is_refused(tmp_path):
    with pytest.raises(TaskDataError, match="'text' holds int64, not text"):
        load(folder_of(tmp_path, [(1, "a"), (2, "b")], [(3, "a")], kind="parquet"))


def test_a_csv_text_may_look_like_a_number_or_like_nothing(tmp_path):
    raw = load(folder_of(tmp_path, [("12", "a"), ("null", "b"), ("NA", "b")], [("3.5", "a")]))
    assert column_values(raw.train, "text_a") == ["12", "null", "NA"]


def test_a_quoted_csv_field_may_hold_commas_quotes_and_line_ends(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "train.csv").write_text('\ufefftext,label\r\n"one, ""two""\nthree",a\r\nfour,b\r\n\r\n')
    (tmp_path / "validation.csv").write_text("text,label\nfive,a\n")
    raw = load(f"my={tmp_path}")
    assert column_values(raw.train, "text_a") == ['one, "two"\nthree', "four"]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "text,label\na,b,c\n", "train.csv, line 2: 3 fields, but the header has 2"),
        ("csv", 'text,label\n"a,b\nc,d\n', r"train.csv, line \d: "),
        ("csv", "", "the header is"),
        ("csv", "text,text\na,b\n", "name each column once"),
        ("jsonl", '{"text": "a", "label": 1}\n{oops}\n', "train.jsonl, line 2: is not JSON"),
        ("jsonl", "[1, 2]\n", "every line is one object"),
        ("jsonl", '{"text": "a", "label": 1}\n{"text": "a", "label": "x"}\n', "'label' has values of different types"),
        ("parquet", "not parquet", "cannot be read as parquet"),
    ],
)
def test_a_broken_file_names_file_and_line(tmp_path, kind, content, message):
    (tmp_path / f"train.{kind}").write_text(content)
    write(tmp_path, "validation", VALIDATION)
    with pytest.raises(TaskDataError, match=message):
        load(f"my={tmp_path}")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    folder_of(tmp_path)
    (tmp_path / "train.csv").write_bytes("text,label\ncafé,a\n".encode("latin-1"))
    with pytest.raises(TaskDataError, match=r"train.csv: is not UTF-8"):
        load(f"my={tmp_path}")


def test_a_missing_split_and_two_files_of_one_split_are_refused(tmp_path):
    write(tmp_path, "train", TRAIN)
    with pytest.raises(TaskDataError, match=r"exactly one of validation.parquet.*found none"):
        load(f"my={tmp_path}")
    write(tmp_path, "train", TRAIN, kind="tsv")
    with pytest.raises(TaskDataError, match=r"found train.csv, train.tsv"):
        load(f"my={tmp_path}")


def test_a_path_that_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    with pytest.raises(TaskDataError, match="is not a folder; give one that holds train and validation"):
        load(f"my={tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "my"}, "path is missing"),
        ({"path": "x"}, "name is missing"),
        ("=x", "name is missing"),
        ({"name": "my", "path": "x", "colour": 1}, "unknown key colour"),
        ({"name": "my task", "path": "x"}, "letters, digits"),
        ({"name": "my", "path": "x", "kind": "ranking"}, "kind is 'ranking'"),
        ({"name": "my", "path": "x", "text": ["a", "b", "c"]}, "name one column, or two"),
        ({"name": "my", "path": "x", "text": [1]}, "give a name, or a list of names"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(spec, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_custom(spec)


def test_the_name_of_a_task_that_exists_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="'sst2' is the name of an existing task"):
        load_task(f"sst2={tmp_path}")


def test_a_hub_data_set_that_cannot_be_reached_says_so(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(TaskDataError, match="no folder 'nobody/nothing-here', and as a hub data set"):
        load("my=nobody/nothing-here")


def test_an_environment_variable_in_a_path_is_replaced(monkeypatch):
    monkeypatch.setenv("MY_DATA", "/some/where")
    assert parse_custom("my=$MY_DATA/tasks").path == "/some/where/tasks"
    assert parse_custom({"name": "my", "path": "${MY_DATA}/tasks"}).path == "/some/where/tasks"
    monkeypatch.delenv("MY_DATA")
    with pytest.raises(ConfigurationError, match=r"variable MY_DATA .* is not set"):
        parse_custom("my=$MY_DATA/tasks")


def test_a_shared_head_needs_the_same_classes(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for name, classes in (("films", ("negative", "positive")), ("cities", ("false", "true"))):
            (tmp_path / name).mkdir(exist_ok=True)
            rows = "".join(f"text {split} {i},{classes[i % 2]}\n" for i in range(12))
            (tmp_path / name / f"{split}.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    films = {"name": "films", "path": str(tmp_path / "films"), "head": "demo-sentiment"}
    first, second = load_tasks([films, "demo-sentiment"])
    assert first.head == second.head == "demo-sentiment"
    alone = load_task({"name": "films", "path": films["path"]})
    assert alone.head == "films"
    # Finished runs of a task with a head of its own are not taken for those with a shared one.
    assert alone.fingerprint == first.fingerprint == alone.identity != first.identity
    with pytest.raises(ConfigurationError, match="share the head 'demo-sentiment', and their classes differ"):
        load_tasks([{"name": "cities", "path": str(tmp_path / "cities"), "head": "demo-sentiment"}, "demo-sentiment"])
