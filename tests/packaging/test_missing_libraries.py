"""What a command says where a library is not installed: the one extra that brings it, and only what it uses."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lr_dist import __version__

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TRIALS = ROOT / "configs" / "evidence" / "search" / "sst2-qqp-knots.csv"
RESULT = ROOT / "configs" / "evidence" / "glue-first-result.json"
OPTIONAL = (
    *("transformers", "datasets", "pyarrow", "torchmetrics", "safetensors", "filelock", "tokenizers"),
    *("matplotlib", "jinja2", "scipy", "optuna", "sqlalchemy", "psutil", "optuna_dashboard", "accelerate"),
    *("grpc", "psycopg", "peft", "sentence_transformers", "pandas"),
)
PACKAGE_OF = {"optuna_dashboard": "optuna-dashboard"}


def python(code: str, *hidden: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which the hidden modules cannot be found."""
    blocker = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(hidden)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
import importlib.util
found = importlib.util.find_spec
hidden = {set(hidden)!r}
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in hidden else found(name, package)
sys.meta_path.insert(0, Hidden())
"""
    return subprocess.run([sys.executable, "-c", blocker + code], capture_output=True, text=True, timeout=120)


def command(*arguments: str, hidden: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return python(f"from lr_dist.cli import main; sys.exit(main({list(arguments)!r}))", *hidden)


def brings(extra: str) -> set[str]:
    """The packages that an extra installs, those of the extras that it names included."""
    found: set[str] = set()
    for requirement in map(Requirement, EXTRAS[extra]):
        if canonicalize_name(requirement.name) == "lr-dist":
            found |= set().union(*map(brings, requirement.extras))
        else:
            found.add(canonicalize_name(requirement.name))
    return found


# The command, the modules that it uses, the extra that its error names.
USES = {
    "layers": (["layers", "--model", "{model}"], ("transformers",), "models"),
    "presets plot": (
        ["presets", "plot", "kenneweg2022", "--output-file", "{tmp}/rates.png"],
        ("matplotlib",),
        "report",
    ),
    "report": (
        ["report", "{result}", "--output-file", "{tmp}/report.html"],
        ("jinja2", "matplotlib", "scipy"),
        "report",
    ),
    "report --against": (["report", "{result}", "--against", "flat:lr=2e-5"], ("scipy",), "report"),
    "search status": (["search", "status", "--output", "{study}"], ("optuna", "sqlalchemy"), "search"),
    "search export": (
        ["search", "export", "--output", "{study}", "--csv", "{tmp}/trials.csv"],
        ("optuna", "sqlalchemy"),
        "search",
    ),
    "search report": (
        ["search", "report", "--output", "{study}", "--output-file", "{tmp}/report.html"],
        ("optuna", "sqlalchemy", "jinja2", "matplotlib", "scipy"),
        "search",
    ),
    "combine": (["combine", "{trials}"], ("optuna",), "search"),
    "dashboard": (
        ["dashboard", "--output", "{study}", "--port", "-1"],
        ("optuna", "sqlalchemy", "optuna_dashboard"),
        "dashboard",
    ),
}
# What the libraries that are used bring along.
TOGETHER = {
    "transformers": ("tokenizers", "safetensors", "filelock"),
    "optuna_dashboard": ("sqlalchemy",),
}


@pytest.fixture(scope="module")
def places(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, a result, trials, and a folder with a study of no trials."""
    import optuna

    folder = tmp_path_factory.mktemp("study")
    storage = f"sqlite:///{folder}/study.db"
    optuna.create_study(study_name="other", storage=storage)
    return {"model": tiny_model, "result": str(RESULT), "trials": str(TRIALS), "study": str(folder)}


def filled(arguments: list[str], places: dict[str, str], tmp_path: Path) -> list[str]:
    return [argument.format(**places, tmp=tmp_path) for argument in arguments]


@pytest.mark.parametrize("name", USES)
def test_a_command_names_the_extra_that_brings_what_it_lacks(name: str, places: dict[str, str], tmp_path: Path) -> None:
    arguments, uses, extra = USES[name]
    first = [module for module in uses if module != "sqlalchemy"]
    done = command(*filled(arguments, places, tmp_path), hidden=OPTIONAL)
    assert done.returncode == 2, done.stderr
    assert f"This needs {', '.join(first)}, not installed here: pip install 'lr-dist[{extra}]'." in done.stderr
    assert "Traceback" not in done.stderr
    assert {canonicalize_name(PACKAGE_OF.get(module, module)) for module in first} <= brings(extra)


@pytest.mark.parametrize("name", USES)
def test_a_command_needs_no_more_than_what_it_names(name: str, places: dict[str, str], tmp_path: Path) -> None:
    arguments, uses, _ = USES[name]
    needed = {*uses, *(module for use in uses for module in TOGETHER.get(use, ()))}
    hidden = tuple(module for module in OPTIONAL if module not in needed)
    done = command(*filled(arguments, places, tmp_path), hidden=hidden)
    assert "not installed" not in done.stderr
    assert "No module named" not in done.stderr
    # The study of that name is not there, and the port is none: both are found after everything was imported.
    expected = {"search status": 2, "search export": 2, "search report": 2, "dashboard": 2}
    assert done.returncode == expected.get(name, 0), done.stderr


def test_without_accelerate_the_package_can_be_looked_at_and_all_but_the_mixin_used() -> None:
    code = """
import inspect
import lr_dist
assert not hasattr(lr_dist, "LayerwiseTrainerMixin")
assert getattr(lr_dist, "LayerwiseTrainerMixin", None) is None
members = dict(inspect.getmembers(lr_dist))
assert "LayerwiseLR" in members and "LayerwiseTrainerMixin" not in members
try:
    lr_dist.LayerwiseTrainerMixin
except AttributeError as error:
    print(error)
names = {}
exec("from lr_dist import *", names)
assert "LayerwiseLR" in names and "LayerwiseTrainerMixin" not in names
try:
    from lr_dist import LayerwiseTrainerMixin
except ImportError as error:
    print(type(error).__name__, error)
try:
    import lr_dist.huggingface
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = python(code, "accelerate")
    assert done.returncode == 0, done.stderr
    said = "This needs accelerate, not installed here: pip install 'lr-dist[huggingface]'."
    assert done.stdout.splitlines() == [
        f"lr_dist.LayerwiseTrainerMixin: {said}",
        f"MissingExtraError {said}",
        f"MissingExtraError {said}",
    ]


def test_with_accelerate_the_star_brings_the_mixin() -> None:
    done = python("from lr_dist import *; print(LayerwiseTrainerMixin.__name__, LRDistribution.__name__)")
    assert done.stdout.split() == ["LayerwiseTrainerMixin", "LRDistribution"]


def test_python_m_lr_dist_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lr_dist", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert __version__ in done.stdout
