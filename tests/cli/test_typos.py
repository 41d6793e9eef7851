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
    ("task", ["compare", "--tasks", "sst2", "qqq", "--distributions", "flat:lr=1e-4"], "Did you mean qqp?"),
    ("shift", ["compare", "--tasks", "sst2@lenght", "--distributions", "flat:lr=1e-4"], "no shift named 'lenght'"),
    ("queued", ["search", "--tasks", "sst2", "qqp", "--queued", "flt:lr=1e-4"], "Did you mean flat?"),
    ("first", ["search", "--tasks", "sst2", "qqp", "--first", "flt:lr=1e-4"], "Did you mean flat?"),
    ("sequence", ["search", "--sequences", "[[sst2, qqq]]"], "Did you mean qqp?"),
    ("command", ["compar"], "Did you mean compare?"),
    ("option", ["compare", "--taks", "sst2"], "Did you mean --tasks?"),
    ("option within", ["search", "report", "--stoage", "x"], "Did you mean --storage?"),
    ("cut option", ["search", "--mode", "relative"], "There is no option --mode here"),
    ("command within", ["search", "stat"], "Did you mean status?"),
    ("preset's command", ["presets", "shw"], "Did you mean show?"),
    ("choice", ["combine", "x", "--setting", "taskshft"], "Did you mean taskshift?"),
    ("tracker", [*PAIR, "--distributions", "flat:lr=1e-4", "--logger", "wandbb"], "Did you mean wandb?"),
    ("schedule", [*PAIR, "--distributions", "flat:lr=1e-4", "--schedule", "cosin"], "Did you mean cosine?"),
    ("precision", [*PAIR, "--distributions", "flat:lr=1e-4", "--precision", "bf16"], "Did you mean bf16-mixed?"),
    ("method", [*PAIR, "--arms", "flat:lr=1e-4 + ewk:strength=1"], "Did you mean ewc?"),
    ("method's page", ["methods", "ewk"], "Did you mean ewc?"),
    ("layers", ["layers", "--distribution", "flt:lr=1e-4"], "Did you mean flat?"),
    ("plan", ["plan", "flt:lr=1e-4"], "Did you mean flat?"),
    ("plan's schedule", ["plan", "flat:lr=1e-4", "--schedule", "liner"], "Did you mean linear?"),
    ("student's rates", ["amalgamate", "--teachers", "a", "b", "--text", "c", "--rates", "flt:lr=1"], "mean flat?"),
    ("target", ["amalgamate", "--teachers", "a", "b", "--text", "c", "--target", "sof"], "Did you mean soft?"),
    (
        "informed's rates",
        ["informed", "--knowledge", "polarity", "--task", "sst2", "--rates", "flt:lr=1"],
        "mean flat?",
    ),
    ("informed's task", ["informed", "--knowledge", "polarity", "--task", "sst"], "Did you mean sst2?"),
    ("informed's arm", ["informed", "--knowledge", "polarity", "--task", "sst2", "--arms", "mixd"], "mean mixed?"),
    ("kind", ["prototypes", "--knowledge", "everyday", "--kind", "pair"], "Did you mean pairs?"),
    ("recommend's task", ["recommend", "--tasks", "sst", "--examples", "9"], "Did you mean sst2?"),
    ("interpolate's task", ["interpolate", "a", "b", "--tasks", "sst2", "qpq"], "Did you mean qqp?"),
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


def test_the_methods_named_without_torch_are_all_there_are() -> None:
    from lr_dist.cli.early import METHOD_NAMES
    from lr_dist.methods import METHODS

    assert sorted(METHOD_NAMES) == sorted(METHODS)


@pytest.mark.parametrize(("name", "says"), [(name, says) for name, _, says in CASES])
def test_it_is_named_without_torch(answers, name: str, says: str) -> None:
    status, said, torch_loaded = answers[name]
    assert status == 2
    assert says in said
    assert not torch_loaded
