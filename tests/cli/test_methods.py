"""What `lr-dist methods` prints."""

from __future__ import annotations

import pytest
from rich.console import Console

from lr_dist.cli import main
from lr_dist.cli.methods import describe, methods_table, written
from lr_dist.errors import ConfigurationError
from lr_dist.methods import METHODS, build_method
from lr_dist.sequence.arm import Arm


@pytest.mark.parametrize("width", [80, 140])
def test_every_method_has_a_line_with_its_settings(width):
    console = Console(width=width, record=True)
    console.print(methods_table(METHODS, wide=width >= 110))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    for method in METHODS.values():
        assert any(line.split()[:1] == [method.name] for line in text.splitlines())
    assert ("1802.01483" in text) == (width == 140)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_what_is_written_there_is_the_method_with_its_defaults(method):
    assert str(build_method(written(method))) == str(build_method(method.name))
    arm = Arm.parse(f"flat:lr=1e-4 + {written(method)}")
    assert [type(each) for each in arm.build_methods()] == [method]
    text = describe(method)
    assert method.info.source in text
    assert ("Args:" in text) == bool(build_method(method.name).settings())


def test_one_method_is_shown_with_its_formula(capsys):
    assert main(["methods", "l2-sp"]) == 0
    printed = capsys.readouterr().out
    assert "alpha / 2 |theta - theta_0|^2" in printed
    assert "written: l2-sp:alpha=0.01,beta=0.0" in printed


def test_an_unknown_name_is_refused_with_the_nearest_one(capsys):
    assert main(["methods", "l2sp"]) != 0
    error = capsys.readouterr().err
    assert ConfigurationError.__name__ in error
    assert "Did you mean l2-sp?" in error
