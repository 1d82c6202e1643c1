"""Pages of a real browser that must not log an error or send a request to another origin."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.waiting import PATIENCE

WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}
WIDTHS = (320, 360, 641, 768, 861, 1920)
"""Further widths at which no view may be wider than the page."""
WIDER = "Math.max(0, document.documentElement.scrollWidth - innerWidth)"
MILLISECONDS = 1000 * PATIENCE
AUDIT = """async () => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"] });
    const found = violations.filter((each) => ["serious", "critical"].includes(each.impact));
    return {
        violations: found.map(({ id, nodes }) => [id, ...nodes.map((node) => node.html)].join(" ")),
        wider: Math.max(0, document.documentElement.scrollWidth - innerWidth),
    };
}"""
"""Returns serious findings of axe-core, which the page has loaded, and pixels that are too wide."""


@asynccontextmanager
async def visiting(
    browser, url, key, view="", *, scheme="light", viewport=WIDE, expected=()
) -> AsyncIterator:
    """Open the console as a key, and check at the end that nothing was wrong.

    Args:
        browser: Playwright's browser.
        url: Address of the console.
        key: API key in the session storage; None: none.
        view: Name of the view.
        scheme: "light" or "dark".
        viewport: Size of the page.
        expected: Parts of the errors that Chromium logs for requests which the test makes fail.
    """
    faults = []
    context = await browser.new_context(viewport=viewport, color_scheme=scheme)
    context.set_default_timeout(MILLISECONDS)
    page = await context.new_page()
    origin = url.removesuffix("/console/")

    def note(message):
        known = any(part in message.text for part in expected)
        if message.type in {"error", "warning"} and not known:
            faults.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"a script ran: {dialog.message}"))
    page.on(
        "request",
        lambda sent: sent.url.startswith((origin, "data:", "blob:")) or faults.append(sent.url),
    )
    if key:
        await context.add_init_script(f"sessionStorage.setItem('moe-console-key', '{key}')")
    await page.goto(f"{url}#{view}")
    try:
        yield page
    finally:
        await context.close()
    if faults:
        pytest.fail("\n".join(faults))
