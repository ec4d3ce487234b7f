"""Headless Chromium, as a person would use it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Page, async_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Where the browser is; `tests/run` installs it.

    Raises:
        FileNotFoundError: nowhere.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise FileNotFoundError("Chromium is needed: ./tests/run installs it")
    return found


@asynccontextmanager
async def open_page() -> AsyncIterator[Page]:
    """A blank page in a browser of its own, with nothing kept from before.

    What the page says on its console as an error, and what it throws, fails the test when the
    page is closed; of answers with a bad status only the test can say whether they were meant.
    """
    faults: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(), chromium_sandbox=False, args=list(_QUIET)
        )
        page = await browser.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda said: faults.append(said.text) if _is_fault(said.type, said.text) else None,
        )
        try:
            yield page
        finally:
            await browser.close()
    assert not faults


def _is_fault(kind: str, text: str) -> bool:
    return kind == "error" and "status of " not in text
