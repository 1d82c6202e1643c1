"""A rank process is killed while the page streams; the router restarts while the page is open."""

import asyncio
import os
import signal
import subprocess
import sys

import httpx
import pytest
import pytest_asyncio
import yaml

from tests.integration.console.browsing import MILLISECONDS, visiting
from tests.integration.console.stack import ADMIN, running, settings
from tests.support.browser import FLAGS, browser_or_skip
from tests.support.waiting import PATIENCE, PATIENT_LINK, eventually

playwright_api = pytest.importorskip("playwright.async_api")
expect = playwright_api.expect
pytestmark = pytest.mark.asyncio(loop_scope="module")

STORED = """() => {
    const [key] = Object.keys(localStorage).filter((each) => each.startsWith("moe-console:ops:"));
    const { nodes } = JSON.parse(localStorage.getItem(key));
    return Object.values(nodes).map(({ role, content, reasoning, meta }) =>
        ({ role, content, reasoning, resumes: meta.resumes ?? 0 }));
}"""
TOKENS = 150


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    path = browser_or_skip()
    expect.set_options(timeout=MILLISECONDS)
    async with playwright_api.async_playwright() as driver:
        opened = await driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        await opened.close()


class Ranks:
    """Groups of one rank, each in a process."""

    def __init__(self, folder, join, made):
        self.file = folder / "ranks.yaml"
        link = {"routers": [join], "load_interval": 0.05, "backoff_initial": 0.05} | PATIENT_LINK
        self.file.write_text(yaml.safe_dump({"engine": {"kind": "fake"}, "link": link}))
        self.folder = folder
        self.processes = {}

    def start(self, group, delay):
        module = "tests.integration.console.rank_process"
        with (self.folder / f"{group}.log").open("wb") as log:
            self.processes[group] = subprocess.Popen(
                [sys.executable, "-m", module, str(self.file), group, str(delay)],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self, group):
        os.kill(self.processes[group].pid, signal.SIGKILL)

    def stop(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
            process.stdin.close()


async def test_the_answer_of_a_killed_rank_goes_on_in_the_page(browser, tmp_path):
    made = settings(tmp_path)
    async with running(made) as stack:
        ranks = Ranks(tmp_path, stack.router.addresses.join, made)
        try:
            for group in ("first", "second"):
                ranks.start(group, 0.02)
            membership = stack.router.membership
            await eventually(lambda: membership.ready_groups == 2, "both groups are ready")
            async with (
                visiting(browser, stack.url, ADMIN, "fleet") as fleet,
                visiting(browser, stack.url, ADMIN) as page,
            ):
                await page.get_by_role("button", name="Parameters").click()
                await page.get_by_label("max tokens").fill(str(TOKENS))
                await page.get_by_label("Message", exact=True).fill("go on")
                await page.keyboard.press("Enter")
                await expect(page.locator(".thought")).not_to_be_empty()

                def busy():
                    return [
                        group.group_id
                        for group in membership.snapshot().groups
                        if any(rank.inflight_requests for rank in group.ranks)
                    ]

                [lost] = busy()
                [left] = {"first", "second"} - {lost}
                ranks.kill(lost)
                await expect(page.locator(".mark")).to_contain_text("continued on another one")
                await expect(page.locator(".assistant .stats")).to_contain_text(f"{TOKENS} tokens")
                [_, answer] = await page.evaluate(STORED)
                assert answer["resumes"] == 1
                # The other view has seen it, too: the group is gone, and says why.
                former = fleet.get_by_role("region", name="Former groups")
                await expect(former).to_contain_text(lost)
                await expect(fleet.locator(".pill")).to_have_text(["ready"])
                await expect(fleet.get_by_role("heading", name=left)).to_be_visible()
            body = {
                "model": "pocket-r1",
                "messages": [{"role": "user", "content": "go on"}],
                "max_tokens": TOKENS,
            }
            async with httpx.AsyncClient(timeout=PATIENCE) as client:
                sent = await client.post(
                    f"{stack.router.addresses.rest}/v1/chat/completions",
                    json=body,
                    headers={"authorization": f"Bearer {ADMIN}"},
                )
            message = sent.json()["choices"][0]["message"]
            undisturbed = (message.get("reasoning") or "", message["content"] or "")
            assert (answer["reasoning"], answer["content"]) == undisturbed
        finally:
            ranks.stop()


async def test_a_page_follows_the_next_router_at_the_same_address(browser, tmp_path):
    made = settings(tmp_path)
    async with running(made, "g0") as stack:
        port = stack.router.addresses.rest_port
        visit = visiting(
            browser, stack.url, ADMIN, "fleet", expected=("ERR_CONNECTION", "ERR_INCOMPLETE")
        )
        page = await visit.__aenter__()
        await expect(page.get_by_role("status").nth(1)).to_have_text("live")
        await expect(page.locator(".rank")).to_have_count(1)
    # Between the two, the page says that it is not live.
    await expect(page.locator("main [role=status]")).not_to_have_text("live")
    again = settings(tmp_path, router={"rest_port": port})
    async with running(again, "g1") as stack:
        await expect(page.get_by_role("heading", name="g1")).to_be_visible()
        await expect(page.get_by_role("heading", name="g0")).to_have_count(0)
        await expect(page.locator("main [role=status]")).to_have_text("live")
        await visit.__aexit__(None, None, None)
        await asyncio.sleep(0)
