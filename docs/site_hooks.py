"""What mkdocs does not do by itself: the README as the home page, and the repository's files that pages link to.

On GitHub, `../configs/callback.yaml` leads from a page of docs/ to that file. The site has no such file above its
pages, so each one that a page links to is copied to `files/`, and the link is changed. A folder becomes text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the tests read this file without mkdocs
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
# Pages from above docs/ -> their name in the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}
SOURCES = {name: source for source, name in PAGES.items()}
LINK = re.compile(r"(!?)\[((?:[^\[\]\n]|\[[^\]\n]*\])*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^\s*(```|~~~)")
# What a browser fetches by itself: scripts, pictures, frames, style sheets; not links that a reader may follow.
HOST = r"""["']?((?:https?:)?//[^"' )>]+)"""
LOADS = re.compile(
    rf"""<(?:script|img|iframe|source|embed)\b[^>]*\bsrc={HOST}"""
    rf"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*\bhref={HOST}"""
    rf"""|@import\s+(?:url\()?{HOST}"""
)
ITEM = re.compile(r"^([-*+]|\d+\.) ")


def on_files(files: Files, config: Any) -> Files:
    """Add the home page, and the files that pages link to."""
    from mkdocs.structure.files import File

    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    pages = [file for file in files if file.is_documentation_page()]
    for page in pages:
        for match in LINK.finditer(page.content_string):
            target = repository_path(page.src_uri, match[3])
            if target is None or target in PAGES or target.startswith("docs/"):
                continue
            name = f"files/{target}"
            if (ROOT / target).is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))
    return files


def on_config(config: Any) -> Any:
    """Leave pages out of the navigation that this checkout does not have."""
    config["nav"] = kept(config["nav"], lambda name: name in SOURCES or (ROOT / "docs" / name).is_file())
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Change links that lead out of docs/, and separate lists from the paragraph above, as GitHub does."""
    source = page.file.src_uri

    def changed(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = repository_path(source, target)
        if path is None:
            return match[0]
        # A folder with a README stands for it, as on GitHub.
        path = f"{path}/README.md" if f"{path}/README.md" in PAGES else path
        if path in PAGES or path.startswith("docs/"):
            site = PAGES.get(path) or path.removeprefix("docs/")
        elif (ROOT / path).is_dir():
            return text
        else:
            site = f"files/{path}"
        return f"{image}[{text}]({posixpath.relpath(site, posixpath.dirname(source) or '.')}{anchor})"

    return outside_of_code(markdown, lambda line: LINK.sub(changed, line))


def on_post_build(*, config: Any, **_: Any) -> None:
    """Refuse a site whose pages load anything from another host."""
    from mkdocs.exceptions import PluginError

    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        if loads := LOADS.findall(page.read_text(encoding="utf-8")):
            raise PluginError(
                f"{page.name} loads {', '.join(''.join(found) for found in loads[:3])}; keep such files in docs/"
            )


def repository_path(page: str, target: str) -> str | None:
    """Where a page's relative link leads in the repository; None if it stays in docs/.

    Args:
        page: Path of the page in the site.
        target: The link without its anchor.
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(SOURCES.get(page, f"docs/{page}")), target))
    return None if path.startswith("docs/") and page not in SOURCES else path


def outside_of_code(markdown: str, change: Callable[[str], str]) -> str:
    """`change` each line that is not in a block of code, and put an empty line where a list follows a paragraph."""
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            above = lines[-1] if lines else ""
            if ITEM.match(line) and above[:1].strip() and not ITEM.match(above):
                lines.append("")
            line = change(line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def kept(nav: list[Any], exists: Callable[[str], bool]) -> list[Any]:
    """The navigation without pages that do not exist, and without headings above none."""
    result: list[Any] = []
    for entry in nav:
        title, target = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(target, list):
            if inner := kept(target, exists):
                result.append({title: inner})
        elif exists(target):
            result.append(entry)
    return result
