"""Influences of training examples in words: a table in the terminal, and a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lr_dist.runs.atomic import write_text
from lr_dist.runs.pages.figure import PALETTE, css_colour
from lr_dist.runs.pages.render import render

if TYPE_CHECKING:
    from rich.console import RenderableType

_LONGEST = 140


def heading(kind: str, answer: Mapping[str, Any], tasks: Mapping[str, str]) -> str:
    """What was asked and what the model says, in a sentence."""
    if kind == "predictions":
        sure = f" with probability {answer['probability']:.2f}" if "probability" in answer else ""
        return f"{tasks['later']}: predicted {answer['prediction']}{sure}"
    rose = "rose" if answer["loss_after"] > answer["loss_before"] else "fell"
    return (
        f"{tasks['earlier']}: the loss of {answer['label']} {rose} from {answer['loss_before']:.3f} to "
        f"{answer['loss_after']:.3f} while {tasks['later']} was learned"
    )


def verdict(result: Mapping[str, Any]) -> str:
    """What did most, for every question, in words."""
    said = []
    for kind, answer in answers(result):
        if not answer["for"]:
            continue
        first = answer["for"][0]
        example = f"“{cut(first['text'])}” ({first['label']}), mostly through {main_layer(first)}"
        if kind == "predictions":
            said.append(f"That “{cut(answer['text'])}” is {answer['prediction']} rests most on {example}.")
        elif answer["loss_after"] > answer["loss_before"]:
            said.append(f"The forgetting of “{cut(answer['text'])}” came most from {example}.")
    return " ".join(said)


def questions(kind: str, tasks: Mapping[str, str]) -> tuple[str, str]:
    """Titles of the two lists of an answer."""
    if kind == "predictions":
        return (
            f"Examples of {tasks['earlier']} that the prediction rests on",
            f"Examples of {tasks['earlier']} that speak against it",
        )
    return (
        f"Examples of {tasks['later']} that did most to the forgetting",
        f"Examples of {tasks['later']} that helped to keep it",
    )


def answers(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(kind, answer) of all questions, in their order."""
    for kind in ("predictions", "forgetting"):
        for answer in result[kind]:
            yield kind, answer


def influence_view(result: Mapping[str, Any]) -> RenderableType:
    """All answers as one rich renderable."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for kind, answer in answers(result):
        parts += [Text(f"\n{answer['text']}", style="bold"), Text(heading(kind, answer, result["tasks"]))]
        for title, side in zip(questions(kind, result["tasks"]), ("for", "against"), strict=True):
            table = Table(title=title, title_justify="left", title_style="italic")
            table.add_column("", justify="right")
            table.add_column("label")
            table.add_column("example", ratio=1)
            table.add_column("strength", justify="right")
            table.add_column("mostly in")
            for place, entry in enumerate(answer[side], 1):
                table.add_row(
                    str(place),
                    Text(entry["label"]),
                    Text(cut(entry["text"])),
                    f"{entry['strength']:+.0%}",
                    main_layer(entry),
                )
            parts.append(table if answer[side] else Text(f"{title}: none of the candidates."))
    if result.get("removal"):
        table = Table(title=removal_title(result), title_justify="left", title_style="italic")
        for place, name in enumerate(REMOVAL_COLUMNS):
            table.add_column(name, justify="right" if place else "left")
        for row in removal_rows(result):
            table.add_row(*row)
        parts += [Text(""), table]
    return Group(*parts)


REMOVAL_COLUMNS = ("learned without", "p_o", "p_s", "loss on the earlier task")


def removal_title(result: Mapping[str, Any]) -> str:
    """What was left out, and of how many."""
    removal, tasks = result["removal"], result["tasks"]
    draws = len(removal["scores"]["random"])
    return (
        f"{tasks['later']} learned again without {removal['removed']} of {removal['training_examples']} examples, "
        f"{draws} time(s)"
    )


def removal_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Means over the draws, and the difference that is paired by draw."""
    removal = result["removal"]
    names = {"nothing": "nothing", "forgetting-makers": "the forgetting-makers", "random": "random ones"}
    rows = [
        (words, *(f"{fmean(each[key] for each in removal['scores'][name]):.4f}" for key in ("p_o", "p_s", "loss")))
        for name, words in names.items()
    ]
    paired = removal["forgetting-makers minus random"]
    last = [
        f"{paired[key]['mean']:+.4f}"
        + ("" if paired[key]["standard_error"] is None else f" ± {paired[key]['standard_error']:.4f}")
        for key in ("p_o", "p_s", "loss")
    ]
    return [*rows, ("forgetting-makers minus random (± standard error)", *last)]


def cut(text: str) -> str:
    """At most a few lines of a text."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def main_layer(entry: Mapping[str, Any]) -> str:
    """The group of layers with the largest share, and the share."""
    group = max(entry["layers"], key=lambda name: abs(entry["layers"][name]))
    return f"{group} ({abs(entry['layers'][group]):.0%})"


def write_influence_page(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page and return its path.

    Raises:
        MissingExtraError: jinja2 is not installed (extra `report`).
        UnwritableFileError: the page cannot be written.
    """
    groups = list(
        dict.fromkeys(g for _, a in answers(result) for s in ("for", "against") for e in a[s] for g in e["layers"])
    )
    colours = {group: css_colour(PALETTE[place % len(PALETTE)]) for place, group in enumerate(groups)}
    page = render(
        "lr_dist.report",
        "influence.html",
        verdict=verdict(result),
        result=result,
        answers=[
            (answer, heading(kind, answer, result["tasks"]), _lists(kind, answer, result))
            for kind, answer in answers(result)
        ],
        colours=colours,
        removal_title=removal_title(result) if result.get("removal") else "",
        removal_columns=REMOVAL_COLUMNS,
        removal_rows=removal_rows(result) if result.get("removal") else [],
        main_layer=main_layer,
        about=_about(result),
    )
    return write_text(path, page, instead="Give another --output.")


def _lists(kind: str, answer: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, list[Any]]]:
    return [
        (title, answer[side]) for title, side in zip(questions(kind, result["tasks"]), ("for", "against"), strict=True)
    ]


def _about(result: Mapping[str, Any]) -> dict[str, str]:
    """The candidates of each stage, and the time of each part."""
    stages = {
        name: f"{stage['candidates']} of {stage['training_examples'] or '?'}, {len(stage['layers'])} layers; labels "
        f"of the factors: {stage['factors']['labels']}"
        for name, stage in result["stages"].items()
    }
    return stages | {f"seconds, {what}": str(seconds) for what, seconds in result["seconds"].items()}
