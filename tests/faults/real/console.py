"""The console's pages during a fault of a real system, in a real browser."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from tests.faults.real.streams import PATIENCE
from tests.faults.real.system import System
from tests.integration.console.browsing import MILLISECONDS, visiting
from tests.support.browser import FLAGS, browser_or_skip

BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Sort these numbers: 42, 7, 19, 3, 88, 61"}],
    "temperature": 0,
    "max_tokens": 320,
    "ignore_eos": True,
}
"""The request of the page: long enough to be interrupted."""
_ANSWER = """() => {
    const key = Object.keys(localStorage).find((name) => /^moe-console:.*:/.test(name));
    return Object.values(JSON.parse(localStorage.getItem(key)).nodes).at(-1);
}"""


@contextlib.asynccontextmanager
async def opened_browser() -> AsyncIterator[Browser]:
    """Start a browser; skip the test if there is none."""
    path = browser_or_skip()
    expect.set_options(timeout=MILLISECONDS)
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        await browser.close()


@dataclass
class ChatPage:
    """A page that asks one question, greedily."""

    page: Page
    running: System

    async def ask(self) -> str:
        """Ask, and return the group that answers once its first tokens have arrived."""
        page = self.page

        async def lengthen(route: Route) -> None:
            body = route.request.post_data_json | {"ignore_eos": True}
            assert body.items() >= BODY.items()
            await route.continue_(post_data=json.dumps(body))

        await page.route("**/v1/chat/completions", lengthen)
        await page.get_by_role("button", name="Parameters").click()
        await page.get_by_label("temperature").fill(str(BODY["temperature"]))
        await page.get_by_label("max tokens").fill(str(BODY["max_tokens"]))
        await page.get_by_label("Message", exact=True).fill(BODY["messages"][0]["content"])
        await page.keyboard.press("Enter")
        await expect(page.locator(".thought")).not_to_be_empty()
        text = await page.locator(".assistant .stats").inner_text()
        found = re.search(r"rank \d+ of (\S+)", text)
        assert found, text
        assert await page.get_by_role("button", name="Stop").is_visible(), "the answer is too short"
        return found[1]

    async def check(self) -> None:
        """Check the mark, and that the answer equals that to the same question without a fault."""
        page = self.page
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        await expect(page.locator(".assistant .mark")).to_contain_text("continued on another one")
        await expect(page.locator(".assistant .error")).to_be_hidden()
        answer: dict[str, Any] = await page.evaluate(_ANSWER)
        assert answer["meta"]["resumes"] == 1
        body = BODY | {"model": self.running.model}
        async with httpx.AsyncClient(base_url=self.running.rest, timeout=PATIENCE) as client:
            sent = await client.post("/v1/chat/completions", json=body)
        message = sent.json()["choices"][0]["message"]
        undisturbed = (message.get("reasoning") or "", message["content"] or "")
        assert (answer["reasoning"], answer["content"]) == undisturbed
        assert answer["meta"]["tokens"] == sent.json()["usage"]["completion_tokens"]


@contextlib.asynccontextmanager
async def chat_page(browser: Browser, running: System) -> AsyncIterator[ChatPage]:
    """Open the chat; afterwards, fail if the page logged an error or left its origin."""
    async with visiting(browser, f"{running.rest}/console/", None) as page:
        yield ChatPage(page, running)


@contextlib.asynccontextmanager
async def fleet_page(browser: Browser, running: System) -> AsyncIterator[Page]:
    """Open the fleet view, as ``chat_page``."""
    async with visiting(browser, f"{running.rest}/console/", None, "fleet") as page:
        await expect(page.locator(".pill").first).to_be_visible()
        yield page


async def expect_state(page: Page, group: str, state: str) -> None:
    """Wait until the fleet view shows a group with a state; "gone": among the former groups."""
    if state == "gone":
        former = page.get_by_role("region", name="Former groups")
        await expect(former).to_contain_text(group)
        return
    card = page.get_by_role("article", name=re.compile(f"^Group {re.escape(group)},"))
    await expect(card.locator(".pill")).to_have_text(state)
