"""The result of `lr-dist amalgamate` as a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from lr_dist.runs.atomic import write_text
from lr_dist.runs.numbers import number
from lr_dist.runs.pages.figure import PALETTE, page_figure
from lr_dist.runs.pages.render import render
from lr_dist.runs.svg import Spot, new_figure
from lr_dist.sequence.environment import versions_text

# So many labels of a teacher are named in the table.
_MOST = 12


def write_amalgamation_page(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page and return its path.

    Args:
        result: content of `amalgamation.json`.
        path: of the page.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed (extra `report`).
        UnwritableFileError: the page cannot be written.
    """
    settings = dict(result["config"])
    html = render(
        "lr_dist.report",
        "amalgamation.html",
        verdict=verdict(result),
        result=result,
        folder=str(Path(path).parent),
        teachers=[_row(each) for each in result["teachers"]],
        losses=losses_figure(result),
        config={**settings.pop("settings"), **settings},
        about=_about(result),
    )
    return write_text(path, html, instead="Give another --output.")


def verdict(result: Mapping[str, Any]) -> str:
    """What the student knows, and how near it comes to its target."""
    training, agreement = result["training"], result["agreement"]
    said = f"One student for {len(result['labels'])} labels of {len(result['teachers'])} teachers."
    if agreement is not None:
        said += (
            f" It gives the same label as the teachers' combined answer to {agreement:.1%} of {result['held_out']:,} "
            "held-out texts."
        )
    if training["best"] == len(training["losses"]):
        said += " The last epoch was the best: more epochs may help."
    return said + " Whether the labels are right is not measured: the texts have none."


def losses_figure(result: Mapping[str, Any]) -> str:
    """The loss on the held-out texts after each epoch."""
    losses = result["training"]["losses"]
    figure = new_figure(8.0, 3.2)
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, "-o", ms=4, color=PALETTE[0], label="held-out loss")
    best = result["training"]["best"]
    axes.plot([best], [losses[best - 1]], "*", ls="", ms=13, color=PALETTE[1], label=f"kept: epoch {best}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.set_xticks(range(1, len(losses) + 1))
    axes.grid(alpha=0.3)
    spots = [Spot(axes, epoch, loss, f"epoch {epoch}: {loss:.4f}") for epoch, loss in enumerate(losses, 1)]
    return page_figure(figure, "Loss on held-out texts by epoch", spots=spots)


def _row(teacher: Mapping[str, Any]) -> tuple[str, ...]:
    labels = list(teacher["labels"])
    more = f" and {len(labels) - _MOST} more" if len(labels) > _MOST else ""
    return (
        PurePath(teacher["name"]).name,
        f"{len(labels)}",
        ", ".join(labels[:_MOST]) + more,
        number(teacher["mean_certainty"]),
        f"{teacher['most_certain']:.0%}",
        f"{teacher['seconds']:.0f}",
    )


def _about(result: Mapping[str, Any]) -> dict[str, Any]:
    environment = {key: value for key, value in result["environment"].items() if key != "versions"}
    teachers = {
        f"teacher {place}": f"{each['name']} ({each['fingerprint'][:16]})" if "fingerprint" in each else each["name"]
        for place, each in enumerate(result["teachers"], 1)
    }
    student = f"{result['student']['name']} ({result['student']['fingerprint'][:16]})"
    trained = {key: value for key, value in result["training"].items() if key != "losses"}
    return {
        **teachers,
        "student before": student,
        **trained,
        **environment,
        "versions": versions_text(result["environment"]),
    }
