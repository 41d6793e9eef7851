"""The kinds of bad input: each draws a case as a command line, with the files that it names."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mutate import TEXTS, VALUES, mutated_bytes, mutated_data, odd_place
from result_files import LABELS, result_data

# Refused after model, tasks and tokens were loaded, and before anything is trained: no layer has this number.
LAST = "flat:lr=1e-3,layers.999=0"
REACHED = "layers.999"
DEMO = ("demo-sentiment", "demo-entailment")


@dataclass(frozen=True)
class Case:
    """A command to run.

    Attributes:
        arguments: of `lr-dist`.
        environment: variables to set (None: to remove) while it runs.
        homeless: the user has neither a home folder nor an entry in the password file.
    """

    arguments: list[str]
    environment: dict[str, str | None] = field(default_factory=dict)
    homeless: bool = False


@dataclass(frozen=True)
class Sources:
    """What cases are made of, prepared once.

    Attributes:
        model: a tiny model's folder.
        comparison: the output folder of a comparison of it that has ended, and its command line.
    """

    model: Path
    comparison: Path
    command: tuple[str, ...]


Make = Callable[[random.Random, Path, Sources], Case]


def model_folder(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """A model's folder with damaged files."""
    model = folder / "model"
    shutil.copytree(sources.model, model)
    for name in draw.sample(sorted(os.listdir(sources.model)), draw.choice([1, 1, 2])):
        path = model / name
        how = draw.randrange(10)
        if how == 0:
            path.unlink()
        elif how == 1:
            path.unlink()
            odd_place(draw, model, path.name)
        elif path.suffix == ".json" and how < 8:
            path.write_text(json.dumps(mutated_data(draw, json.loads(path.read_text()))))
        else:
            path.write_bytes(mutated_bytes(draw, path.read_bytes()))
    return Case(_compare(folder, str(model), *DEMO) if draw.random() < 0.8 else ["layers", "--model", str(model)])


