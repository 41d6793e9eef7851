"""The source distribution and the wheel made of it, alone: no file of the repository can stand in for a missing one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = {".gitignore"}


def repository() -> set[str]:
    """The files that belong to it, those not yet committed included; without git, as in an unpacked sdist, all."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


def hook(name: str, project: Path, output: Path) -> Path:
    """Build by setuptools' own hook, as pip does, with the setuptools of this environment."""
    code = f"import setuptools.build_meta as b, sys; print('BUILT', b.{name}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(output)], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output / done.stdout.rpartition("BUILT ")[2].strip()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of the repository; its path."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "copy"
    for name in repository():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    assert (copy / "lr_dist" / "search").is_symlink()
    return hook("build_sdist", copy, folder)


@pytest.fixture(scope="module")
def unpacked(sdist: Path) -> Path:
    """The source distribution's folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent / "unpacked", filter="data")
    (folder,) = (sdist.parent / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """The wheel made of the source distribution."""
    return hook("build_wheel", unpacked, unpacked.parent)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_holds_every_file_of_the_repository(unpacked: Path) -> None:
    expected = {re.sub("^search/", "lr_dist/search/", name) for name in repository()}
    expected -= {"lr_dist/search", *NOT_SHIPPED}
    assert expected - files(unpacked) == set()
    # A folder there, not a link: it can be unpacked where there are no links.
    assert not (unpacked / "lr_dist" / "search").is_symlink()


def test_the_wheel_holds_the_package_once_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert len(names) == len(set(names))
    expected = {re.sub("^search/", "lr_dist/search/", n) for n in repository() if n.startswith(("lr_dist/", "search/"))}
    assert set(names) == expected - {"lr_dist/search"}
    assert "lr_dist/py.typed" in names


def test_the_readme_of_the_wheel_has_no_link_that_leads_nowhere_on_a_package_index(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata, _, page = archive.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in metadata
    assert "Author: lr-dist maintainers" in metadata
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert "Fine-tune transformers without forgetting" in page
    # Nothing was lost: a link's words stay, and say which file they mean.
    assert "what else transformers can build (`docs/architectures.md`)" in page


def test_every_room_of_the_installed_wheel_is_imported(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = f"""
import pkgutil, sys
# An editable install would lend its own rooms.
sys.path[:] = [{str(target)!r}] + [p for p in sys.path if p not in ("", {str(ROOT)!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import lr_dist
def failed(name):
    raise
found = pkgutil.walk_packages(lr_dist.__path__, "lr_dist.", onerror=failed)
names = [module.name for module in found if not module.name.endswith("__main__")]
for name in names:
    __import__(name)
outside = [name for name, module in sys.modules.items() if name.partition(".")[0] == "lr_dist"
           and not (module.__file__ or "").startswith({str(target)!r})]
assert outside == [], outside
from lr_dist import load_preset
load_preset("kenneweg2022")
print("\\n".join(names))
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rooms = set(done.stdout.split())
    paths = {re.sub("^search/", "lr_dist/search/", n) for n in repository() if n.startswith(("lr_dist/", "search/"))}
    modules = {re.sub(r"(/__init__)?\.py$", "", n).replace("/", ".") for n in paths if n.endswith(".py")}
    assert rooms == {m for m in modules if not m.endswith("__main__")} - {"lr_dist"}


def test_the_tests_of_the_source_distribution_run_where_it_is_unpacked(unpacked: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    tests = ["tests/test_groups.py", "tests/cli/test_presets.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=unpacked,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
