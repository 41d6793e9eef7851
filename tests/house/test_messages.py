"""Messages of the lower rooms name no callback, Trainer or command above them; those add their own advice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lr_dist"
LOWER_ROOMS = [
    *("_layers", "_distribution", "_regroup", "_models", "presets", "tasks", "runs", "layers", "distribution"),
    *("rate_plan", "groups", "group_values", "regroup", "schedulers", "kept_schedulers", "step_factors"),
    *("layer_schedule", "coverage", "rate_check", "models", "yaml_io", "reading", "extras", "checks", "names"),
]
COMMANDS = "|".join(path.stem for path in (PACKAGE / "cli").glob("[a-z]*.py"))
HIGHER_ROOM = re.compile(
    r"\b(LayerwiseLR|LossAdaptiveLR|ExactResume|LayerwiseTrainerMixin|Trainer|configure_optimizers)\b"
    rf"|lr-dist ({COMMANDS})\b|(?<![\w-])--[a-z]"
)


def files_of(room: str) -> list[Path]:
    files = sorted((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    assert all(file.is_file() for file in files)
    return files


def texts_of(source: str) -> Iterator[str]:
    """Every text in the code that is not a docstring; the parts between the fields of an f-string one by one."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("room", LOWER_ROOMS)
def test_a_lower_room_names_no_face_above_it(room: str) -> None:
    named = [text for file in files_of(room) for text in texts_of(file.read_text()) if HIGHER_ROOM.search(text)]
    assert named == []


def test_the_search_finds_such_texts_outside_of_docstrings() -> None:
    source = '"""LayerwiseLR"""\nraise ValueError(f"{x}: pass it to LayerwiseLR(...)" "or see `lr-dist layers`")\n'
    assert [bool(HIGHER_ROOM.search(text)) for text in texts_of(source)] == [True]
    for text in ("use --limit", "run lr-dist presets list", "a Trainer", "in `configure_optimizers`"):
        assert HIGHER_ROOM.search(text)
    for text in ("pip install 'lr-dist[demo]'", "a --- line", "LayerwiseCosineAnnealingLR", "not trained"):
        assert not HIGHER_ROOM.search(text)
