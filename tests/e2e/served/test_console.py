"""The console in a real browser against the real model and its ranks."""

import re

import httpx
import pytest

from tests.e2e.served.conftest import Stack
from tests.support.browser import FLAGS, browser_or_skip
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.e2e
playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect


@pytest.fixture
def faults():
    return []


@pytest.fixture
def page(stack: Stack, faults):
    """The console as a user; errors and requests to other origins go to ``faults``."""
    path = browser_or_skip()
    expect.set_options(timeout=1000 * PATIENCE)
    with playwright_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda sent: sent.url.startswith(stack.rest) or faults.append(sent.url))
        yield page
        browser.close()


def enter(page, stack: Stack, key: str | None, view: str) -> None:
    if key:
        page.add_init_script(f"sessionStorage.setItem('moe-console-key', '{key}')")
    page.goto(f"{stack.rest}/console/#{view}")
    expect(page.locator("main .view")).to_be_visible()


def test_a_question_is_answered_with_reasoning(stack: Stack, page, faults):
    enter(page, stack, stack.key, "chat")
    page.get_by_label("Message", exact=True).fill("What is 17+25?")
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .body")).to_contain_text("42")
    expect(page.locator(".assistant .stats")).to_contain_text(
        re.compile(r"\d+ tokens · .*tokens/s")
    )
    page.locator("details.reasoning summary").click()
    expect(page.locator(".thought")).to_contain_text("17")
    assert faults == []


def test_the_heat_map_shows_the_real_experts_under_load(stack: Stack, page, http: httpx.Client):
    enter(page, stack, stack.operator.api_key, "experts")
    body = {"model": stack.model, "prompt": "What is 3+4?", "max_tokens": 64, "ignore_eos": True}
    assert http.post("/v1/completions", json=body).status_code == 200
    hottest = page.get_by_role("region", name="Hottest experts").locator("tbody tr").first
    expect(hottest).to_be_visible()
    before = page.locator(".heat canvas").evaluate("node => node.toDataURL()")
    body["prompt"] = "Sort: 9 8 7 6 5"
    assert http.post("/v1/completions", json=body).status_code == 200
    wait_until(lambda: page.locator(".heat canvas").evaluate("node => node.toDataURL()") != before)
    expect(page.get_by_label("Group").locator("option")).to_have_count(1)
