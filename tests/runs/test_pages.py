"""What all pages share: their frame, figures with values under the mouse, names that break in the right places."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

import lr_dist
from lr_dist.runs.pages.figure import GREY, PALETTE, page_figure, page_svg, rate_spots
from lr_dist.runs.pages.render import pieces, plain
from lr_dist.runs.svg import Spot, new_figure, to_svg

TEMPLATES = [
    path for folder in ("lr_dist", "search") for path in (Path(lr_dist.__file__).parents[1] / folder).rglob("*.html")
]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_page_has_the_same_frame(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.parent.name == "pages":
        return
    assert text.startswith('{% extends "base.html" %}')
    assert not re.search(r"<(html|head|style|script|h1)\b", text)
    assert '<div class="scroll"><table><thead>' not in text.replace("\n", "")


def test_the_frame_is_in_the_package() -> None:
    assert {"base.html", "macros.html", "style.css", "sort.js", "tip.js"} <= {
        each.name for each in files("lr_dist.runs.pages").iterdir()
    }


_BOX = r'<rect x="([^"]*)" y="([^"]*)" width="([^"]*)" height="([^"]*)" class="spot"'


def circles(svg: str) -> list[tuple[float, float, str]]:
    found = re.findall(
        r'<circle cx="([^"]*)" cy="([^"]*)" r="6.0" class="spot"[^>]*><title>(.*?)</title>', svg, re.DOTALL
    )
    return [(float(x), float(y), text) for x, y, text in found]


@pytest.mark.parametrize("log", [False, True])
def test_a_spot_lies_on_its_point(log: bool) -> None:
    figure = new_figure(5, 3)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [1, 10])
    right.plot([1, 30, 100], [2.0, 5.0, 7.0], "o", color="#123456")
    if log:
        right.set_xscale("log")
    right.set_ylabel("something that takes room")
    svg = to_svg(figure, spots=[Spot(right, 30, 5.0, "here")])
    drawn = re.findall(r'<use xlink:href="#\w+" x="(\S+)" y="(\S+)" style="fill: #123456', svg)
    x, y, text = circles(svg)[0]
    assert (x, y) == pytest.approx(tuple(map(float, drawn[1])), abs=0.06)
    assert text == "here"


def test_a_box_covers_its_cell_of_an_image() -> None:
    figure = new_figure(4, 4)
    axes = figure.subplots()
    axes.imshow([[0, 1], [2, 3]], aspect="auto")
    svg = to_svg(figure, spots=[Spot(axes, 1, 0, "right, on top", width=1, height=1)])
    left, top, width, height = map(float, re.findall(_BOX, svg)[0])
    image = figure.axes[0].get_window_extent()
    assert (left, width) == pytest.approx(((image.x0 + image.x1) / 2, image.width / 2), abs=0.1)
    assert (top, height) == pytest.approx((figure.bbox.height - image.y1, image.height / 2), abs=0.1)


def test_points_in_one_place_get_a_ring_with_their_number_and_tell_of_each_other() -> None:
    def drawn(second: float, *, counted: bool) -> str:
        figure = new_figure(4, 4)
        axes = figure.subplots()
        axes.plot([0, second, 1], [0, 0, 1], "o")
        points = ((0, 0, "one"), (second, 0, "two"), (1, 1, "three"))
        return to_svg(figure, spots=[Spot(axes, x, y, text, counted=counted) for x, y, text in points])

    together = drawn(0.001, counted=True)
    assert re.findall(r'class="ring".*?>(\d+)</text>', together) == ["2"]
    assert [text for _, _, text in circles(together)] == ["one\ntwo", "two\none", "three"]
    assert "ring" not in drawn(0.5, counted=True)
    assert [text for _, _, text in circles(drawn(0.5, counted=True))] == ["one", "two", "three"]
    assert "ring" not in drawn(0.001, counted=False)


def test_a_place_with_many_points_names_some_and_counts_the_rest() -> None:
    figure = new_figure(4, 4)
    axes = figure.subplots()
    axes.plot([0], [0], "o")
    svg = to_svg(figure, spots=[Spot(axes, 0, 0, f"trial {i}", counted=True) for i in range(20)])
    text = circles(svg)[0][2]
    assert text.count("trial") == 8
    assert text.endswith("and 12 more")


def test_texts_of_spots_and_legends_are_escaped() -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([0], [0], "o", label="<b>$\\$x")
    page = page_figure(figure, "a < b", spots=[Spot(axes, 0, 0, "<i>&")])
    assert "&lt;i&gt;&amp;</title>" in page
    assert "&lt;b&gt;" in page
    assert "<b>$" not in page
    assert "<i>" not in page


def test_colours_become_the_pages_and_the_legend_looks_like_the_figure() -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=PALETTE[2], label="a line")
    axes.plot([0, 1], [0, 1], "D", ls="", color=GREY, mfc="none", label="hollow")
    axes.axhline(0.5, ls=":", color="k", label="dotted")
    axes.errorbar([0], [1], [0.1], fmt="o", color=PALETTE[0], label="bars")
    axes.fill_between([0, 1], [0, 0], [1, 1], color=PALETTE[1], label="area")
    figure.legend()
    page = page_figure(figure)
    entries = re.findall(r'<li><b style="color: (.*?)">(.)</b> (.*?)</li>', page)
    assert entries == [
        ("var(--c2, #2ca02c)", "━", "a line"),
        ("var(--grey, #595959)", "◇", "hollow"),
        ("currentColor", "┄", "dotted"),
        ("var(--c1, #ff7f0e)", "■", "area"),
        ("var(--c0, #1f77b4)", "●", "bars"),
    ]
    assert not re.search(r"(?<!, )#(2ca02c|595959|1f77b4)", page)


def test_a_frozen_layer_has_no_spot() -> None:
    axes = new_figure(4, 3).subplots()
    spots = rate_spots(axes, {"embeddings": 0.0, "layers.0": 1.23456e-4, "head": 1e-3}, "decay")
    assert [(spot.x, spot.text) for spot in spots] == [(1, "decay, layers.0: 0.000123"), (2, "decay, head: 0.001")]


def test_equal_figures_give_equal_text() -> None:
    def drawn() -> str:
        figure = new_figure(4, 3)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "-o")
        return page_svg(figure, "t", spots=[Spot(axes, 0, 0, "x")])

    assert drawn() == drawn()


@pytest.mark.parametrize(
    ("label", "parts"),
    [
        (
            "decay:lr=4e-4,factor=0.7 + l2-sp:alpha=0.1",
            ["decay:", "lr=4e-4,", "factor=0.7 ", "+ ", "l2-sp:", "alpha=0.1"],
        ),
        ("freeze=embeddings..layers.2", ["freeze=embeddings..", "layers.2"]),
        ("minilm", ["minilm"]),
        ("", []),
    ],
)
def test_a_name_breaks_behind_its_parts_and_never_in_a_number(label: str, parts: list[str]) -> None:
    assert pieces(label) == parts
    assert "".join(parts) == label


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        ("minilm", "minilm"),
        (["a", "b"], "a, b"),
        ([["a", "b"], ["c"]], "[a, b], [c]"),
        ({"a": 1, "b": [1, 2.5], "c": {"d": None}}, "a: 1; b: [1, 2.5]; c: {d: none}"),
        (True, "true"),
        ([], "none"),
    ],
)
def test_settings_are_written_as_people_write_them(value: object, text: str) -> None:
    assert plain(value) == text
