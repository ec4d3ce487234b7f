"""axe finds no fault in the console, in either theme, language and width."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.lab.browser import open_page
from tests.lab.platform import BOARD_A, NAMES

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
# 640 is a screen of 1280 at 200 % zoom.
@pytest.mark.parametrize("width", [390, 640, 1280])
async def test_axe_finds_no_fault(bridge, width, scheme, language):
    async with open_page() as page:
        await page.set_viewport_size({"width": width, "height": 900})
        await page.emulate_media(color_scheme=scheme)
        await page.add_init_script(f"localStorage.setItem('bridge-console-language', '{language}')")
        await page.goto(f"{bridge.url}/console#device/{BOARD_A}")
        await expect(page.locator("#device .name")).to_have_text(NAMES[BOARD_A])
        await expect(page.locator("#requests tr")).not_to_have_count(0)
        # The page's policy lets no script in; the browser may run one all the same.
        await page.evaluate(AXE.read_text(encoding="utf-8"))

        violations = await page.evaluate("axe.run().then(({ violations }) => violations)")

        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations] == []
