"""The pages of a comparison and of a search in a real browser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import assert_readable_everywhere, layout, seen_after
from studies import config_of, study_of

from lr_dist.report.page import render_report
from lr_dist.runs.pages.render import render
from lr_dist.search.page.report import write_report
from lr_dist.search.trials.study import IDENTITY


def test_the_page_of_a_comparison(tiny_comparison, tmp_path: Path) -> None:
    assert_readable_everywhere(render_report(tiny_comparison[0]), tmp_path)


def test_the_page_of_a_search(tmp_path: Path) -> None:
    study = study_of(config_of(), 12, pruned=2, failed=1)
    study.set_user_attr(IDENTITY, {**study.user_attrs[IDENTITY], "num_layers": 6})
    page = write_report(study, tmp_path / "report.html", storage="sqlite:///study.db")
    assert_readable_everywhere(page.read_text(encoding="utf-8"), tmp_path)


@pytest.mark.parametrize("width", [1280, 400])
def test_what_is_cut_off_is_seen(width: int, tmp_path: Path) -> None:
    in_a_box = "<div style='overflow-x:auto'><p style='width:2000px'>scrolls</p></div>"
    page = f"<body><p style='width:{width + 50}px'>cut off</p>{in_a_box}</body>"
    seen = layout(page, tmp_path, width)
    assert len(seen.cut) == 1
    assert seen.needs > seen.width


SORTS = """
const table = document.querySelector("table.sortable"), column = COLUMN;
const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent.trim());
table.tHead.rows[0].cells[column].querySelector("button").click();
const first = read();
table.tHead.rows[0].cells[column].querySelector("button").click();
return [first, read()];
"""


@pytest.mark.parametrize(
    ("cells", "falling"),
    [
        # A number may stand before its spread, and a word in its place comes last in both directions.
        (
            [".548 ± .022", "n/a", "-.142 ± .028", "1,000 [1, 2]"],
            ["1,000 [1, 2]", ".548 ± .022", "-.142 ± .028", "n/a"],
        ),
        (["9.5e-6", "1e-4", "", "0.00011"], ["0.00011", "1e-4", "9.5e-6", ""]),
        (["b", "a", "c", ""], ["c", "b", "a", ""]),
    ],
)
def test_a_click_on_a_head_sorts_by_the_numbers_of_the_column(cells: list[str], falling: list[str], tmp_path) -> None:
    page = render(
        "lr_dist.report",
        "informed.html",
        **dict.fromkeys(("sizes", "parts", "note", "verdict", "versions"), ""),
        result=SimpleNamespace(
            **{"knowledge": {"source": ""}, "model": {"name": ""}, "runs": [], "planned_runs": 0, "created": ""},
            **{"command": "", "config": {}, "task": SimpleNamespace(name="")},
        ),
        header=("arm", "value"),
        rows=[("x", cell) for cell in cells],
        curves=[],
        choices=[],
        task={},
    )
    down, up = seen_after(page, tmp_path, SORTS.replace("COLUMN", "1"))
    squeezed = [text.replace(" [", "[") for text in falling]
    assert [text.replace(" [", "[") for text in down] == squeezed
    known = [text for text in squeezed if text not in ("n/a", "")]
    assert [text.replace(" [", "[") for text in up] == [*reversed(known), *squeezed[len(known) :]]


def test_the_mouse_and_the_finger_show_the_value_of_a_point(tiny_comparison, tmp_path: Path) -> None:
    script = """
    const spot = document.querySelector("circle.spot"), tip = document.querySelector(".tip"), before = tip.hidden;
    spot.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
    const shown = [tip.hidden, tip.textContent];
    document.body.dispatchEvent(new PointerEvent("pointerdown", {bubbles: true}));
    return [before, ...shown, tip.hidden, spot.querySelector("title")];
    """
    before, shown, text, after, title = seen_after(render_report(tiny_comparison[0]), tmp_path, script)
    assert (before, shown, after) == (True, False, True)
    assert text.startswith("flat:lr=")
    assert "p_o ." in text
    # Otherwise the browser would show the same beside it a second later.
    assert title is None
