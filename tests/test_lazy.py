"""Packages whose names are imported when they are first used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

LAZY = ("lr_dist.tasks", "lr_dist.knowledge.amalgamation", "lr_dist.search")


@pytest.mark.parametrize("package", LAZY)
def test_every_name_that_a_package_offers_is_there_and_is_listed(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_importing_the_packages_imports_no_large_library() -> None:
    code = f"import sys, {', '.join(LAZY)}; print(sorted({{'torch', 'optuna', 'datasets'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
