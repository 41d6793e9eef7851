"""Prototypes from equations: points that are sampled in given ranges, each with the equation's value."""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lr_dist.checks import check_whole, is_number
from lr_dist.errors import EquationError, shown
from lr_dist.extras import require_libraries
from lr_dist.knowledge.prototypes.files import read_text
from lr_dist.reading import expanded
from lr_dist.yaml_io import parse_yaml

if TYPE_CHECKING:
    import sympy

FUNCTIONS = (
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
    *("exp", "log", "sqrt", "Abs", "Min", "Max"),
)
CONSTANTS = ("pi", "E")
KEYS = ("equation", "ranges")
# Numbers and powers as an equation needs them; 9**9**9 would not end.
_MOST_NODES, _MOST_EXPONENT = 500, 64


@dataclass(frozen=True)
class Points:
    """Sampled points.

    Attributes:
        inputs: float64 [points, variables], columns in the order of `names`.
        values: float64 [points].
        names: the variables.
    """

    inputs: NDArray[np.float64]
    values: NDArray[np.float64]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Equation:
    """A value as a function of variables in ranges.

    Args:
        target: name of the value.
        expression: the right side, of sympy.
        ranges: variable -> (low, high), for every variable of the expression; others are inputs without an effect.

    Raises:
        EquationError: a variable without a range, a range that is not low < high, the target on the right side.
    """

    target: str
    expression: sympy.Expr
    ranges: Mapping[str, tuple[float, float]]
    _function: Callable[..., Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_libraries("knowledge", "sympy")
        import sympy

        if self.expression.has(sympy.zoo, sympy.oo, -sympy.oo, sympy.nan):
            raise EquationError(f"{self} has no finite value anywhere. Correct the equation.")
        needed = {str(symbol) for symbol in self.expression.free_symbols}
        if self.target in needed:
            raise EquationError(f"{self}: {self.target} is on both sides. Solve the equation for it first.")
        missing = sorted(needed - set(self.ranges))
        if missing:
            raise EquationError(f"{self}: {', '.join(missing)} has no range. Give one, such as {missing[0]}: [0, 1].")
        if not self.ranges:
            raise EquationError(f"{self} has no variables, so there is nothing to sample. Give ranges.")
        for name, bounds in self.ranges.items():
            valid = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(is_number, bounds))
            if not valid or not -math.inf < bounds[0] < bounds[1] < math.inf:
                raise EquationError(f"The range of {name} must be two numbers, low < high, not {shown(bounds)}.")
        symbols = [sympy.Symbol(name) for name in self.ranges]
        object.__setattr__(self, "_function", sympy.lambdify(symbols, self.expression, "numpy"))

    def __str__(self) -> str:
        return f"{self.target} = {self.expression}"

    @classmethod
    def parse(cls, text: str, ranges: Mapping[str, tuple[float, float]]) -> Equation:
        """From a text such as `period = 2*pi*sqrt(length/9.81)`; `^` is a power, as `**`.

        Names, numbers, + - * / **, and the functions in `FUNCTIONS` are read; nothing is executed.

        Raises:
            EquationError: it cannot be read.
        """
        require_libraries("knowledge", "sympy")
        left, sign, right = text.partition("=")
        target = left.strip()
        if not sign or not _is_name(target):
            raise EquationError(f"{shown(text)} must be NAME = EXPRESSION, e.g. period = 2*pi*sqrt(length/9.81).")
        wrong = [name for name in ranges if not isinstance(name, str) or not _is_name(name)]
        if wrong:
            raise EquationError(f"{shown(wrong[0])} is no name of a variable. Use letters, digits and _.")
        return cls(target, _expression(right.strip(), text), dict(ranges))

    @classmethod
    def from_sympy(cls, equation: sympy.Eq, target: str, ranges: Mapping[str, tuple[float, float]]) -> Equation:
        """From an equation of sympy, solved for the target.

        Raises:
            EquationError: it has no solution for the target, or several.
        """
        require_libraries("knowledge", "sympy")
        import sympy

        solutions = sympy.solve(equation, sympy.Symbol(target))
        if len(solutions) != 1:
            raise EquationError(
                f"{equation} has {len(solutions)} solutions for {target}: {shown(solutions)}. Give one of them as "
                f"sympy.Eq({target}, ...)."
            )
        return cls(target, solutions[0], dict(ranges))

    def value(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values at points [points, variables], in the order of the ranges.

        Raises:
            EquationError: somewhere it has no finite real value.
        """
        with np.errstate(all="ignore"):
            try:
                values = np.broadcast_to(np.asarray(self._function(*inputs.T)), len(inputs))
                finite = np.isfinite(values) & np.isreal(values)
            except (TypeError, ValueError, NameError, AttributeError, OverflowError, ZeroDivisionError) as error:
                raise EquationError(f"{self} cannot be evaluated: {error}.") from error
        if not finite.all():
            place = int(np.flatnonzero(~finite)[0])
            where = ", ".join(f"{name}={value:.6g}" for name, value in zip(self.ranges, inputs[place], strict=True))
            raise EquationError(
                f"{self} is {values[place]} at {where}; {int((~finite).sum())} of {len(inputs)} points have no finite "
                "real value. Narrow the ranges."
            )
        return np.array(values.real, dtype=np.float64)

    def sample(self, count: int, seed: int = 0, *, avoid: NDArray[np.float64] | None = None) -> Points:
        """Points drawn uniformly in the ranges.

        Args:
            count: number of points.
            seed: of the draw.
            avoid: test points [points, variables]; none of them is drawn.

        Raises:
            EquationError: the equation has no finite real value at one of them.
        """
        check_whole("count", count, 1, error=EquationError)
        low, high = np.array(list(self.ranges.values()), dtype=np.float64).T
        rng = np.random.default_rng(seed)
        inputs = low + (high - low) * rng.random((count, len(low)))
        if avoid is not None:
            tested = {row.tobytes() for row in np.ascontiguousarray(avoid, dtype=np.float64)}
            inputs = np.array([row for row in inputs if row.tobytes() not in tested]).reshape(-1, len(low))
        return Points(inputs, self.value(inputs), tuple(self.ranges))


def read_equation(path: str) -> Equation:
    """Read a YAML file with `equation` (a text) and `ranges` (variable: [low, high]).

    Raises:
        EquationError: another shape, or an equation that cannot be read.
        UnreadableFileError, InvalidYAMLError: the file cannot be read.
    """
    data = parse_yaml(read_text(expanded(path)), source=path)
    if not isinstance(data, dict) or set(data) != set(KEYS) or not isinstance(data["equation"], str):
        raise EquationError(f"{path} must be a mapping with `equation`, a text, and `ranges`, not {shown(data)}.")
    if not isinstance(data["ranges"], dict):
        raise EquationError(f"{path}: ranges must map variables to [low, high], not {shown(data['ranges'])}.")
    return Equation.parse(data["equation"], data["ranges"])


def _is_name(text: str) -> bool:
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text) and not text.startswith("_")


def _expression(text: str, whole: str) -> sympy.Expr:
    """sympy's own parser executes the text as Python, so it is not used."""
    try:
        tree = ast.parse(text.replace("^", "**"), mode="eval").body
        if sum(1 for _ in ast.walk(tree)) > _MOST_NODES:
            raise EquationError(f"{shown(whole)} has more than {_MOST_NODES} parts. Shorten it.")
        return _built(tree, whole)
    except (SyntaxError, RecursionError, MemoryError, ValueError, TypeError, ArithmeticError) as error:
        if isinstance(error, EquationError):
            raise
        raise EquationError(f"{shown(whole)} cannot be read: {error}.") from error


def _built(node: ast.AST, whole: str) -> Any:
    import sympy

    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return sympy.Integer(number) if isinstance(number, int) else sympy.Float(number)
        case ast.Name(id=name) if name in CONSTANTS:
            return getattr(sympy, name)
        case ast.Name(id=name) if _is_name(name) and name not in FUNCTIONS:
            return sympy.Symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_built(operand, whole)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _built(operand, whole)
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(_built(left, whole), op, _built(right, whole), whole)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS and arguments:
            if len(arguments) != 1 and name not in ("Min", "Max"):
                raise EquationError(f"{shown(whole)}: {name} takes one argument, not {len(arguments)}.")
            return getattr(sympy, name)(*(_built(argument, whole) for argument in arguments))
    part = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
    raise EquationError(
        f"{shown(whole)}: {shown(part)} is not allowed. Use numbers, names, + - * / **, {', '.join(CONSTANTS)} and "
        f"{', '.join(FUNCTIONS)}."
    )


def _combined(left: Any, op: ast.operator, right: Any, whole: str) -> Any:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            if right == 0:
                raise EquationError(f"{shown(whole)} divides by 0.")
            return left / right
        case ast.Pow():
            if _as_float(right) > _MOST_EXPONENT:
                raise EquationError(f"{shown(whole)}: an exponent is at most {_MOST_EXPONENT}, not {right}.")
            too_large = left.is_number and left != 0 and abs(math.log10(abs(complex(left)))) * _as_float(right) > 300
            if too_large:
                raise EquationError(f"{shown(whole)}: {left}**{right} is too large for a number.")
            return left**right
    raise EquationError(f"{shown(whole)}: only + - * / and ** are allowed.")


def _as_float(exponent: Any) -> float:
    """Its absolute value; 1 for what is not a number."""
    return abs(complex(exponent)) if exponent.is_number else 1.0
