"""Takes the pictures of console.md: ``python -m tests.integration.console.pictures URL ADMIN USER``

The arguments are the address of a running system with a ledger and batches, and keys of an
administrator and a user. The model answers questions while requests and a batch run; only the
autoscaler's decisions are made up. Writes deploy/docs/img/console-*.png, light and dark.
"""

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

import httpx
from playwright.async_api import Page, async_playwright

from tests.support.browser import FLAGS, browser_or_skip

IMAGES = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "img"
QUESTIONS = ("What is 17+25?", "Sort these numbers: 42, 7, 19, 3")
SIZE = {"width": 1120, "height": 700}
VIEWS = {
    "fleet": ".rank",
    "requests": "tbody tr",
    "experts": "td.number",
    "load": ".pools h3",
    "cost": "tbody tr",
    "batches": "tbody tr",
}
"""What each view shows when it is complete."""
STREAMS, LINES, WARM_UP = 6, 3000, 60.0
"""Requests at a time, lines of the batch, and seconds before the first picture."""
REASONS = (
    "queue: 9 requests wait for 4.1 s",
    "kv: 71 % used, target 60 %",
    "idle: 12 % of capacity used for 600 s",
)


async def take(url: str, admin: str, user: str) -> None:
    """Write the pictures of a running console."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await _decide(client, admin)
        await _batch(client, admin)
        load = [asyncio.create_task(_ask(client, user, number)) for number in range(STREAMS)]
        try:
            await asyncio.sleep(WARM_UP)
            await _photograph(url, admin)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def _decide(client: httpx.AsyncClient, key: str) -> None:
    now, groups = time.time(), 1
    for minute in range(30, 0, -1):
        target = {25: 2, 14: 3, 4: 2}.get(minute, groups)
        reason = REASONS[{25: 0, 14: 1, 4: 2}[minute]] if target != groups else "no rule votes"
        votes = [
            {"rule": "queue", "kind": "vote", "groups": 1, "reason": "no request waits"},
            {"rule": "kv", "kind": "vote", "groups": 2, "reason": "34 % used, target 60 %"},
            {"rule": "idle", "kind": "abstain", "groups": 0, "reason": "not idle"},
        ]
        body = {
            "at": now - 60 * minute, "current": groups, "target": target, "reason": reason,
            "ready": groups, "votes": votes, "signals": {"queued": 0, "kv_usage": 0.34},
        }  # fmt: skip
        sent = await client.post("/console/api/autoscaler", json=body, headers=_bearer(key))
        sent.raise_for_status()
        groups = target


async def _batch(client: httpx.AsyncClient, key: str) -> None:
    lines = "".join(
        json.dumps(
            {
                "custom_id": str(number), "method": "POST", "url": "/v1/chat/completions",
                "body": {
                    "model": "pocket-r1",
                    "messages": [{"role": "user", "content": f"What is {number}+{number + 7}?"}],
                },
            }
        )
        + "\n"
        for number in range(LINES)
    )  # fmt: skip
    file = {"file": ("lines.jsonl", lines.encode())}
    purpose = {"purpose": "batch"}
    sent = await client.post("/v1/files", files=file, data=purpose, headers=_bearer(key))
    body = {
        "input_file_id": sent.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"name": "sums for the evaluation"},
    }
    (await client.post("/v1/batches", json=body, headers=_bearer(key))).raise_for_status()


async def _ask(client: httpx.AsyncClient, key: str, number: int) -> None:
    headers = _bearer(key) | {"x-session-id": f"session-{number}"}
    while True:
        content = f"Sort these numbers: {', '.join(str(n * 37 % 97) for n in range(number, 12))}"
        body = {
            "model": "pocket-r1",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 600,
        }
        with contextlib.suppress(httpx.HTTPError):
            await client.post("/v1/chat/completions", json=body, headers=headers)
        await asyncio.sleep(0.2)
        number = (number + 1) % 9


async def _photograph(url: str, key: str) -> None:
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=browser_or_skip(), args=list(FLAGS))
        for scheme in ("light", "dark"):
            context = await browser.new_context(viewport=SIZE, color_scheme=scheme)
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
        await page.get_by_role("button", name="Send").wait_for()
    await page.locator("details.reasoning summary").last.click()
    await page.locator(".scroller").evaluate("node => { node.scrollTop = 0; }")
    await page.screenshot(path=IMAGES / f"console-chat-{scheme}.png")
    for view, ready in VIEWS.items():
        await page.evaluate(f"location.hash = '{view}'")
        await page.locator(f"main {ready}").first.wait_for()
        await page.wait_for_timeout(4000)  # some snapshots, for the curves
        if view == "load":  # the plots of the router are above
            await page.get_by_role("heading", name="Autoscaler", exact=True).evaluate(
                "node => node.scrollIntoView()"
            )
        await page.screenshot(path=IMAGES / f"console-{view}-{scheme}.png")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    asyncio.run(take(sys.argv[1].rstrip("/"), *sys.argv[2:]))
