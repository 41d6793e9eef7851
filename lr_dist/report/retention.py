"""The result of `lr-dist retention` as a self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lr_dist.runs.atomic import write_text
from lr_dist.runs.pages.figure import PALETTE, page_figure
from lr_dist.runs.pages.render import render
from lr_dist.runs.svg import Spot, new_figure
from lr_dist.sequence.environment import versions_text

_HEADS = {"frozen": "the old head", "refitted": "a refitted head"}


def write_retention_page(result: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page and return its path.

    Args:
        result: content of `retention.json`.
        path: of the page.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed (extra `report`).
        UnwritableFileError: the page cannot be written.
    """
    parts = result["retention"]
    scored, layers = result["text"]["scored"], result.get("layers") or {}
    html = render(
        "lr_dist.report",
        "retention.html",
        verdict=verdict(result),
        result=result,
        scored=f"{scored['texts']:,} texts ({scored['tokens']:,} tokens)",
        header=("head", *parts_of(result)),
        rows=[
            (_HEADS.get(head, head), *(value_text(parts[part][head]) for part in parts_of(result)))
            for head in parts["before"]
        ],
        heads=heads_figure(result),
        layers=layers_figure(layers) if layers else "",
        layer_rows=[(layer, _digits(values["drift"]), _digits(values["cka"])) for layer, values in layers.items()],
        about=_about(result),
    )
    return write_text(path, html, instead="Give another --output.")


def parts_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What was measured: before, and after and lost if there was a model after."""
    return tuple(part for part in ("before", "after", "lost") if part in result["retention"])


def value_text(value: Mapping[str, Any]) -> str:
    """A mean with its standard error: `-2.590 ± 0.047`."""
    return f"{value['mean']:.3f}" + ("" if value["error"] is None else f" ± {value['error']:.3f}")


def verdict(result: Mapping[str, Any]) -> str:
    """What was lost for good and what only moved, in words."""
    quality = result["head"]
    doubt = "" if quality["beats_unigram"] else " The head does not beat a unigram clearly: fit it on more text."
    lost = result["retention"].get("lost")
    if lost is None:
        return f"Only the model before was measured; give the fine-tuned model with --after.{doubt}"
    frozen = lost["frozen"]["mean"]
    if "refitted" not in lost:
        return (
            f"{value_text(lost['frozen'])} nats a token are lost. No text was left to refit a head on, so what only "
            f"moved within the model counts as lost.{doubt}"
        )
    refitted = lost["refitted"]
    error = refitted["error"]
    clear = "" if error is None or abs(refitted["mean"]) > 2 * error else ", within two standard errors of 0"
    return (
        f"Lost for good: {value_text(refitted)} nats a token{clear}. Only moved, so that a refitted head finds it "
        f"again: {frozen - refitted['mean']:.3f}.{doubt}"
    )


def heads_figure(result: Mapping[str, Any]) -> str:
    """The log marginal likelihood before and after, with each head."""
    parts = [part for part in parts_of(result) if part != "lost"]
    heads = list(result["retention"]["before"])
    figure = new_figure(8.0, 0.9 + 0.5 * len(heads) * len(parts))
    axes = figure.subplots()
    spots, names = [], []
    for index, part in enumerate(parts):
        values = [result["retention"][part][head] for head in heads]
        places = [len(parts) * number + index for number in range(len(heads))]
        for place, head, value in zip(places, heads, values, strict=True):
            names.append((place, f"{part}, {_HEADS.get(head, head)}"))
            spots.append(Spot(axes, value["mean"], place, f"{names[-1][1]}: {value_text(value)} nats a token"))
        axes.errorbar(
            [value["mean"] for value in values],
            places,
            xerr=[value["error"] or 0.0 for value in values],
            fmt="o",
            ms=6,
            lw=1,
            color=PALETTE[index],
        )
    names.sort()
    axes.set_yticks([place for place, _ in names], [name for _, name in names], fontsize=8)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.invert_yaxis()
    axes.set_xlabel("log marginal likelihood, nats a token")
    axes.grid(alpha=0.3)
    return page_figure(figure, "Before and after", verdict(result), spots=spots)


def layers_figure(layers: Mapping[str, Mapping[str, float | None]]) -> str:
    """How far each layer's weights went, and how much of what it computes has changed."""
    figure = new_figure(8.0, 3.2)
    panels = figure.subplots(1, 2)
    spots = []
    for axes, key, name, colour in zip(
        panels, ("drift", "cka"), ("drift of the weights", "CKA of the hidden states"), PALETTE, strict=False
    ):
        known = [(x, layer, values[key]) for x, (layer, values) in enumerate(layers.items())]
        drawn = [(x, layer, value) for x, layer, value in known if value is not None]
        axes.plot([x for x, _, _ in drawn], [value for _, _, value in drawn], "-o", ms=4, color=colour)
        spots += [Spot(axes, x, value, f"{layer}: {name} {value:.3f}") for x, layer, value in drawn]
        axes.set_xticks(range(len(layers)), [layer.removeprefix("layers.") for layer in layers], fontsize=7)
        axes.set_xlabel("depth (layer)")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    return page_figure(figure, "Layer by layer", spots=spots)


def _digits(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _about(result: Mapping[str, Any]) -> dict[str, Any]:
    models = {name: result[key] for name, key in (("model before", "model"), ("model after", "after")) if key in result}
    environment = {key: value for key, value in result["environment"].items() if key != "versions"}
    precision = environment.pop("precision", {}).get("chosen", "")
    return {
        **{name: f"{model['name']} ({model['fingerprint'][:16]})" for name, model in models.items()},
        **{f"text {name}": f"{text['texts']:,} texts, {text['fingerprint'][:16]}" for name, text in _texts(result)},
        "precision": precision,
        **environment,
        "versions": versions_text(result["environment"]),
    }


def _texts(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (name, text) for name, text in result["text"].items() if isinstance(text, Mapping) and "fingerprint" in text
    ]
