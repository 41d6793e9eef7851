"""The curve of an interpolation between two models: a table and a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lr_dist.runs.numbers import number
from lr_dist.runs.svg import Spot, new_figure, short, to_svg

if TYPE_CHECKING:
    from rich.table import Table

    from lr_dist.sequence.interpolate_models import Interpolated


def interpolation_table(result: Interpolated) -> Table:
    """Scores on validation along alpha, the chosen ones last."""
    from rich.table import Table
    from rich.text import Text

    old, new = result.tasks
    table = Table(title="Scores on validation", title_justify="left")
    table.add_column("alpha", no_wrap=True)
    table.add_column(Text(f"p_o: {old.name}, {old.primary}"), justify="right")
    table.add_column(Text(f"p_s: {new.name}, {new.primary}"), justify="right")
    for alpha, score in result.curve.items():
        name = {0.0: "0 (before)", 1.0: "1 (after)"}.get(alpha, f"{alpha:g}")
        table.add_row(name, number(score.old), number(score.new))
    table.add_section()
    table.add_row("written", number(result.score.old), number(result.score.new), style="bold")
    return table


def alphas_text(result: Interpolated) -> str:
    """What was written, in a line, and why."""
    values = set(result.alphas.values())
    alphas = f"{values.pop():g}" if len(values) == 1 else ", ".join(f"{g} {a:g}" for g, a in result.alphas.items())
    if result.choice is None:
        return f"alpha: {alphas}"
    choice = result.choice
    single, layerwise = choice.checked
    said = f"alpha, chosen by {choice.evaluations} evaluations on a half of dev: {alphas}."
    if single is None or layerwise is None:
        return f"{said} No alphas by depth were better there."
    kept = "are kept" if choice.layerwise else "are not better and are dropped"
    return (
        f"{said} On the other half, one alpha ({choice.single:g}) scores {number(single.old)} / {number(single.new)}, "
        f"alphas by depth {number(layerwise.old)} / {number(layerwise.new)}: these {kept}."
    )


def interpolation_figure(result: Interpolated) -> str:
    """An SVG: p_o against p_s along alpha, and the written alpha over depth."""
    figure = new_figure(9.5, 4.2)
    left, right = figure.subplots(1, 2)
    new = [score.new for score in result.curve.values()]
    old = [score.old for score in result.curve.values()]
    left.plot(new, old, "o-", ms=4, label="one alpha")
    for alpha, score in result.curve.items():
        left.annotate(f"{alpha:g}", (score.new, score.old), xytext=(4, 4), textcoords="offset points", fontsize=7)
    left.plot(result.score.new, result.score.old, "*", ms=13, color="C3", label="written")
    left.set_xlabel(f"p_s: {short(result.tasks[1].name)}, learned last")
    left.set_ylabel(f"p_o: {short(result.tasks[0].name)}, learned before")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    groups = list(result.alphas)
    right.plot(range(len(groups)), list(result.alphas.values()), "o-", color="C3")
    right.set_xticks(range(len(groups)), groups, rotation=90, fontsize=7)
    right.set_ylim(-0.03, 1.03)
    right.set_ylabel("alpha (0: as before, 1: as learned)")
    right.grid(alpha=0.3)
    chosen = f"{number(result.score.old)} on the old task, {number(result.score.new)} on the new one"
    spots = [
        Spot(left, score.new, score.old, f"alpha {alpha:g}: p_o {number(score.old)}, p_s {number(score.new)}")
        for alpha, score in result.curve.items()
    ]
    spots.append(Spot(left, result.score.new, result.score.old, f"written: {chosen}"))
    spots += [Spot(right, x, alpha, f"{group}: {alpha:.3g}") for x, (group, alpha) in enumerate(result.alphas.items())]
    return to_svg(figure, "Interpolation between two models", f"The written weights score {chosen}.", spots=spots)
