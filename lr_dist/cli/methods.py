"""`lr-dist methods`: the methods against forgetting, with what each needs and how it is written."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from rich.table import Table

    from lr_dist.methods import Method


def parser() -> ArgumentParser:
    """The command's options."""
    p = ArgumentParser(
        description="List the methods against forgetting that arms, searches and your own Trainer can use. With a "
        "NAME, show one with its formula, settings and source."
    )
    p.add_argument("name", type=str, nargs="?", help="A method's name, e.g. l2-sp.")
    return p


def run(settings: Namespace) -> int:
    """Print the table, or one method's documentation."""
    from lr_dist.cli.early import check_method
    from lr_dist.cli.terminal import terminal

    if settings.name is not None:
        check_method(settings.name)
    from lr_dist.methods import METHODS

    console = terminal()
    if settings.name is None:
        console.print(methods_table(METHODS, wide=console.width >= 110))
        return 0
    console.print(describe(METHODS[settings.name]), markup=False, highlight=False, soft_wrap=True)
    return 0


def methods_table(methods: dict[str, type[Method]], *, wide: bool = True) -> Table:
    """A line for each method."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="An arm: 'flat:lr=1e-4 + NAME:key=value,...'. FSDP1 and DeepSpeed are refused. `lr-dist methods NAME` "
        "shows one.",
        caption_justify="left",
    )
    for title in ("method", "what it does", *(("stores", "examples", "FSDP2", "source") if wide else ("stores",))):
        table.add_column(title, overflow="fold")
    for method in methods.values():
        info = method.info
        cells = [f"[bold]{method.name}[/bold]\n[dim]{escape(written(method))}[/dim]", escape(info.summary), info.stores]
        if wide:
            # Lightning's other strategies: one device, DDP.
            cells += ["earlier tasks'" if info.earlier_data else "-", "yes" if info.fsdp2 else "no", info.source]
        table.add_row(*cells)
    return table


def written(method: type[Method]) -> str:
    """The text form with the defaults; a setting without one as its name in capitals, one that is empty left out."""
    values = []
    for name, parameter in inspect.signature(method.__init__).parameters.items():
        if name == "self" or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.default == "":
            continue
        values.append(f"{name}={name.upper() if parameter.default is parameter.empty else parameter.default}")
    return f"{method.name}:{','.join(values)}" if values else method.name


def describe(method: type[Method]) -> str:
    """What the table says, and the documentation."""
    info = method.info
    lines = [
        f"{method.name}: {info.summary}",
        f"written: {written(method)}",
        f"class: lr_dist.methods.{method.__name__}",
        f"source: {info.source}",
        f"stores: {info.stores}",
        f"keeps examples of earlier tasks: {'yes' if info.earlier_data else 'no'}",
        f"strategies: one device, DDP{', FSDP2' if info.fsdp2 else ''}",
    ]
    return "\n".join([*lines, "", inspect.getdoc(method) or ""])
