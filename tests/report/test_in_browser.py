"""The pages of a comparison and of a search in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import assert_readable_everywhere, layout
from studies import config_of, study_of

from lr_dist.report.page import render_report
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
