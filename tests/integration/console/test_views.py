"""Cost, batches and the autoscaler's decisions in the page; hostile names; two models.

Names of groups, sessions, requests, batches and reasons are untrusted: the page shows them as text.
"""

import json

import httpx
import pytest
import pytest_asyncio

from serving.edge.auth.keys import digest_of
from serving.settings import BUNDLED_MODEL, Settings
from tests.integration.console.browsing import MILLISECONDS, PHONE, visiting
from tests.integration.console.stack import ADMIN, KEYS, USER, running, settings
from tests.support.browser import FLAGS, browser_or_skip
from tests.support.waiting import PATIENCE, eventually

playwright_api = pytest.importorskip("playwright.async_api")
expect = playwright_api.expect
pytestmark = pytest.mark.asyncio(loop_scope="module")

MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script><svg onload=alert(3)>"
HOSTILE = f"{MARKUP}[a](javascript:alert(4))\u202eevil\u2066\x1b[31mred"
LONG = "unbreakable" * 20
ELEMENTS = "main :is(img, script, iframe, object, [onerror], [onload]), dialog :is(img, script)"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    path = browser_or_skip()
    expect.set_options(timeout=MILLISECONDS)
    async with playwright_api.async_playwright() as driver:
        opened = await driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield opened
        await opened.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("console")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(folder):
    async with running(settings(folder), HOSTILE, LONG) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def http(stack):
    base = stack.router.addresses.rest
    async with httpx.AsyncClient(base_url=base, timeout=PATIENCE) as client:
        yield client
    stack.release()
    await stack.idle()


def bearer(key):
    return {"authorization": f"Bearer {key}"}


async def report(http, **fields):
    body = {"at": 1.7e9, "current": 1, "target": 2, "reason": HOSTILE} | fields
    sent = await http.post("/console/api/autoscaler", json=body, headers=bearer(ADMIN))
    assert sent.status_code == 200


async def test_the_autoscalers_decisions_are_shown_with_their_reasons(stack, http, browser):
    vote = {"rule": "queue", "kind": "vote", "groups": 2, "reason": "requests wait"}
    async with visiting(browser, stack.url, ADMIN, "load") as page:
        await expect(page.get_by_text("No autoscaler has reported")).to_be_visible()
        await report(http, reason="more load", votes=[vote], signals={"queue": 7})
        changes = page.get_by_role("region", name="Changes").locator("tbody tr")
        await expect(changes).to_contain_text(["1 → 2more load"])
        await page.get_by_text("Votes and signals").click()
        await expect(page.get_by_role("region", name="Votes")).to_contain_text("requests wait")
        await report(http, current=2, target=1, reason="less load", pool="m / p", dry_run=True)
        await expect(page.get_by_role("heading", name="m / p")).to_be_visible()
        await expect(page.get_by_text("2 → 1 groups (dry run): less load")).to_be_visible()


@pytest.mark.parametrize(
    ("key", "headers", "status"),
    [
        pytest.param(USER, {}, 403, id="a user"),
        pytest.param(ADMIN, {"origin": "http://localhost"}, 403, id="a browser"),
    ],
)
async def test_decisions_come_from_the_autoscaler_only(http, key, headers, status):
    body = {"at": 1, "current": 1, "target": 2, "reason": "x"}
    sent = await http.post("/console/api/autoscaler", json=body, headers=bearer(key) | headers)
    assert sent.status_code == status


async def test_cost_and_budgets_follow_requests(stack, http, browser):
    stack.script("a</think>b c d")
    body = {"model": "pocket-r1", "messages": [{"role": "user", "content": "hi"}]}
    sent = await http.post("/v1/chat/completions", json=body, headers=bearer(USER))
    tokens = sent.json()["usage"]["completion_tokens"]
    answer = None

    async def recorded():
        nonlocal answer
        answer = (await http.get("/console/api/spending", headers=bearer(ADMIN))).json()
        used = sum(row["output"] for row in answer["usage"] if row["tenant"] == "alice")
        return used >= tokens and answer["budgets"][0]["spent"] > 0  # read before the usage

    await eventually(recorded, "usage and spending")
    async with (
        visiting(browser, stack.url, USER, "cost") as mine,
        visiting(browser, stack.url, ADMIN, "cost") as all_of_it,
    ):
        row = mine.get_by_role("region", name="Budgets").locator("tbody tr")
        await expect(row).to_contain_text("alice")
        await expect(row).to_contain_text("80")
        await expect(mine.get_by_role("img", name="percent spent")).to_be_visible()
        await expect(mine.get_by_text("Usage since midnight")).to_have_count(0)
        usage = all_of_it.get_by_role("region", name="Usage by tenant")
        await expect(usage.locator("tbody tr").first).to_contain_text("alice")
        await expect(all_of_it.locator(".totals")).to_contain_text("EUR")
    mine = (await http.get("/console/api/spending", headers=bearer(USER))).json()
    assert sorted(mine) == ["budgets", "hidden_budgets"]


