"""Takes the pictures of console.md: ``python -m tests.integration.console.pictures URL KEY``.

Asks the running system's model a question, so that the chat and the experts are real; an empty KEY
is for a router without keys. Writes deploy/docs/img/console-*.png, light and dark.
"""

import asyncio
import sys
from pathlib import Path

from playwright.async_api import Page, async_playwright

from tests.support.browser import FLAGS, browser_or_skip

IMAGES = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "img"
QUESTIONS = ("What is 17+25?", "Sort these numbers: 42, 7, 19, 3")
SIZE = {"width": 1120, "height": 700}


async def take(url: str, key: str) -> None:
    """Write the pictures of a running console."""
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=browser_or_skip(), args=list(FLAGS))
        for scheme in ("light", "dark"):
            context = await browser.new_context(viewport=SIZE, color_scheme=scheme)
            if key:
                await context.add_init_script(f"sessionStorage.setItem('moe-console-key', '{key}')")
            await _views(await context.new_page(), url, scheme)
            await context.close()
        await browser.close()


async def _views(page: Page, url: str, scheme: str) -> None:
    await page.goto(f"{url}/console/#chat")
    for number, question in enumerate(QUESTIONS):
        await page.get_by_label("Message", exact=True).fill(question)
        await page.keyboard.press("Enter")
        await page.locator(".assistant .stats").nth(number).filter(has_text="tokens ·").wait_for()
    await page.locator("details.reasoning summary").last.click()
    await page.locator(".scroller").evaluate("node => { node.scrollTop = 0; }")
    await page.screenshot(path=IMAGES / f"console-chat-{scheme}.png")
    for view, ready in (("fleet", ".rank"), ("experts", "td.number")):
        await page.evaluate(f"location.hash = '{view}'")
        await page.locator(ready).first.wait_for()
        await page.wait_for_timeout(3000)  # some snapshots, for the curves
        await page.screenshot(path=IMAGES / f"console-{view}-{scheme}.png")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    asyncio.run(take(sys.argv[1].rstrip("/"), sys.argv[2]))
