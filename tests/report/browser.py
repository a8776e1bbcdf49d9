"""A real browser for the tests of the HTML report, which are skipped without one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Milliseconds; the machine of the tests may be busy with others.
PATIENCE = 10_000


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start the installed browser."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no browser: install chromium to test the HTML report")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A report in a tab, and what happened in it that should not.

    Attributes
    ----------
    page
        The tab; everything is drawn.
    complaints
        Messages on the console, uncaught errors, and requests for anything but the file itself.
    """

    def __init__(self, browser: Browser, path: Path, *, width: int = 1200, scheme: str = "light"):
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            reduced_motion="reduce",
        )
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        own = path.as_uri()
        self.page.on("request", lambda r: None if r.url == own else self.complaints.append(r.url))
        self.page.goto(own)
        self.page.wait_for_selector("html[data-drawn=yes]")

    def plots(self) -> set[str]:
        """Names of the plots that have marks."""
        drawn = self.page.locator(".canvas[data-drawn=yes]:has(.marks [role], .marks path)")
        return set(drawn.evaluate_all("all => all.map(one => one.dataset.plot)"))

    def hover(self, number: int, plot: str = "parameters") -> str:
        """Point at a layer, and give the text that appears beside the pointer."""
        # The last bars are those that react to the pointer, one for each layer.
        bars = self.page.locator(f"[data-plot={plot}] .mark-rect.role-mark").last.locator("path")
        bars.nth(number - 1).scroll_into_view_if_needed()
        # The page hides what it shows beside the pointer when it is scrolled.
        self.page.evaluate("new Promise(done => setTimeout(done, 100))")
        bars.nth(number - 1).hover(force=True)
        tip = self.page.locator("#tip")
        tip.wait_for(state="visible")
        return tip.inner_text()
