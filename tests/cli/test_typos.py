"""A typing error is answered before torch is loaded, with what was probably meant."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PAIR = ["compare", "--tasks", "sst2", "qqp"]
CASES: list[tuple[str, list[str], str]] = [
    ("number", [*PAIR, "--distributions", "flat:lr=1e-4x"], "'1e-4x' is not a finite number"),
    ("family", [*PAIR, "--distributions", "fat:lr=1e-4"], "Did you mean flat?"),
    ("arm", [*PAIR, "--arms", "flat:lr=1e-4 | dcay:lr=1e-4 + ewc"], "Did you mean decay?"),
    ("preset", [*PAIR, "--distributions", "kennweg2022"], "kenneweg2022"),
    ("task", ["compare", "--tasks", "sst2", "qqq", "--distributions", "flat:lr=1e-4"], "Did you mean 'qqp'?"),
    ("shift", ["compare", "--tasks", "sst2@lenght", "--distributions", "flat:lr=1e-4"], "no shift named 'lenght'"),
    ("queued", ["search", "--tasks", "sst2", "qqp", "--queued", "flt:lr=1e-4"], "Did you mean flat?"),
    ("first", ["search", "--tasks", "sst2", "qqp", "--first", "flt:lr=1e-4"], "Did you mean flat?"),
    ("sequence", ["search", "--sequences", "[[sst2, qqq]]"], "Did you mean 'qqp'?"),
    ("command", ["compar"], "Did you mean compare?"),
    ("option", ["compare", "--taks", "sst2"], "Did you mean --tasks?"),
]
PROGRAM = """
import contextlib, io, json, sys
from lr_dist.cli import main
seen = []
for arguments in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = main(arguments)
        except SystemExit as error:
            status = error.code
    seen.append([status, said.getvalue(), "torch" in sys.modules])
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str, bool]]:
    """All cases, one after the other, in one process that has not loaded torch."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([arguments for _, arguments, _ in CASES])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    seen = json.loads(done.stdout.splitlines()[-1])
    return {name: tuple(answer) for (name, _, _), answer in zip(CASES, seen, strict=True)}


@pytest.mark.parametrize(("name", "says"), [(name, says) for name, _, says in CASES])
def test_it_is_named_without_torch(answers, name: str, says: str) -> None:
    status, said, torch_loaded = answers[name]
    assert status == 2
    assert says in said
    assert not torch_loaded
