"""Look at each page of the built documentation as readers do, in headless Chromium.

``nox -s pages`` builds the pages and calls this. On a narrow and on a wide screen no page may
scroll sideways. In light and in dark all text must have the contrast of WCAG 2 AA (axe-core).
``python tools/pages.py FOLDER`` checks another build.
"""

from __future__ import annotations

import functools
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

#: Whether the page scrolls sideways. A table or a block of code may: it scrolls by itself.
TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const wide = [...document.querySelectorAll("body *")]
        .filter(e => e.getBoundingClientRect().right > width + 1)
        .map(e => e.outerHTML.slice(0, 100));
    return [`scrolls sideways; wide are ${wide.slice(0, 3).join(" and ")}`];
}"""
CONTRAST = """async () => {
    const found = await axe.run({ runOnly: ["color-contrast", "link-in-text-block"] });
    return found.violations.flatMap(rule => rule.nodes.map(node =>
        rule.id + ": " + node.any.map(a => a.message).join(" ") + " " + node.html.slice(0, 100)));
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Logs no request."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
        """Say nothing."""


def faults(page: Page, url: str, script: str) -> list[str]:
    """What is wrong with a page, on each screen and in each scheme."""
    found = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(url)
            page.evaluate(script)
            where = f"{url.rpartition('/')[2]} {width} px {scheme}"
            seen = page.evaluate(TOO_WIDE) + page.evaluate(CONTRAST)
            found += [f"{where}: {what}" for what in seen]
    return found


def main(folder: Path) -> int:
    """Check the pages of a folder, print what is wrong, and return the exit code."""
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*.html"))
    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # The system's, else the one that `playwright install chromium` brings.
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    found: list[str] = []
    script = files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        page = browser.new_page(reduced_motion="reduce")
        for name in pages:
            found += faults(page, f"http://127.0.0.1:{server.server_port}/{name}", script)
        browser.close()
    server.shutdown()
    print(*found, sep="\n")
    looks = len(pages) * len(WIDTHS) * len(SCHEMES)
    print(f"{len(pages)} pages, {looks} looks, {len(found)} faults")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