async def test_batches_are_listed_with_hostile_metadata_and_cancelled(stack, http, browser):
    stack.script("a</think>b", hold_after="a")
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "pocket-r1", "messages": [{"role": "user", "content": "hi"}]},
    }
    upload = await http.post(
        "/v1/files",
        headers=bearer(USER),
        files={"file": ("in.jsonl", json.dumps(line).encode())},
        data={"purpose": "batch"},
    )
    body = {
        "input_file_id": upload.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"name": HOSTILE},
    }
    made = await http.post("/v1/batches", json=body, headers=bearer(USER))
    assert made.status_code == 200, made.text
    async with visiting(browser, stack.url, USER, "batches") as page:
        row = page.locator("tbody tr")
        await expect(row).to_contain_text(made.json()["id"])
        await expect(row).to_contain_text("<script>alert(2)</script>")
        await expect(row).to_contain_text("U+202E")
        await row.get_by_role("button", name="Cancel").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel the batch").click()
        await expect(row.locator(".pill")).to_contain_text("cancel")
        stack.release()
        await expect(page.locator(ELEMENTS)).to_have_count(0)


async def test_hostile_and_long_names_are_text_in_every_view(stack, http, browser):
    await report(http, pool=HOSTILE, votes=[], signals={HOSTILE: None})
    stack.router.membership.cordon(LONG, HOSTILE)
    stack.script("a</think>b", hold_after="a")
    headers = bearer(USER) | {
        "x-session-id": MARKUP.replace(" ", "/"),
        "x-request-id": MARKUP.replace(" ", "/") + "w" * 40,
    }
    body = {"model": "pocket-r1", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as sent:
        assert sent.status_code == 200, await sent.aread()
        await eventually(lambda: stack.busy)
        seen = {}
        async with visiting(browser, stack.url, ADMIN, viewport=PHONE) as page:
            for view, place in (
                ("fleet", ".card h2"),
                ("requests", "tbody th"),
                ("experts", "option"),
                ("load", ".pools h3"),
            ):
                await page.evaluate(f"location.hash = '{view}'")
                await expect(page.locator(place).filter(has_text="<img")).not_to_have_count(0)
                await expect(page.locator(ELEMENTS)).to_have_count(0)
                text = await page.locator("main").inner_text()
                wider = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
                seen[view] = ("\u202e" in text or "\x1b" in text, max(wider, 0))
            await page.evaluate("location.hash = 'fleet'")
            await page.locator(".rank").first.click()
            await expect(page.get_by_role("dialog")).to_be_visible()
            await expect(page.locator(ELEMENTS)).to_have_count(0)
        assert seen == dict.fromkeys(("fleet", "requests", "experts", "load"), (False, 0))
        stack.release()
    stack.router.membership.uncordon(LONG)


async def test_a_key_that_is_removed_while_the_page_is_open_asks_for_another(
    stack, folder, browser
):
    expected = ["401"]
    async with visiting(browser, stack.url, USER, "requests", expected=expected) as page:
        await expect(page.get_by_text("Your requests in progress")).to_be_visible()
        old = KEYS.replace(digest_of(USER), digest_of("moe-the-next-key"))
        (folder / "keys.yaml").write_text(old)
        await page.get_by_role("link", name="Cost").click()
        await expect(page.get_by_role("alert")).to_contain_text("invalid API key")
        await page.get_by_label("API key").fill(ADMIN)
        await page.keyboard.press("Enter")
        # The views are those of the other key.
        await expect(page.get_by_text("Usage since midnight UTC")).to_be_visible()
        await expect(page.get_by_role("link", name="Fleet")).to_be_visible()
    (folder / "keys.yaml").write_text(KEYS)


async def test_the_whole_page_is_used_with_the_keyboard(stack, http, browser):
    stack.script("a</think>b")
    async with visiting(browser, stack.url, ADMIN) as page:
        await expect(page.get_by_role("textbox", name="Message")).to_be_focused()
        await page.keyboard.type("hello")
        await page.keyboard.press("Enter")
        await expect(page.locator(".assistant .body")).to_have_text("b")
        for number, view in enumerate(("Chat", "Fleet", "Requests", "Experts", "Load", "Cost")):
            await page.keyboard.press(f"Alt+{number + 1}")
            await expect(page.get_by_role("link", name=view)).to_have_attribute(
                "aria-current", "page"
            )
        await page.keyboard.press("Alt+2")
        cordon = page.get_by_role("button", name="Cordon").first
        await cordon.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        # Focus starts at the harmless answer, Escape leaves, and focus returns.
        await expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(cordon).to_be_focused()


def two_models(folder) -> Settings:
    made = settings(folder)
    prices = "{cached: 1, uncached: 1, output: 1}"
    (folder / "tariff.yaml").write_text(
        f"currency: EUR\nmodels: {{pocket-r1: {prices}, org/second: {prices}}}"
    )
    entry = {"path": str(BUNDLED_MODEL)}
    models = [
        {"name": "pocket-r1", **entry, "pools": [{"name": "fast"}, {"name": "slow"}]},
        {"name": "org/second", "aliases": ["second"], **entry},
    ]
    fields = made.model_dump(exclude_unset=True)
    return Settings(**fields | {"models": models})


async def test_two_models_and_no_groups(browser, tmp_path):
    async with running(two_models(tmp_path)) as stack:
        async with visiting(browser, stack.url, ADMIN, "fleet") as page:
            table = page.get_by_role("region", name="Models").locator("tbody tr")
            await expect(table.nth(0)).to_contain_text("fast 0 of 0, slow 0 of 0")
            await expect(table.nth(1)).to_contain_text("org/second (second)")
            await expect(page.get_by_text("No group has joined this router")).to_be_visible()
            await page.evaluate("location.hash = 'experts'")
            await expect(page.get_by_label("Group")).to_be_visible()
            await page.evaluate("location.hash = 'chat'")
            await page.get_by_role("button", name="Parameters").click()
            names = await page.get_by_label("Model or adapter").locator("option").all_inner_texts()
            assert names == ["pocket-r1", "org/second", "second"]
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            answer = await client.get(f"{stack.url}api/session", headers=bearer(ADMIN))
            assert set(answer.json()["prices"]) == {"pocket-r1", "org/second", "second"}


async def test_a_long_list_of_requests_is_bounded_and_fits(stack, browser):
    requests = [
        {
            "number": str(n), "id": f"{MARKUP}{LONG}", "tenant": LONG, "model": LONG, "key": "k",
            "priority": "standard", "session": HOSTILE, "phase": "queued", "since": 1.0,
            "waited": 0, "waiting_for": f"no rank has room {LONG}", "position": n + 1,
            "predicted_wait": 3.5, "resumes": 0, "prompt_tokens": 10**9, "cached_tokens": 5,
            "output_tokens": 0, "why": None,
        }
        for n in range(200)
    ]  # fmt: skip
    content = {"total": 5000, "phases": {"queued": 200}, "requests": requests}

    async def stream(route):
        if "feed=requests" not in route.request.url:
            await route.continue_()
            return
        body = f"event: requests\ndata: {json.dumps(content)}\n\n"
        await route.fulfill(body=body, content_type="text/event-stream")

    for viewport in (PHONE, {"width": 1920, "height": 1000}):
        async with visiting(browser, stack.url, ADMIN, viewport=viewport) as page:
            await page.route("**/console/api/stream*", stream)
            await page.evaluate("location.hash = 'requests'")
            await expect(page.locator("tbody tr")).to_have_count(200)
            await expect(page.get_by_text("4,800 more are not")).to_be_visible()
            first = page.locator("tbody tr").first
            await expect(first).to_contain_text("number 1 in the queue, about 3.5 s: no rank has")
            await expect(page.locator(ELEMENTS)).to_have_count(0)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        (None, "This group has left the router."),
        ({"experts": 0, "layers": []}, "The model of this group has no experts."),
        ({"experts": 16, "layers": []}, "have not reported the load of their experts yet"),
    ],
    ids=["gone", "dense", "silent"],
)
async def test_the_experts_view_says_why_it_has_no_picture(stack, browser, matrix, shown):
    more = {"homes": [], "tokens": [], "cells": "", "imbalance": [], "hottest": []}
    more["homes"] = [[] for _ in range((matrix or {}).get("experts", 0))]
    event = None if matrix is None else more | matrix

    async def stream(route):
        if "feed=experts" not in route.request.url:
            await route.continue_()
            return
        body = f"event: experts\ndata: {json.dumps(event)}\n\n"
        await route.fulfill(body=body, content_type="text/event-stream")

    async with visiting(browser, stack.url, ADMIN) as page:
        await page.route("**/console/api/stream*", stream)
        await page.evaluate("location.hash = 'experts'")
        await expect(page.get_by_text(shown)).to_be_visible()
        await expect(page.locator(".heat canvas")).to_be_hidden()
