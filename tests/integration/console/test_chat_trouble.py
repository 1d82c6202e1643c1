"""Chat when things go wrong: stops, cuts, errors, several tabs, full storage, hostile imports."""

import asyncio
import json
import re
from functools import partial

import pytest
import pytest_asyncio

from tests.integration.console.browsing import MILLISECONDS, visiting
from tests.integration.console.cut_proxy import CutProxy
from tests.integration.console.stack import ADMIN, USER, running, settings
from tests.support.browser import FLAGS, browser_or_skip
from tests.support.waiting import eventually

playwright_api = pytest.importorskip("playwright.async_api")
expect = playwright_api.expect
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    browser_or_skip()
    folder = tmp_path_factory.mktemp("console")
    async with running(settings(folder), "g0", "g1") as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    path = browser_or_skip()
    expect.set_options(timeout=MILLISECONDS)
    async with playwright_api.async_playwright() as driver:
        opened = await driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        await opened.close()


@pytest_asyncio.fixture(loop_scope="module")
async def visit(stack, browser):
    yield partial(visiting, browser, stack.url)
    stack.release()
    await stack.idle()


async def send(page, text):
    await page.get_by_label("Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


def prompts(stack):
    return [prompt for engine in stack.engines.values() for prompt in engine.prompts]


async def test_a_stop_during_the_reasoning_keeps_it_and_counts_its_tokens(stack, visit):
    stack.script("I think so</think>one", hold_after="I think")
    async with visit(USER) as page:
        await send(page, "count")
        await expect(page.locator(".thought")).to_contain_text("I think")
        await page.get_by_role("button", name="Stop").click()
        stats = page.locator(".assistant .stats")
        await expect(stats).to_contain_text("stopped")
        await expect(stats).to_contain_text(re.compile(r"^\d+ tokens ·"))
        await expect(page.locator(".thought")).to_be_visible()
        await eventually(lambda: stack.busy is None)
        # The next question does not carry an empty answer.
        stack.script("a</think>b")
        await send(page, "again")
        await expect(page.locator(".assistant .body").last).to_have_text("b")
        sent = [prompt for prompt in prompts(stack) if "again" in prompt]
        assert len(sent) == 1
        assert "count" in sent[0]
        assert "think" not in sent[0].split("again")[0].replace("<think>", "")


async def test_a_cut_connection_is_said_and_what_arrived_stays(stack, browser):
    stack.script("a</think>one two three", hold_after="a</think>one")
    proxy = CutProxy(stack.router.addresses.rest_port)
    await proxy.start()
    url = f"http://127.0.0.1:{proxy.port}/console/"
    try:
        async with visiting(browser, url, ADMIN, expected=("ERR_", "Failed to load")) as page:
            await send(page, "count")
            await expect(page.locator(".assistant .body")).to_contain_text("one")
            proxy.cut()
            await expect(page.locator(".assistant .error")).to_contain_text("connection")
            await expect(page.locator(".assistant .body")).to_contain_text("one")
            stack.script("a</think>two")
            await page.get_by_role("button", name="Regenerate").click()
            await expect(page.locator(".assistant .body")).to_have_text("two")
    finally:
        await proxy.stop()


async def test_a_silent_network_is_noticed_and_left(stack, browser, tmp_path):
    proxy = CutProxy(stack.router.addresses.rest_port)
    await proxy.start()
    url = f"http://127.0.0.1:{proxy.port}/console/"
    try:
        async with visiting(browser, url, ADMIN, expected=("ERR_",)) as page:
            await page.clock.install()
            await page.evaluate("location.hash = 'fleet'")
            state = page.locator("main [role=status]").first
            await expect(state).to_have_text("live")
            proxy.silence()
            await page.clock.fast_forward(61_000)
            await expect(state).to_contain_text("the router is silent")
            proxy.speak()
            await page.clock.fast_forward(10_000)
            await expect(state).to_have_text("live")
    finally:
        await proxy.stop()


@pytest.mark.parametrize(
    ("status", "reason", "more", "shown"),
    [
        (429, "OVERLOADED", {"retry_after": 2.5}, "the queue is full (try again in 2.5 s)"),
        (503, "NOT_READY", {"retry_after": 0.2}, "the queue is full"),
        (402, "BUDGET_EXCEEDED", {}, "the queue is full"),
    ],
)
async def test_refusals_are_shown_in_the_routers_words(visit, status, reason, more, shown):
    async def refuse(route):
        error = {"message": "the queue is full", "code": status, "reason": reason} | more
        await route.fulfill(status=status, json={"error": error})

    async with visit(USER, expected=[str(status)]) as page:
        await page.route("**/v1/chat/completions", refuse)
        await send(page, "hello")
        await expect(page.locator(".assistant .error")).to_have_text(shown)
        await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_conversations_stream_at_the_same_time(stack, visit):
    stack.script("a</think>one two", hold_after="a</think>one")
    async with visit(ADMIN) as page:
        await send(page, "first")
        await expect(page.locator(".assistant .body")).to_contain_text("one")
        await page.keyboard.press("Alt+n")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        await send(page, "second")
        await expect(page.locator(".assistant .body")).to_contain_text("one")
        await page.keyboard.press("Escape")  # stops this one only
        await expect(page.locator(".assistant .stats")).to_contain_text("stopped")
        await page.get_by_role("button", name="first", exact=True).click()
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        stack.release()
        await expect(page.locator(".assistant .body")).to_have_text("one two")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()


async def test_an_edit_while_an_answer_streams_stops_it_and_asks_once(stack, visit):
    stack.script("a</think>one two", hold_after="a</think>one")
    async with visit(USER) as page:
        await send(page, "first")
        await expect(page.locator(".assistant .body")).to_contain_text("one")
        await page.keyboard.press("Alt+e")
        field = page.get_by_label("Edit message")
        await expect(field).to_be_focused()
        # Escape leaves the edit, and does not stop the answer.
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("button", name="Edit", exact=True)).to_be_focused()
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await page.keyboard.press("Alt+e")
        await field.fill("better")
        stack.release()
        stack.script("a</think>two")
        await page.keyboard.press("Enter")
        await expect(page.locator(".assistant .body")).to_have_text("two")
        await expect(page.locator(".user .branches")).to_contain_text("2 / 2")
        await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
        await page.keyboard.press("Alt+r")
        await expect(page.locator(".assistant .branches")).to_contain_text("2 / 2")


