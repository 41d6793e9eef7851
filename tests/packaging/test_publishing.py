"""What a release needs says the same everywhere: the version, the changelog, the templates."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import yaml

import lr_dist

ROOT = Path(__file__).parents[2]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_newest_version_of_the_changelog_is_this_one() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^\]]+)\](?: - (\S+))?$", text, flags=re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    version, date = headings[1]
    assert version == lr_dist.__version__
    assert datetime.date.fromisoformat(date)
    assert len(re.findall(r"^## ", text, flags=re.MULTILINE)) == len(headings)


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == lr_dist.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2404.01317"


@pytest.mark.parametrize("template", [path for path in TEMPLATES if path.name != "config.yml"], ids=lambda p: p.stem)
def test_an_issue_template_is_a_form(template: Path) -> None:
    form = yaml.safe_load(template.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) >= 2
    assert all(field["type"] in {"textarea", "input", "dropdown", "markdown"} for field in form["body"])
    assert all(field["attributes"]["label"] for field in form["body"])
