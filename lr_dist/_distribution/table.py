"""The table of a model's layers: one row each, with its rate, its ratio to the highest, and its share of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lr_dist._distribution.sanity import brief

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class LayerRow:
    """A row of the table.

    Attributes:
        layer: the layer's name.
        parameters: its number of parameters.
        rates: the different rates of its parameter groups; 0 is shown as frozen. Empty if no rates are known.
        starts: when it starts to train, if layers start one after the other.
        names: its parameters' names, if they are to be listed.
    """

    layer: str
    parameters: int
    rates: tuple[float, ...] = ()
    starts: str = ""
    names: tuple[str, ...] = ()


def print_layers(
    rows: Sequence[LayerRow], *, title: str, note: str = "", unit: str = "learning rate", console: Console | None = None
) -> None:
    """Print the rows below `title` and `note`.

    In a terminal too narrow for all columns the share, the ratio and the parameters are left out, in this order.

    Args:
        rows: in the order of depth.
        title: the first line.
        note: the second line: how the rates relate to the optimizer's own.
        unit: the title of the rates' column.
        console: where to print; by default standard output.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    # As Text, because rich would read `[...]` in a distribution or a path as markup.
    console.print(Text(title, style="bold"), soft_wrap=True)
    if note:
        console.print(Text(note), soft_wrap=True)
    columns = _columns(rows, unit)
    for unneeded in ("%", "ratio", "parameters"):
        if _width(columns) <= console.width:
            break
        columns.pop(unneeded, None)
    console.print(_table(rows, columns))
    console.print(Text(_summary(rows), style="dim"))


def _columns(rows: Sequence[LayerRow], unit: str) -> dict[str, list[str]]:
    """Title -> a cell for each row."""
    highest = max((rate for row in rows for rate in row.rates), default=0.0)
    total = sum(row.parameters for row in rows)
    columns = {"layer": [row.layer for row in rows]}
    if any(row.rates for row in rows):
        columns[unit] = [_cell(row.rates) for row in rows]
        columns["ratio"] = [_cell(tuple(r / highest for r in row.rates), frozen="") if highest else "" for row in rows]
    columns["parameters"] = [f"{row.parameters:,}" for row in rows]
    columns["%"] = [_percent(row.parameters, total) for row in rows]
    if any(row.starts for row in rows):
        columns["starts"] = [row.starts for row in rows]
    if any(row.names for row in rows):
        columns["names"] = ["\n".join(row.names) for row in rows]
    return columns


def _width(columns: dict[str, list[str]]) -> int:
    """The number of characters that the columns need; names are wrapped."""
    widest = [0 if title == "names" else max(map(len, (title, *cells))) for title, cells in columns.items()]
    return sum(widest) + 3 * len(widest)


def _table(rows: Sequence[LayerRow], columns: dict[str, list[str]]) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for title in columns:
        left = title in ("layer", "starts", "names")
        table.add_column(title, justify="left" if left else "right", no_wrap=title != "names", overflow="fold")
    for row, *cells in zip(rows, *columns.values(), strict=True):
        frozen = bool(row.rates) and not any(row.rates)
        table.add_row(*map(Text, cells), style="dim" if frozen else "")
    return table


def _cell(rates: tuple[float, ...], frozen: str = "frozen") -> str:
    return " / ".join(brief(rate) if rate else frozen for rate in rates)


def _percent(part: int, total: int) -> str:
    share = 100 * part / total if total else 0.0
    return "<0.1" if 0 < share < 0.05 else f"{share:.1f}"


def _summary(rows: Sequence[LayerRow]) -> str:
    total = sum(row.parameters for row in rows)
    text = f"{total:,} parameters"
    if any(row.rates and not any(row.rates) for row in rows):
        trained = sum(row.parameters for row in rows if any(row.rates))
        text += f", {trained:,} of them ({_percent(trained, total)}%) with a rate"
    return text