async def test_double_clicks_ask_once(stack, visit):
    stack.script("a</think>b")
    async with visit(USER) as page:
        await page.get_by_label("Message", exact=True).fill("twice?")
        await page.get_by_role("button", name="Send").dblclick()
        await expect(page.locator(".assistant .body")).to_have_text("b")
        await page.get_by_role("button", name="Regenerate").dblclick()
        await expect(page.locator(".assistant .branches")).to_have_text("‹2 / 2›")
        await expect(page.locator(".assistant .body")).to_have_text("b")
        await stack.idle()
        assert len(prompts(stack)) == 2


async def test_a_page_closed_during_an_answer_marks_it_incomplete(stack, visit):
    stack.script("a</think>one two", hold_after="a</think>one")
    async with visit(USER) as page:
        await send(page, "count")
        await expect(page.locator(".assistant .body")).to_contain_text("one")
        await page.reload()
        await expect(page.locator(".assistant .body")).to_have_text("one")
        # The page's last words depend on what the browser ends first, its request or its storage.
        await expect(page.locator(".assistant")).to_contain_text(re.compile("incomplete|was lost"))
        await eventually(lambda: stack.busy is None, "the closed page's request ends")


async def test_two_tabs_keep_each_others_conversations(stack, visit):
    stack.script("a</think>b")
    async with visit(ADMIN) as page:
        other = await page.context.new_page()
        await other.goto(page.url)
        await expect(other.get_by_label("Message", exact=True)).to_be_focused()
        await send(page, "in the first tab")
        await expect(page.locator(".assistant .body")).to_have_text("b")
        entries = ".conversations .entry"
        await expect(other.locator(entries)).to_have_text(["in the first tab"])
        await send(other, "in the second tab")
        await expect(other.locator(".assistant .body")).to_have_text("b")
        await send(page, "once more")
        await expect(page.locator(".assistant .body")).to_have_text(["b", "b"])
        # Both answer in the same conversation; no branch is lost.
        await other.locator(entries).filter(has_text="first").click()
        await expect(other.locator(".assistant .body")).to_have_text(["b", "b"])
        await send(other, "and here")
        await expect(other.locator(".assistant .body")).to_have_text(["b", "b", "b"])
        await page.reload()
        await expect(page.locator(entries)).to_have_count(2)
        await expect(page.locator(".user .body").last).to_have_text("and here")
        await page.get_by_role("button", name="Delete in the second tab").click()
        await page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        await expect(other.locator(entries)).to_have_count(1)


async def test_a_browser_without_storage_can_chat(stack, visit):
    stack.script("a</think>b")
    async with visit(None, expected=["401"]) as page:
        await page.add_init_script(
            """for (const name of ["localStorage", "sessionStorage"])
                Object.defineProperty(window, name, { get() { throw new DOMException("no"); } });"""
        )
        await page.reload()
        await page.get_by_label("API key").fill("schlüssel")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("not an API key")
        await page.get_by_label("API key").fill(USER)
        await page.keyboard.press("Enter")
        await send(page, "hello")
        await expect(page.locator(".assistant .body")).to_have_text("b")
        await expect(page.locator(".toasts")).to_contain_text("stores no more")
        await page.get_by_role("button", name="Theme").click()
        await expect(page.locator("html")).to_have_attribute("data-theme", "light")


def node(number, parent=None, role="user", **fields):
    return {"id": number, "parent": parent, "role": role, "content": number, **fields}


