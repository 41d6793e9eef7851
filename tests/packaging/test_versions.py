"""pyproject's ranges are what the two jobs of CI run: the oldest is each floor, the newest lies within."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lr_dist

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Tools, not libraries that lr-dist calls.
TOOLS = {"setuptools"}
EXTRAS = {name: texts for name, texts in PROJECT["optional-dependencies"].items() if name != "docs"}


def requirements() -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(t for extra in EXTRAS.values() for t in extra)]
    found = [Requirement(text) for text in texts]
    return [r for r in found if canonicalize_name(r.name) not in {"lr-dist", *TOOLS}]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    matches = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines if line and not line.startswith("#")]
    assert None not in matches
    return {canonicalize_name(m[1]): Version(m[2]) for m in matches if m}


RANGES = [(canonicalize_name(r.name), r) for r in requirements()]
FLOORS = [(n, s.version) for n, r in RANGES for s in r.specifier if s.operator in (">=", "==")]


def test_every_library_that_lr_dist_calls_has_a_floor() -> None:
    names = {n for n, _ in FLOORS}
    needed = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    for extra, texts in EXTRAS.items():
        if extra not in ("test", "dev"):
            needed |= {canonicalize_name(Requirement(text).name) for text in texts} - {"lr-dist"}
    assert needed - names == set()
    assert len(names) > 20


@pytest.mark.parametrize(("name", "floor"), FLOORS)
def test_the_oldest_job_runs_the_floor(name: str, floor: str) -> None:
    pinned = pins("constraints-oldest.txt")[name]
    # "5" and "2.13" stand for their first release.
    assert pinned == Version(floor)


@pytest.mark.parametrize("job", ["constraints.txt", "constraints-oldest.txt"])
def test_what_a_job_installs_lies_within_the_ranges(job: str) -> None:
    installed = pins(job)
    outside = {n: str(r.specifier) for n, r in RANGES if n in installed and not r.specifier.contains(installed[n])}
    assert outside == {}
    # The oldest job neither lints nor types.
    linting = {"mypy", "ruff", "types-pyyaml"} if job == "constraints-oldest.txt" else set()
    assert {n for n, _ in RANGES} - set(installed) - linting == set()


def test_the_tools_that_build_the_documentation_are_pinned_in_their_ranges() -> None:
    tools = [Requirement(text) for text in PROJECT["optional-dependencies"]["docs"]]
    assert len(tools) == 2
    installed = pins("constraints.txt")
    assert all(tool.specifier.contains(installed[canonicalize_name(tool.name)]) for tool in tools)


def test_lightning_ends_below_the_next_minor_and_optuna_below_the_next_major() -> None:
    newest, ranges = pins("constraints.txt"), dict(RANGES)
    lightning, optuna = newest["lightning"], newest["optuna"]
    assert not ranges["lightning"].specifier.contains(f"{lightning.major}.{lightning.minor + 1}.0")
    assert not ranges["optuna"].specifier.contains(f"{optuna.major + 1}.0.0")


def test_the_jobs_hold_one_torch_and_pytorch_lightning_is_lightning() -> None:
    newest, oldest = pins("constraints.txt"), pins("constraints-oldest.txt")
    assert newest["torch"] == oldest["torch"]
    for job in (newest, oldest):
        assert job["pytorch-lightning"] == job["lightning"]


def test_the_version_is_said_once_and_read_without_importing_torch() -> None:
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assert version("lr-dist") == lr_dist.__version__


def test_the_page_of_versions_tells_every_floor() -> None:
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w-]+) \| (\d[\d.]*) \|", page, flags=re.MULTILINE))
    said = {canonicalize_name(name): Version(floor) for name, floor in rows.items()}
    assert {name: Version(floor) for name, floor in FLOORS} == said
