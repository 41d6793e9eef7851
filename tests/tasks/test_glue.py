from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lr_dist.errors import TaskDataError, UnknownTaskError
from lr_dist.tasks.glue import GLUE, GLUE_TASKS, load_glue
from lr_dist.tasks.registry import load_task
from lr_dist.tasks.scores import baseline_scores
from lr_dist.tasks.task import column_values, text_keys

# train (as in the files), validation
ROWS = {
    "cola": (8_551, 1_043),
    "sst2": (67_349, 872),
    "mrpc": (3_667, 408),
    "rte": (2_490, 277),
    "stsb": (5_749, 1_500),
    "wnli": (635, 71),
    "mnli": (8_999, 1_000),
    "qqp": (8_999, 1_000),
    "qnli": (8_999, 1_000),
}


def write(folder, split, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}.parquet")


def test_there_are_nine_tasks_with_their_official_scores():
    assert sorted(GLUE_TASKS) == sorted(ROWS)
    primary = {name: spec.metrics[0] for name, spec in GLUE.items()}
    assert primary.pop("cola") == "matthews"
    assert primary.pop("stsb") == "pearson"
    assert set(primary.values()) == {"accuracy"}
    assert GLUE["qqp"].metrics == GLUE["mrpc"].metrics == ("accuracy", "f1")
    assert GLUE["mnli"].validation == "validation_matched"


@pytest.mark.parametrize("below", ["glue/rte", "rte"])
def test_both_layouts_of_the_folder_are_read(tmp_path, below):
    for split in ("train", "validation"):
        write(tmp_path / below, split, sentence1=["a", "b"], sentence2=["c", "d"], label=[0, 1], idx=[0, 1])
    raw = load_glue("rte", tmp_path)
    assert text_keys(raw.train) == [("a", "c"), ("b", "d")]
    assert raw.classes == ("entailment", "not_entailment")


def test_rows_with_an_empty_text_are_left_out_and_counted(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / "qqp", split, question1=["a", "b", "c"], question2=["d", "", "f"], label=[0, 0, 1])
    raw = load_glue("qqp", tmp_path)
    assert column_values(raw.train, "text_a") == ["a", "c"]
    assert "1 train row(s) with an empty text left out" in raw.note


def test_a_missing_file_names_its_path(tmp_path):
    write(tmp_path / "sst2", "train", sentence=["a", "b"], label=[0, 1])
    with pytest.raises(TaskDataError, match=r"cannot read .*validation.parquet"):
        load_glue("sst2", tmp_path)


def test_wrong_columns_are_listed(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / "sst2", split, text=["a", "b"], label=[0, 1])
    with pytest.raises(TaskDataError, match=r"train: no column sentence; found text, label"):
        load_glue("sst2", tmp_path)


def test_hidden_labels_are_refused(tmp_path):
    for split in ("train", "validation"):
        write(tmp_path / "sst2", split, sentence=["a", "b", "c"], label=[0, 1, -1])
    with pytest.raises(TaskDataError, match=r"row 2.*label is -1"):
        load_glue("sst2", tmp_path)


def test_a_failing_download_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(TaskDataError, match=r"cannot load the GLUE task 'rte' from the hub.*data_dir.*LR_DIST_DATA"):
        load_glue("rte")


def test_an_unknown_name_lists_the_nine():
    with pytest.raises(UnknownTaskError, match=r"'ax'.*cola, sst2"):
        load_glue("ax")


@pytest.mark.data
@pytest.mark.parametrize("name", GLUE_TASKS)
def test_the_real_files_give_the_documented_rows(glue_dir, name):
    raw = load_glue(name, glue_dir)
    assert (len(raw.train), len(raw.validation)) == ROWS[name]
    assert ("NOT the full task" in raw.note) == (name in ("mnli", "qqp", "qnli"))
    if raw.kind == "classification":
        assert set(column_values(raw.train, "label")) == set(range(len(raw.classes)))
    else:
        labels = column_values(raw.train, "label")
        assert (min(labels), max(labels)) == (0.0, 5.0)


@pytest.mark.data
@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "mnli"])
def test_real_dev_rows_are_kept_out_of_train(glue_dir, name):
    task = load_task(name, data_dir=glue_dir)
    rows = ROWS[name][0]
    assert len(task.dev) == min(1000, -(-rows // 10))
    dev, train = set(text_keys(task.dev)), text_keys(task.train)
    assert not dev & set(train)
    # Every row is in dev, in train, or says what a dev row says.
    everything = Counter(text_keys(load_glue(name, glue_dir).train))
    dropped = sum(count for key, count in everything.items() if key in dev) - len(task.dev)
    assert len(task.train) == rows - len(task.dev) - dropped


@pytest.mark.data
def test_real_label_codes(glue_dir):
    def first(name, **wanted):
        raw = load_glue(name, glue_dir)
        rows = zip(text_keys(raw.train), column_values(raw.train, "label"), strict=True)
        return next(raw.classes[label] for key, label in rows if wanted["text"] in key[0])

    assert first("sst2", text="hide new secretions from the parental units") == "negative"
    assert first("rte", text="No Weapons of Mass Destruction Found in Iraq Yet.") == "not_entailment"
    assert first("mnli", text="Our hearts are particularly heavy this year") == "entailment"
    assert first("cola", text="Our friends won't buy this analysis") == "acceptable"
    assert first("mrpc", text='Amrozi accused his brother , whom he called " the witness "') == "equivalent"


@pytest.mark.data
def test_the_majority_of_real_mrpc_is_a_high_baseline(glue_dir):
    # 279 of 408 are equivalent: accuracy .684 and F1 2 * 279 / (408 + 279) without learning anything.
    scores = baseline_scores(load_task("mrpc", data_dir=glue_dir))
    assert scores["accuracy"] == pytest.approx(279 / 408)
    assert scores["f1"] == pytest.approx(2 * 279 / (408 + 279))
