"""Optional libraries: checked before work begins, with an error that names the extra to install."""

from __future__ import annotations

from importlib.util import find_spec

from lr_dist.errors import MissingExtraError

# What a whole extra is for; who uses a part of it asks for that with `require_libraries`.
EXTRAS = {
    "tasks": ("transformers", "datasets", "pyarrow", "torchmetrics", "safetensors", "filelock"),
    "report": ("matplotlib", "jinja2", "scipy"),
    "search": ("optuna", "sqlalchemy", "psutil"),
}


def require_extras(*names: str) -> None:
    """Check that every library of these extras is installed, without importing any.

    Raises:
        MissingExtraError: a library is missing; the message names it and the command that installs it.
    """
    for name in names:
        require_libraries(name, *EXTRAS[name])


def require_libraries(extra: str, *modules: str) -> None:
    """Check that these modules are installed, without importing any.

    Args:
        extra: the one extra that brings all of them.
        modules: top-level module names, exactly those that will be used.

    Raises:
        MissingExtraError: a library is missing; the message names it and the command that installs it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f"This needs {', '.join(missing)}, not installed here: pip install 'lr-dist[{extra}]'.")
