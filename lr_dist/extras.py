"""Optional libraries: asked for before work begins, with an error that names the extra to install."""

from __future__ import annotations

from importlib.util import find_spec

from lr_dist.errors import MissingExtraError

EXTRAS = {
    "tasks": ("transformers", "datasets", "torchmetrics", "safetensors", "filelock"),
    "report": ("matplotlib", "jinja2", "scipy"),
    "search": ("optuna", "psutil"),
    "dashboard": ("optuna_dashboard",),
}


def require_extras(*names: str) -> None:
    """Check that every library of these extras is installed, without importing any.

    Raises:
        MissingExtraError: naming the libraries and the command that installs them.
    """
    for name in names:
        missing = [module for module in EXTRAS[name] if find_spec(module) is None]
        if missing:
            raise MissingExtraError(
                f"This needs {', '.join(missing)}, not installed here: pip install 'lr-dist[{name}]'."
            )
