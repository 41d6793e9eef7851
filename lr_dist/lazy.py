"""Names of a package that are imported when they are first used, so that importing the package stays cheap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, places: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package (PEP 562).

        __getattr__, __dir__ = lazy_names(__name__, {"tokens": ("TokenSplit", "tokenize_task")})

    Type checkers and readers find the names in imports under TYPE_CHECKING.

    Args:
        package: the package's `__name__`.
        places: module within the package -> the names that it offers.
    """
    module_of = {name: f"{package}.{module}" for module, names in places.items() for name in names}

    def getattr_(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module_of[name]), name)

    def dir_() -> list[str]:
        return sorted(module_of)

    return getattr_, dir_
