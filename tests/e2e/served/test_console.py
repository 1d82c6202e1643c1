"""The console in a real browser against the real model and its ranks."""

import re

import httpx
import pytest

from tests.e2e.served.conftest import Stack
from tests.integration.console.browsing import AUDIT, PHONE, WIDE
from tests.support.browser import AXE, FLAGS, browser_or_skip
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
    expect(page.locator("main .view" if key or not stack.key else "form.sign-in")).to_be_visible()


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


def test_a_stop_reaches_the_rank(stack: Stack, page, faults, eventually_idle):
    enter(page, stack, stack.key, "chat")
    page.get_by_label("Message", exact=True).fill("Sort these numbers: 42, 7, 19, 3, 88, 61, 5")
    page.keyboard.press("Enter")
    expect(page.locator(".thought")).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(page.locator(".assistant .stats")).to_contain_text(re.compile(r"^\d+ tokens .*stopped"))
    eventually_idle()
    assert faults == []


def test_keys_decide_which_views_are_shown(stack: Stack, page, faults):
    if not stack.key:
        pytest.skip("no Helm: the router requires no keys")
    enter(page, stack, None, "fleet")
    page.get_by_label("API key").fill(stack.key)
    page.keyboard.press("Enter")
    tabs = page.locator("nav.tabs a")
    expect(tabs.first).to_have_text("Chat")
    assert "Fleet" not in tabs.all_inner_texts()
    refused = page.evaluate(
        """async () => (await fetch("api/stream?feed=fleet", { headers: {
            authorization: `Bearer ${sessionStorage.getItem("moe-console-key")}` } })).status"""
    )
    assert refused == 403
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").fill(stack.operator.api_key)
    page.keyboard.press("Enter")
    expect(tabs.filter(has_text="Fleet")).to_be_visible()
    assert [fault for fault in faults if "401" not in fault and "403" not in fault] == []


def test_a_group_is_drained_and_serves_again(stack: Stack, page, faults):
    enter(page, stack, stack.operator.api_key, "fleet")
    state = page.locator(".groups .pill")
    expect(state).to_have_text("ready")
    for action, then in (("Drain", "draining"), ("Uncordon", "ready")):
        page.locator(".groups").get_by_role("button", name=action).click()
        page.get_by_role("dialog").get_by_role("button", name=action).click()
        expect(state).to_have_text(then)
    page.locator(".rank").first.click()
    expect(page.get_by_role("dialog")).to_contain_text("vllm")
    assert faults == []


def test_every_view_is_accessible_and_fits(stack: Stack, page, faults):
    if not AXE.is_file():
        pytest.skip("no axe-core: .ci/tools fetched none")
    enter(page, stack, stack.operator.api_key, "fleet")
    page.evaluate(AXE.read_text("utf-8"))
    names = [link.lower() for link in page.locator("nav.tabs a").all_inner_texts()]
    assert {"chat", "fleet", "requests", "experts", "load"} <= set(names)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for viewport in (WIDE, PHONE):
            page.set_viewport_size(viewport)
            for name in names:
                page.evaluate(f"location.hash = '{name}'")
                expect(page.locator(f"nav a[href='#{name}']")).to_have_attribute(
                    "aria-current", "page"
                )
                expect(page.locator("main > .view")).to_be_visible()
                found = page.evaluate(AUDIT)
                assert found == {"violations": [], "wider": 0}, (scheme, viewport, name)
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