def file_of(*nodes, **fields):
    nodes = {str(n): each for n, each in enumerate(nodes)}
    return {"conversations": [{"id": "c", "title": "t", "nodes": nodes, **fields}]}


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("{", "it is not a JSON file"),
        ("null", "it is not an export"),
        (json.dumps({"conversations": [None]}), "a conversation is malformed"),
        (json.dumps({"conversations": [{}] * 1001}), "more than 1000 conversations"),
        (json.dumps(file_of(node("a", "a"))), "follows itself"),
        (json.dumps(file_of(node("a", "b"), node("b", "a"))), "follows itself"),
        (json.dumps(file_of(node("a b"))), "a message is malformed"),
        ('{"conversations": [{"nodes": {"__proto__": {"id": 1}}}]}', "a message is malformed"),
        ("[" * 100_000, "it is not a JSON file"),
        (" " * 20_000_001, "larger than 20 MB"),
    ],
    ids=["cut", "null", "entry", "many", "self", "cycle", "id", "proto", "deep", "large"],
)
async def test_a_malformed_file_is_refused_with_its_reason(visit, tmp_path, content, shown):
    file = tmp_path / "file.json"
    file.write_text(content, "utf-8")
    async with visit(USER) as page:
        await choose(page, file)
        await expect(page.locator(".toasts")).to_contain_text(shown)
        assert await page.evaluate("Object.keys(localStorage).length") == 0


async def choose(page, file):
    async with page.expect_file_chooser() as chosen:
        await page.get_by_role("button", name="Import").click()
    await (await chosen.value).set_files(file)


HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m"


async def test_an_import_adds_conversations_and_only_known_fields(stack, visit, tmp_path):
    stack.script("a</think>b")
    why = [None, HOSTILE, {"rank": HOSTILE, "candidates": [None, {HOSTILE: {}}], "filtered": 3}]
    meta = {"finish": "constructor", "tokens": "1", "price": {}, "why": why, "resumes": 1e308}
    hostile = file_of(
        node("a"),
        node("b", "a", "assistant", content=HOSTILE, meta=meta),
        node("c", "nowhere", "assistant"),
        leaf="b", title=HOSTILE,
        sampling={"temperature": "1", "top_p": 0.5, "reasoning_effort": "x", "__proto__": {"n": 9}},
        model="<b>no such model</b>", system=5, polluted=True,
    )  # fmt: skip
    file = tmp_path / "file.json"
    file.write_text(
        json.dumps(hostile).replace('"polluted"', '"__proto__": {"polluted": true}, "polluted"')
    )
    async with visit(ADMIN) as page:
        await send(page, "mine")
        await expect(page.locator(".assistant .body")).to_have_text("b")
        for count in (2, 3):  # a second copy does not replace the first
            await choose(page, file)
            await expect(page.locator(".conversations li")).to_have_count(count)
        assert await page.evaluate("[{}.polluted, {}.n]") == [None, None]
        await expect(page.locator("h1")).to_contain_text("<img")
        await expect(page.locator("main :is(img, script)")).to_have_count(0)
        await page.get_by_role("button", name="Why this rank?").click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("<img")
        await expect(dialog.locator("img")).to_have_count(0)
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Try it").click()
        curl = await dialog.locator("code").first.inner_text()
        assert '"top_p":0.5' in curl
        assert "temperature" not in curl
        await page.keyboard.press("Escape")
        await send(page, "more")
        await expect(page.locator(".assistant .body").last).to_have_text("b")


async def test_snippets_keep_emoji_and_show_what_is_hidden(stack, visit):
    stack.script("a</think>b")
    async with visit(USER) as page:
        await send(page, "\U0001f600 \u202e'; rm -rf / #\u2066")
        await expect(page.locator(".assistant .body")).to_have_text("b")
        await page.get_by_role("button", name="Try it").click()
        for code in await page.get_by_role("dialog").locator("code").all_inner_texts():
            assert "\U0001f600" in code
            assert "\\u202e" in code
            assert "\u202e" not in code
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Download openapi.json").click()
        document = json.loads((await (await waiting.value).path()).read_text())
        assert "/v1/chat/completions" in document["paths"]


async def test_views_that_are_switched_quickly_leave_one_stream(stack, visit):
    async with visit(ADMIN) as page:
        await page.evaluate(
            """() => { for (const view of ["fleet", "requests", "experts", "load", "fleet",
                "requests"]) location.hash = view; }"""
        )
        await expect(page.locator("main > .view")).to_have_count(1)
        await expect(page.get_by_role("heading", name="Requests in progress")).to_be_visible()
        await eventually(lambda: len(stack.hub.reading("")) == stack.hub.subscriptions == 1)
        for _ in range(2):
            await page.go_back()
        await expect(page.get_by_role("heading", name="Load", exact=True)).to_be_visible()
        await asyncio.sleep(0)
