"""A page as a real browser lays it out: in a window and on a phone, in a light and in a dark scheme."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What is cut off at the right, apart from what scrolls in a box of its own.
PROBE = """
<script>
addEventListener("load", () => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => e && (/(auto|scroll|hidden)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const cut = [...document.querySelectorAll("body *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > width + 1 && !scrolls(e.parentElement);
  });
  parent.postMessage(JSON.stringify({
    width: width,
    needs: document.documentElement.scrollWidth,
    background: getComputedStyle(document.body).backgroundColor,
    cut: cut.map((e) => e.outerHTML.slice(0, 80)),
  }), "*");
});
</script>
"""
FRAME = """
<script>addEventListener("message", (e) => document.body.setAttribute("data-seen", e.data));</script>
<iframe src="page.html" style="border:0;width:WIDTHpx;height:900px"></iframe>
"""


@dataclass(frozen=True)
class Layout:
    """What the browser measured; lengths in pixels."""

    width: int
    needs: int
    background: str
    cut: list[str]


def seen_after(page: str, folder: Path, script: str) -> Any:
    """What a script finds on a page, once the page's own scripts have run.

    Args:
        page: HTML.
        folder: for files.
        script: JavaScript; the value of its `return` comes back, through JSON.
    """
    probe = (
        "<script>addEventListener('load', () => document.body.setAttribute('data-seen', "
        f"JSON.stringify((() => {{ {script} }})())));</script></body>"
    )
    (folder / "acted.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    return _data_seen(folder / "acted.html", folder, [])


def layout(page: str, folder: Path, width: int, *, dark: bool = False) -> Layout:
    """Lay a page out in a frame of this width, narrower than a window can be.

    Args:
        page: HTML.
        folder: for files.
        width: of the frame.
        dark: whether the reader prefers dark pages.
    """
    (folder / "page.html").write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    found = _data_seen(folder / "frame.html", folder, [scheme, f"--window-size={max(width, 600)},900"])
    return Layout(**found)


def _data_seen(page: Path, folder: Path, options: list[str]) -> Any:
    """What the page has put into its body's `data-seen`."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser: neither chromium nor google-chrome is installed (Debian: apt-get install chromium)")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'user'}"]
    command += [*options, "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-seen="([^"]*)"', seen.stdout)
    assert found is not None, seen.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def assert_readable_everywhere(page: str, folder: Path) -> None:
    """Nothing is cut off in a window or on a phone, a dark page is dark, and every figure shows its values."""
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert 'class="spot"' in svg, svg[:200]
        # A legend of matplotlib's is a light box, and is cut off on a phone; the page writes its own below the figure.
        assert 'id="legend' not in svg
    wide, narrow = layout(page, folder, 1280), layout(page, folder, 400, dark=True)
    for seen, width in ((wide, 1280), (narrow, 400)):
        assert seen.cut == []
        assert seen.needs <= seen.width <= width
    light, night = (sum(map(int, re.findall(r"\d+", each.background)[:3])) for each in (wide, narrow))
    assert light > 600
    assert night < 200