def config_file(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """A file for --config of any content."""
    data: dict[str, Any] = {
        **{"model": str(sources.model), "tasks": list(DEMO), "distributions": [LAST], "seeds": [0, 1], "limit": 64},
        **{"epochs": 1, "lr": 1e-5, "precision": "32-true", "output": str(folder / "out"), "storage": None},
    }
    path = folder / "c.yaml"
    text = yaml.safe_dump(_printable(mutated_data(draw, data)), allow_unicode=True, width=10**6)
    content = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.3:
        content = mutated_bytes(draw, content)
    elif draw.random() < 0.2:
        content = _bomb(draw).encode()
    path.write_bytes(content)
    name = odd_place(draw, folder, "odd.yaml") if draw.random() < 0.1 else str(path)
    command = draw.choice(["compare", "compare", "search"])
    return Case([command, "--config", name, *(["--trials", "0"] if command == "search" else [])])


def option(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """One or two options with values that they cannot take."""
    compare = _compare(folder, str(sources.model), *DEMO)
    more = (
        *("--seeds", "--limit", "--epochs", "--batch-size", "--max-length", "--lr", "--weight-decay", "--warmup"),
        *("--schedule", "--precision", "--evaluate-on", "--method", "--dev-size", "--data-seed", "--tasks", "--model"),
        *("--distributions", "--data-dir", "--no-such-option"),
    )
    commands: tuple[tuple[list[str], tuple[str, ...]], ...] = (
        (compare, more),
        (
            ["search", "--model", str(sources.model), "--tasks", *DEMO, "--trials", "0", "--output", str(folder / "o")],
            (
                *more[:-3],
                *("--sequences", "--space", "--low", "--high", "--knots", "--fixed", "--objective", "--tolerance"),
                *(
                    "--reference-rates",
                    "--queued",
                    "--sampler-seed",
                    "--workers",
                    "--study",
                    "--factor-low",
                ),
            ),
        ),
        (["layers", "--model", str(sources.model)], ("--distribution", "--names", "--model")),
        (["presets", "show", "kenneweg2022"], ("--layers",)),
        (["presets", "plot", "kenneweg2022", "--output-file", str(folder / "p.png")], ("--layers",)),
        (["report", str(folder / "none.json")], ("--level", "--against", "--markdown", "--output-file")),
        (["combine", "no-such-study", "--output", str(folder)], ("--base", "--pairs", "--setting")),
        (["dashboard", "--port", "-1", "--output", str(folder)], ("--host",)),
        (["search", "status", "--output", str(folder)], ("--study",)),
    )
    arguments, options = draw.choice(commands)
    for _ in range(draw.choice([1, 1, 2])):
        value = draw.choice([*map(str, VALUES), json.dumps(draw.choice(VALUES)), "flat:lr=" + draw.choice(TEXTS)])
        # The system lets no NUL byte into a command line.
        arguments = [*arguments, draw.choice(options), value.replace("\0", "0")]
    return Case(arguments)


def output_place(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """An output that cannot be written."""
    command = draw.randrange(4)
    if command == 0:
        place = odd_place(draw, folder, draw.choice(["out", "runs", ".lock"]))
        arguments = _compare(folder, str(sources.model), *DEMO)
        arguments[arguments.index("--output") + 1] = place.replace("\0", "0")
        if draw.random() < 0.5:
            # Something else within the folder, where the comparison has ended already.
            out = folder / "ended"
            shutil.copytree(sources.comparison, out)
            name = draw.choice(["runs", "result.json", "report.html", ".lock"])
            _remove(out / name)
            odd_place(draw, out, name)
            arguments = [*sources.command, "--output", str(out)]
        return Case(arguments)
    place = odd_place(draw, folder, draw.choice(["out.html", "out.png", "out.yaml"])).replace("\0", "0")
    if command == 1:
        path = folder / "result.json"
        path.write_text(json.dumps(result_data()))
        return Case(["report", str(path), "--output-file", place])
    if command == 2:
        return Case(
            ["presets", "plot", "kenneweg2022", "--output-file", f"{place}.png" if draw.random() < 0.5 else place]
        )
    path = folder / "trials.csv"
    path.write_text(_trials(draw))
    return Case(["combine", str(path), "--output-file", f"{place}.yaml" if draw.random() < 0.5 else place])


def result_file(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """A result.json altered by hand, in report; or one, or a run file, in compare again."""
    if draw.random() < 0.15:
        out = folder / "ended"
        shutil.copytree(sources.comparison, out)
        path = draw.choice([out / "result.json", *sorted((out / "runs").glob("*.json"))])
        arguments = [*sources.command, "--output", str(out)]
    else:
        path = folder / "result.json"
        path.write_text(json.dumps(result_data()))
        how = draw.choice([["--markdown", "true"], ["--markdown", "true"], ["--against", LABELS[0]], []])
        arguments = ["report", str(path), *how]
    if draw.random() < 0.75:
        data = mutated_data(draw, json.loads(path.read_text()))
        path.write_text(json.dumps(data))
    else:
        path.write_bytes(mutated_bytes(draw, path.read_bytes()))
    return Case(arguments)


def data_folder(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """A task's folder with files of another shape."""
    mine = folder / "mine"
    mine.mkdir()
    suffix = draw.choice(["csv", "tsv", "jsonl", "parquet"])
    for split, rows in (("train", 24), ("validation", 8)):
        _data_file(draw, mine / f"{split}.{suffix}", rows)
    if draw.random() < 0.2:
        path = mine / f"{draw.choice(['train', 'validation'])}.{suffix}"
        _remove(path)
        odd_place(draw, mine, path.name)
    spec: Any = f"mine={mine}"
    if draw.random() < 0.3:
        keys = {"name": "mine", "path": str(mine), "text": ["text"], "label": "label", "kind": "", "metrics": []}
        spec = json.dumps(mutated_data(draw, keys)).replace("\\u0000", "0")
    return Case(_compare(folder, str(sources.model), spec, DEMO[0]))


def presets_folder(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """A folder of presets with files of any name and content."""
    place = folder / "presets"
    place.mkdir()
    good = yaml.safe_load((Path(__file__).parents[2] / "lr_dist/presets/kenneweg2022.yaml").read_text())
    for _ in range(draw.choice([1, 3])):
        name = draw.choice([b"mine", b"\xff\xfe", b"\x1b[2J", b"[", b"a" * 240, b"kenneweg2022", b"-"]) + b".yaml"
        path = place / os.fsdecode(name)
        if path.exists():
            continue
        if draw.random() < 0.2:
            os.mkfifo(path)
            continue
        data = mutated_data(draw, {**good, "name": "mine"})
        content = yaml.safe_dump(_printable(data), width=10**6).encode("utf-8", "surrogatepass")
        path.write_bytes(content if draw.random() < 0.7 else mutated_bytes(draw, content))
    arguments = draw.choice([["list"], ["show", "mine"], ["show", "kenneweg2022"], ["plot", "mine"]])
    if arguments[0] == "plot":
        arguments = [*arguments, "--output", str(folder / "mine.png")]
    place_text = str(place) if draw.random() < 0.8 else odd_place(draw, folder, "odd").replace("\0", "0")
    return Case(["presets", *arguments], {"LR_DIST_PRESETS": place_text})


def trials_file(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """A CSV of trials for combine, of another shape."""
    path = folder / "trials.csv"
    lines = _trials(draw).splitlines()
    for _ in range(draw.choice([1, 1, 3])):
        row = draw.randrange(len(lines))
        cells = lines[row].split(",")
        cells[draw.randrange(len(cells))] = draw.choice([*TEXTS, "1e400", "nan", '"', '""', "a,b"])
        lines[row] = ",".join(cells)
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(content if draw.random() < 0.7 else mutated_bytes(draw, content))
    return Case(["combine", str(path)])


def surroundings(draw: random.Random, folder: Path, sources: Sources) -> Case:
    """Folders of the environment that are something else; a user without a home folder."""
    names = ["HOME", "LR_DIST_CACHE", "LR_DIST_DATA", "LR_DIST_PRESETS", "TMPDIR", "COLUMNS", "MPLCONFIGDIR"]
    changes: dict[str, str | None] = {}
    for name in draw.sample(names, draw.choice([1, 1, 2])):
        value = odd_place(draw, folder, f"odd-{name}") if draw.random() < 0.7 else draw.choice(TEXTS)
        changes[name] = None if draw.random() < 0.2 else value.replace("\0", "0").encode("utf-8", "replace").decode()
    arguments = draw.choice(
        [
            _compare(folder, str(sources.model), *DEMO),
            _compare(folder, "~/model", *DEMO),
            _compare(folder, str(sources.model), "rte", DEMO[0]),
            _compare(folder, str(sources.model), "mine=~/mine", DEMO[0]),
            ["presets", "list"],
            ["presets", "plot", "kenneweg2022", "--output-file", "~/x.png"],
            ["report", "~/result.json"],
            ["combine", "~/trials.csv"],
            ["search", "status", "--output", "~/runs"],
        ]
    )
    return Case(arguments, changes, homeless=draw.random() < 0.3)


KINDS: dict[str, tuple[int, Make]] = {
    "model folder": (20, model_folder),
    "config file": (10, config_file),
    "option": (20, option),
    "output place": (10, output_place),
    "result file": (10, result_file),
    "data folder": (15, data_folder),
    "presets folder": (5, presets_folder),
    "trials file": (5, trials_file),
    "surroundings": (5, surroundings),
}


def drawn(seed: int, number: int, folder: Path, sources: Sources) -> tuple[str, Case]:
    """The case `number` of the sweep `seed`: always the same one."""
    draw = random.Random(f"{seed} {number}")
    names = list(KINDS)
    kind = draw.choices(names, [KINDS[name][0] for name in names])[0]
    return kind, KINDS[kind][1](draw, folder, sources)


def _compare(folder: Path, model: str, *tasks: str) -> list[str]:
    return [
        *("compare", "--model", model, "--tasks", *tasks, "--distributions", LAST, "--seeds", "0"),
        *("--limit", "64", "--epochs", "1", "--precision", "32-true", "--output", str(folder / "out")),
    ]


def _data_file(draw: random.Random, path: Path, rows: int) -> None:
    columns: dict[str, list[Any]] = {
        "text": [f"the film {i} was {'good' if i % 2 else 'bad'}" for i in range(rows)],
        "label": ["yes" if i % 2 else "no" for i in range(rows)],
    }
    spoil = draw.random()
    if spoil < 0.5:
        column = draw.choice(list(columns))
        for _ in range(draw.choice([1, 3, rows])):
            columns[column][draw.randrange(rows)] = draw.choice(VALUES)
    elif spoil < 0.6:
        columns[draw.choice(TEXTS)] = columns.pop(draw.choice(list(columns)))
    if path.suffix == ".parquet":
        _parquet(draw, path, columns)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({key: values[i] for key, values in columns.items()}) for i in range(rows)]
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    else:
        sign = "," if path.suffix == ".csv" else "\t"
        lines = [sign.join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        path.write_text("\n".join([sign.join(columns), *lines]), encoding="utf-8", errors="surrogatepass")
    if 0.6 <= spoil < 0.9:
        path.write_bytes(mutated_bytes(draw, path.read_bytes()))


def _parquet(draw: random.Random, path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = len(columns[next(iter(columns))])
    odd = [
        pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        pa.array([{"a": 1}] * rows),
        pa.array([[1.0]] * rows),
        pa.array([b"\xff\xfe"] * rows),
        pa.array([None] * rows),
        pa.array([10**18] * rows, pa.timestamp("us")),
        pa.array(["a", "b"] * (rows // 2)).dictionary_encode(),
        pa.array([1.5, float("nan")] * (rows // 2)),
        pa.array([True, False] * (rows // 2)),
        pa.array([2**63 - 1, 0] * (rows // 2)),
        pa.Array.from_buffers(pa.string(), rows, pa.array([b"\xff\xfe"] * rows).buffers()),
    ]
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name.encode("utf-8", "replace").decode()] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            arrays[name.encode("utf-8", "replace").decode()] = draw.choice(odd)
    if draw.random() < 0.4:
        arrays[draw.choice(list(arrays))] = draw.choice(odd)
    table = pa.table(arrays)
    if draw.random() < 0.4:
        features: Any = {"info": {"features": {"label": {"names": ["a"], "_type": "ClassLabel"}}}}
        text = json.dumps(mutated_data(draw, features)) if draw.random() < 0.7 else draw.choice(TEXTS)
        table = table.replace_schema_metadata({b"huggingface": text.encode("utf-8", "surrogatepass")})
    pq.write_table(table, path)


def _trials(draw: random.Random) -> str:
    """A CSV as `lr-dist search export` writes it."""
    lines = ["trial,slot,label,state,seconds,value,reason,a>b p_o,a>b p_s,embeddings,k0,k1,k2,k3,head"]
    for i in range(6):
        rates = ",".join(f"{10 ** draw.uniform(-6, -3):.3e}" for _ in range(6))
        lines.append(f"{i},{i},,complete,1.5,{draw.random():.3f},,0.5,0.6,{rates}")
    return "\n".join(lines) + "\n"


def _bomb(draw: random.Random) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, draw.randrange(2, 12))]
    return "\n".join([*lines, f"seeds: *a{len(lines) - 1}"])


def _printable(data: Any) -> Any:
    """Data that PyYAML can write: it has no form for half characters."""
    if isinstance(data, dict):
        return {_printable(key): _printable(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_printable(value) for value in data]
    return data.encode("utf-8", "replace").decode() if isinstance(data, str) else data


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
