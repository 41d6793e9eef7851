"""The walks in docs/development.md name files and functions that exist, and the rates that these give."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from lr_dist.presets import get_preset, resolve_plan

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
WALKS = [part for part in PAGE.split("\n## ") if part.startswith("From ")]


def names(file: str) -> set[str]:
    """Functions and classes of a file, methods included."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.splitlines()[0])
def test_every_file_and_function_of_a_walk_exists(walk: str) -> None:
    # A function is in one of the files that the walk names.
    files = dict.fromkeys(re.findall(r"`(lr_dist/[\w/]+\.py)`", walk))
    known = set().union(*(names(file) for file in files))
    functions = re.findall(r"`([\w.]+)\(\)`", walk)
    assert len(functions) >= 8
    for function in functions:
        assert set(function.split(".")) <= known, f"{function} is in none of {', '.join(files)}"


def test_the_walks_rates_are_those_of_the_preset_and_of_the_plan() -> None:
    preset = get_preset("kenneweg2022-relative")
    assert dict(preset.distribution.values)["g3"] == 0.192383
    assert f"{preset.distribution.absolute(2e-5).rates(12)['layers.3']:.6g}" == "3.84766e-06"
    (text,) = re.findall(r"--arms '([^']+)'", PAGE)
    plan = resolve_plan(text)
    assert [plan.stage(i).family for i in range(4)] == ["flat", "decay", "decay", "decay"]
