"""The types are checked across the border of search/, and found by a project that uses lr-dist."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed (extra dev)")

ROOT = Path(__file__).parents[2]
WRONG = """

def _deliberately_wrong() -> None:
    from lr_dist.distribution import LRDistribution
    from lr_dist.search.engine.storage import default_storage

    default_storage(7)
    LRDistribution.decay(lr="high", factor=0.7)
"""


def mypy(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(cwd / "cache"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=400,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package as it lies in the repository: the folder search/ and the link that leads to it."""
    shutil.copytree(ROOT / "lr_dist", tmp_path / "lr_dist", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    if (tmp_path / "lr_dist" / "search").is_symlink():
        shutil.copytree(ROOT / "search", tmp_path / "search", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_a_wrong_argument_in_search_fails_lint(copy: Path) -> None:
    """As `make lint` runs it, over the part of the package that the changed file needs."""
    changed = copy / "lr_dist" / "search" / "trials" / "objective.py"
    # Libraries are not followed: what they say is not asked here, and reading torch takes half a minute.
    alone = ["--follow-imports=silent", "--no-site-packages", "-m", "lr_dist.search.trials.objective"]
    before = mypy(*alone, cwd=copy)
    assert before.returncode == 0, before.stdout
    changed.write_text(changed.read_text(encoding="utf-8") + WRONG, encoding="utf-8")
    after = mypy(*alone, cwd=copy)
    assert after.returncode == 1
    errors = [line for line in after.stdout.splitlines() if "error:" in line]
    assert len(errors) == 2, after.stdout
    assert 'Argument 1 to "default_storage" has incompatible type "int"' in errors[0]
    assert 'Argument "lr" to "decay"' in errors[1]


def test_make_lint_checks_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that mypy is told to check hold the changed one."""
    monkeypatch.chdir(ROOT)
    from mypy.main import process_options

    sources, options = process_options(["--config-file", str(ROOT / "pyproject.toml")])
    assert {"lr_dist.search.trials.objective", "lr_dist.callback"} <= {source.module for source in sources}
    assert options.disallow_untyped_defs


def test_another_project_sees_the_types_of_an_editable_install(copy: Path, tmp_path: Path) -> None:
    """An editable install of this project is a path in a .pth file; mypy reads it like any other installed package."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "use.py").write_text(
        "from lr_dist import LRDistribution, load_preset\n"
        "from lr_dist.search.engine.storage import default_storage\n"
        "reveal_type(LRDistribution.flat(lr=1e-4).rates(12))\n"
        "reveal_type(load_preset('kenneweg2022'))\n"
        "reveal_type(default_storage('runs'))\n"
        "default_storage(7)\n",
        encoding="utf-8",
    )
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    build = f"import setuptools.build_meta as b; b.build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("lr_dist-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    alone = ["--follow-imports=silent", "--ignore-missing-imports"]
    done = mypy("use.py", *alone, "--python-executable", str(environment / "bin" / "python"), cwd=project)
    lines = done.stdout.splitlines()
    assert [line.partition("Revealed type is ")[2] for line in lines if "Revealed" in line] == [
        '"dict[str, float]"',
        '"lr_dist.distribution.LRDistribution"',
        '"str"',
    ], done.stdout
    assert any('Argument 1 to "default_storage" has incompatible type "int"' in line for line in lines)
