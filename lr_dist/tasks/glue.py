"""The nine GLUE tasks (Wang et al. 2019, arXiv 1804.07461), from the hub or from a folder of parquet files.

The official test splits have no public labels and are never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr_dist.errors import TaskDataError, UnknownTaskError, shown
from lr_dist.reading import expanded, is_folder
from lr_dist.tasks.files import column_names
from lr_dist.tasks.task import RawTask

if TYPE_CHECKING:
    from datasets import Dataset

HUB_ID = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueSpec:
    """The fixed facts of a GLUE task.

    Attributes:
        columns: Its text columns, as in the hub's data set.
        classes: By label id; empty for the regression.
        metrics: The official scores, the primary one first.
        train_rows: Official number of train rows.
        validation: Name of the hub's split that is scored.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    train_rows: int
    validation: str = "validation"


_PARAPHRASE = ("not_equivalent", "equivalent")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, GlueSpec] = {
    "cola": GlueSpec(("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), 8_551),
    "sst2": GlueSpec(("sentence",), ("negative", "positive"), ("accuracy",), 67_349),
    "mrpc": GlueSpec(("sentence1", "sentence2"), _PARAPHRASE, ("accuracy", "f1"), 3_668),
    "qqp": GlueSpec(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), 363_846),
    "stsb": GlueSpec(("sentence1", "sentence2"), (), ("pearson", "spearman"), 5_749),
    "mnli": GlueSpec(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        392_702,
        "validation_matched",
    ),
    "qnli": GlueSpec(("question", "sentence"), _ENTAILMENT, ("accuracy",), 104_743),
    "rte": GlueSpec(("sentence1", "sentence2"), _ENTAILMENT, ("accuracy",), 2_490),
    "wnli": GlueSpec(("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",), 635),
}
GLUE_TASKS: tuple[str, ...] = tuple(GLUE)


def load_glue(name: str, data_dir: str | Path | None = None) -> RawTask:
    """Loads a GLUE task with its official train and validation splits.

    Args:
        name: One of `GLUE_TASKS`.
        data_dir: Folder with `glue/NAME/{train,validation}.parquet` (or `NAME/...` in it), columns as in the hub's
            `nyu-mll/glue`; None loads from the hub (or its local cache). MNLI's validation is the matched one.

    Returns:
        The task; if train is smaller than the official split, its note says so.

    Raises:
        UnknownTaskError: No GLUE task has this name.
        TaskDataError: Missing files, wrong columns, or a failed download.
    """
    if name not in GLUE:
        raise UnknownTaskError(f"no GLUE task named {name!r}; there are: {', '.join(GLUE_TASKS)}")
    spec = GLUE[name]
    if data_dir is None:
        source = _from_hub(name, spec)
    else:
        source = _from_folder(name, expanded(data_dir))
    notes: list[str] = []
    splits: dict[str, Dataset] = {}
    for split_name, split in source.items():
        splits[split_name], dropped = _canonical(name, split_name, split, spec)
        if dropped:
            notes.append(f"{dropped} {split_name} row(s) with an empty text left out")
    rows = len(source["train"])
    # A few rows may be missing in a source; if a tenth is missing, it is another data set.
    if rows < 0.9 * spec.train_rows:
        notes.insert(0, f"a labelled subset, NOT the full task: {rows:,} of {spec.train_rows:,} train rows")
    return RawTask(
        name=name,
        kind="classification" if spec.classes else "regression",
        classes=spec.classes,
        metrics=spec.metrics,
        note="; ".join(notes),
        **splits,
    )


def _from_folder(name: str, data_dir: Path) -> dict[str, Dataset]:
    import pyarrow.parquet as pq
    from datasets import Dataset

    folders = [folder for folder in (data_dir / "glue" / name, data_dir / name) if is_folder(folder)]
    if not folders:
        raise TaskDataError(
            f"no folder for the GLUE task {name!r} in {data_dir}: looked for glue/{name}/ and {name}/; give the "
            "folder that holds them as data_dir or in LR_DIST_DATA, or neither to download from the hub"
        )
    splits: dict[str, Dataset] = {}
    for split in ("train", "validation"):
        path = folders[0] / f"{split}.parquet"
        try:
            # Read into memory; the datasets library would copy the file into a cache first.
            table = pq.read_table(path)
            table.validate(full=True)
            splits[split] = Dataset(table)
        except Exception as error:  # pyarrow raises its own and OS errors
            raise TaskDataError(f"GLUE task {name!r}: cannot read {path}: {error}") from error
    return splits


def _from_hub(name: str, spec: GlueSpec) -> dict[str, Dataset]:
    import datasets

    try:
        train, validation = datasets.load_dataset(HUB_ID, name, split=["train", spec.validation])
    except Exception as error:  # the hub client raises many kinds: offline, timeouts, HTTP errors
        raise TaskDataError(
            f"cannot load the GLUE task {name!r} from the hub ({HUB_ID}): {type(error).__name__}: {error}. Without "
            f"network, give a folder that holds glue/{name}/train.parquet and validation.parquet as data_dir or in "
            "the environment variable LR_DIST_DATA, or use a generated task such as demo-sentiment"
        ) from error
    return {"train": train, "validation": validation}


def _canonical(name: str, split_name: str, split: Any, spec: GlueSpec) -> tuple[Dataset, int]:
    """The canonical columns, without rows with an empty text (QQP has a few); and the number of those rows."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset

    missing = [column for column in (*spec.columns, "label") if column not in split.column_names]
    if missing:
        raise TaskDataError(
            f"GLUE task {name!r}, {split_name}: no column {', '.join(missing)}; found "
            f"{column_names(split.column_names)}"
        )
    table = split.with_format("arrow")[:]
    label_type = pa.int64() if spec.classes else pa.float64()
    try:
        texts = [table.column(column).cast(pa.large_string()) for column in spec.columns]
        columns = dict(zip(("text_a", "text_b"), texts, strict=False))
        result = pa.table({**columns, "label": table.column("label").cast(label_type)})
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise TaskDataError(
            f"GLUE task {name!r}, {split_name}: the columns are not texts and labels: {shown(str(error), 300)}"
        ) from error
    for column in columns:
        filled = pc.not_equal(pc.utf8_trim_whitespace(result.column(column)), "")
        result = result.filter(pc.fill_null(filled, False))
    return Dataset(result), len(table) - len(result)
