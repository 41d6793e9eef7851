"""Equations as knowledge: what they give, what is refused, and what they bring to a small network."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
import sympy

from lr_dist.errors import EquationError
from lr_dist.knowledge.informed.points import learn_points
from lr_dist.knowledge.prototypes.equations import Equation, read_equation

RANGES = {"length": (0.1, 2.0), "gravity": (3.0, 25.0)}
PENDULUM = "period = 2*pi*sqrt(length/gravity)"


def test_points_have_the_equations_value_and_depend_on_the_seed() -> None:
    equation = Equation.parse(PENDULUM, RANGES)
    points = equation.sample(50, 1)
    length, gravity = points.inputs.T
    assert points.names == ("length", "gravity")
    assert np.allclose(points.values, 2 * np.pi * np.sqrt(length / gravity), rtol=1e-14, atol=0)
    assert ((points.inputs >= [0.1, 3.0]) & (points.inputs <= [2.0, 25.0])).all()
    assert np.array_equal(points.inputs, equation.sample(50, 1).inputs)
    assert not np.array_equal(points.inputs, equation.sample(50, 2).inputs)
    test = points.inputs[:7]
    assert len(equation.sample(50, 1, avoid=test).values) == 43


def test_an_equation_of_sympy_is_solved_for_its_target() -> None:
    length, gravity, period = sympy.symbols("length gravity period", positive=True)
    solved = Equation.from_sympy(sympy.Eq(2 * sympy.Symbol("p"), sympy.Symbol("x") + 1), "p", {"x": (0, 1)})
    assert str(solved.expression) == "x/2 + 1/2"
    with pytest.raises(EquationError, match="2 solutions for p"):
        Equation.from_sympy(sympy.Eq(sympy.Symbol("p") ** 2, sympy.Symbol("x")), "p", {"x": (1, 2)})
    assert length != gravity != period


@pytest.mark.parametrize(
    ("text", "ranges", "message"),
    [
        ("y = log(x)", {"x": (-1, 1)}, "no finite real value"),
        ("y = sqrt(x)", {"x": (-1, 1)}, "no finite real value"),
        ("y = 1/(x - x)", {"x": (0, 1)}, "divides by 0"),
        ("y = exp(1000*x)", {"x": (0.9, 1)}, "is inf at x="),
        ("y = x + log(0)", {"x": (0, 1)}, "no finite value anywhere"),
        ("y = Max(sqrt(0 - 1), x)", {"x": (0, 1)}, "cannot be read"),
        ("y = x + z", {"x": (0, 1)}, "z has no range"),
        ("y = x + y", {"x": (0, 1), "y": (0, 1)}, "y is on both sides"),
        ("y = 3", {}, "no variables"),
        ("y = x", {"x": (1, 0)}, "low < high"),
        ("y = x", {"x": (0, float("inf"))}, "low < high"),
        ("y = (x", {"x": (0, 1)}, "cannot be read"),
        ("x + 1", {"x": (0, 1)}, "NAME = EXPRESSION"),
        ("y = __import__('os').getcwd()", {"x": (0, 1)}, "is not allowed"),
        ("y = x.real", {"x": (0, 1)}, "is not allowed"),
        ("y = (lambda: x)()", {"x": (0, 1)}, "is not allowed"),
        ("y = x if x > 0 else 1", {"x": (0, 1)}, "is not allowed"),
        ("y = x % 2", {"x": (0, 1)}, "only"),
        ("y = 9**9**9 * x", {"x": (0, 1)}, "an exponent is at most 64"),
        ("y = ((9**60)**60)**60 * x", {"x": (0, 1)}, "too large"),
        ("y = sin(x, x)", {"x": (0, 1)}, "takes one argument"),
    ],
)
def test_an_equation_that_does_not_evaluate_is_refused(text: str, ranges: dict, message: str) -> None:
    with pytest.raises(EquationError, match=message):
        Equation.parse(text, ranges).sample(50)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "equation.yaml"
    path.write_text("equation: y = x\n")
    with pytest.raises(EquationError, match="`equation`, a text, and `ranges`"):
        read_equation(str(path))
    path.write_text("equation: y = 2*x^2\nranges: {x: [0, 1]}\n")
    assert read_equation(str(path)).value(np.array([[3.0]])) == 18


def test_with_five_points_a_network_that_knows_the_equation_is_far_better() -> None:
    """The pendulum, three draws: without the equation the error is several times as large, and right after it small."""
    equation = Equation.parse(PENDULUM, RANGES)
    test = equation.sample(500, 99)
    bounds = np.array(list(RANGES.values()))
    errors: dict[str, list[float]] = {"none": [], "informed": []}
    for seed in range(3):
        few = equation.sample(5, 10 + seed, avoid=test.inputs)
        for name, prototypes in (("none", None), ("informed", equation.sample(100, seed, avoid=test.inputs))):
            module = learn_points(
                few,
                prototypes,
                rates="flat:lr=3e-3 | decay:lr=1e-3,factor=0.9",
                ranges=bounds,
                steps=100,
                prototype_steps=150,
                width=16,
                seed=seed,
            )
            errors[name].append(module.error(test))
    assert all(informed < none for informed, none in zip(errors["informed"], errors["none"], strict=True))
    assert statistics.fmean(errors["informed"]) < 0.5 * statistics.fmean(errors["none"])
