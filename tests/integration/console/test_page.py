"""The console in a real browser: chat, sign-in, fleet, experts, accessibility, hostile text.

The module has one browser and one router; each test has a separate page without storage. A page
must not log an error or send a request to another origin.
"""

import asyncio
import json
import os
import re
import shlex
from functools import partial

import pytest
import pytest_asyncio
from google.protobuf import json_format

from serving.api.v1 import inference_pb2
from tests.integration.console.browsing import (
    AUDIT,
    MILLISECONDS,
    PHONE,
    WIDE,
    WIDER,
    WIDTHS,
    visiting,
)
from tests.integration.console.stack import ADMIN, USER, running, settings
from tests.support.browser import AXE, FLAGS, browser_or_skip
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
    """Open the console as a key; a page that logs an error or leaves the origin fails the test."""
    yield partial(visiting, browser, stack.url)
    stack.release()
    await stack.idle()


async def send(page, text):
    await page.get_by_label("Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def test_a_key_is_needed_and_is_not_in_the_address(stack, visit):
    stack.script("I think</think>It is 42")
    async with visit(None, expected=["401"]) as page:
        field = page.get_by_label("API key")
        await field.fill("moe-wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("invalid API key")
        await field.fill(USER)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("link", name="Chat")).to_be_visible()
        # A user sees chat and requests, not the fleet.
        assert await page.locator("nav.tabs a").all_inner_texts() == [
            "Chat",
            "Requests",
            "Cost",
            "Batches",
        ]
        assert USER not in page.url
        await page.reload()
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        await page.get_by_role("button", name="Sign out").click()
        await expect(field).to_be_visible()


async def test_chat_streams_reasoning_then_folds_it(stack, visit):
    stack.script("I think of 17 and 25</think>It is **42**", hold_after="I think")
    async with visit(USER) as page:
        await send(page, "What is 17+25?")
        reasoning = page.locator("details.reasoning")
        await expect(reasoning).to_contain_text("I think")
        assert await reasoning.evaluate("node => node.open")
        stack.release()
        answer = page.locator(".assistant .body")
        await expect(answer.locator("strong")).to_have_text("42")
        await expect(page.locator(".stats")).to_contain_text("tokens/s")
        assert not await reasoning.evaluate("node => node.open")
        # The conversation is there after a reload.
        await page.reload()
        await expect(page.locator(".assistant .body strong")).to_have_text("42")


async def test_an_answer_is_stopped_regenerated_and_branched(stack, visit):
    stack.script("a</think>one two three", hold_after="a</think>one")
    async with visit(USER) as page:
        await send(page, "count")
        await expect(page.locator(".assistant .body")).to_contain_text("one")
        await page.keyboard.press("Escape")
        await expect(page.locator(".stats")).to_contain_text("stopped")
        await eventually(lambda: stack.busy is None, "the end of the request in the engine")
        stack.script("a</think>seven")
        await page.get_by_role("button", name="Regenerate").click()
        await expect(page.locator(".assistant .body")).to_have_text("seven")
        await expect(page.locator(".assistant .branches")).to_contain_text("2 / 2")
        await page.get_by_role("button", name="Previous version").click()
        await expect(page.locator(".assistant .body")).to_contain_text("one")
        await page.get_by_role("button", name="Edit", exact=True).click()
        await page.get_by_label("Edit message").fill("count on")
        await page.keyboard.press("Enter")
        await expect(page.locator(".assistant .body")).to_have_text("seven")
        await expect(page.locator(".user .branches")).to_contain_text("2 / 2")
        prompts = [prompt for engine in stack.engines.values() for prompt in engine.prompts]
        assert any("count on" in prompt for prompt in prompts)


async def test_parameters_reach_the_engine(stack, visit):
    stack.script("a</think>b")
    async with visit(USER) as page:
        await page.get_by_role("button", name="Parameters").click()
        await page.get_by_label("System prompt").fill("Be brief.")
        await page.get_by_label("temperature").fill("0.25")
        await page.get_by_label("max tokens").fill("77")
        await send(page, "hello")
        await expect(page.locator(".assistant .body")).to_have_text("b")
    [engine] = [each for each in stack.engines.values() if each.params]
    [params] = engine.params
    assert (params.temperature, params.max_tokens) == (0.25, 77)
    assert engine.prompts[0].find("Be brief.") >= 0


async def test_a_lost_rank_leaves_a_small_mark(stack, visit):
    stack.script("I think so</think>one two three", hold_after="I think so")
    async with visit(ADMIN) as page:
        await send(page, "count")
        await expect(page.locator(".assistant")).to_contain_text("think so")
        await eventually(lambda: stack.busy and stack.engines[stack.busy].held.is_set())
        lost = stack.busy
        stack.lose(lost)
        stack.release()
        await expect(page.locator(".mark")).to_contain_text("continued on another one")
        await expect(page.locator(".assistant .body")).to_have_text("one two three")
        # An admin may ask why the rank was chosen.
        await page.get_by_role("button", name="Why this rank?").click()
        await expect(page.get_by_role("dialog")).to_contain_text("Rank 0 of g")
    await eventually(lambda: stack.router.membership.ready_groups == 2)


async def test_conversations_are_exported_and_imported(stack, visit, tmp_path):
    stack.script("a</think>exported")
    async with visit(USER) as page:
        await send(page, "remember")
        await expect(page.locator(".assistant .body")).to_have_text("exported")
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Export", exact=True).click()
        file = tmp_path / "conversation.json"
        await (await waiting.value).save_as(file)
    saved = json.loads(file.read_text("utf-8"))
    [conversation] = saved["conversations"]
    # As untrusted as an answer: unknown fields and types are left out.
    conversation["title"] = HOSTILE
    conversation["nodes"]["__proto__"] = {"polluted": 1}
    conversation["sampling"] = {"stream": 0, "temperature": 0.5}
    file.write_text(json.dumps(saved), "utf-8")
    async with visit(USER) as page:
        async with page.expect_file_chooser() as chosen:
            await page.get_by_role("button", name="Import").click()
        await (await chosen.value).set_files(file)
        await expect(page.get_by_role("status").last).to_contain_text("a message is malformed")
        del conversation["nodes"]["__proto__"]
        file.write_text(json.dumps(saved), "utf-8")
        async with page.expect_file_chooser() as chosen:
            await page.get_by_role("button", name="Import").click()
        await (await chosen.value).set_files(file)
        await expect(page.locator(".assistant .body")).to_have_text("exported")
        await expect(page.locator("h1")).to_contain_text("<img")


async def test_the_snippets_do_what_the_page_did(stack, visit):
    stack.script("a</think>b")
    async with visit(USER) as page:
        await page.get_by_role("button", name="Parameters").click()
        await page.get_by_label("temperature").fill("0.25")
        await send(page, 'it\'s "quoted"')
        await expect(page.locator(".assistant .body")).to_have_text("b")
        await page.get_by_role("button", name="Try it").click()
        codes = page.get_by_role("dialog").locator("code")
        curl, python, grpc = await codes.all_inner_texts()
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", curl, env={**os.environ, "MOE_KEY": USER}, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert b"data: [DONE]" in output
    prompts = [prompt for engine in stack.engines.values() for prompt in engine.prompts]
    assert len(prompts) == 2
    assert prompts[0] == prompts[1]
    # The others are read as what they are, not run.
    compile(python, "snippet", "exec")
    assert USER not in curl + python + grpc
    words = shlex.split(grpc)
    request = json_format.Parse(words[words.index("-d") + 1], inference_pb2.ChatRequest())
    assert (request.model, request.sampling.temperature) == ("pocket-r1", 0.25)
    assert words[-1] == "serving.api.v1.InferenceService/ChatStream"


HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)</script><svg onload=alert(3)>"
    " [js](javascript:alert(4)) [data](data:text/html,x) [ok](https://example.com/)"
    " ![img](https://example.com/a.png) \u202eevil\u2066 \x1b[31mred"
)


async def test_hostile_output_is_text(stack, visit):
    stack.script(f"{HOSTILE}</think>{HOSTILE}\n\n```html\n<b>{HOSTILE}</b>\n```")
    async with visit(USER) as page:
        await send(page, HOSTILE)
        await expect(page.locator(".assistant figure.code")).to_be_visible()
        article = page.locator(".thread")
        assert (
            await article.locator("img, script, svg, iframe, object, [onerror], [onload]").count()
            == 0
        )
        links = await article.locator("a").evaluate_all("all => all.map((each) => each.href)")
        assert {re.sub(r"(?<=com/).*", "", link) for link in links} <= {"https://example.com/"}
        text = await article.inner_text()
        assert "<script>alert(2)</script>" in text
        assert "\u202e" not in text
        assert "\x1b" not in text
        assert "U+202E" in text


MARKDOWN = {
    "# T": "<h3>T</h3>",
    "a *b* __c__ ~~d~~": "<p>a <em>b</em> <strong>c</strong> <del>d</del></p>",
    "`e<i>`": "<p><code>e&lt;i&gt;</code></p>",
    "snake_case_name 2*3*4 * x": "<p>snake_case_name 2<em>3</em>4 * x</p>",
    "- a\n  - b\n- c": "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "> q\n> r": "<blockquote><p>q\nr</p></blockquote>",
    "a\n\n---\nb": "<p>a</p><hr><p>b</p>",
    "[x](https://e.org/a)": (
        '<p><a href="https://e.org/a" target="_blank" rel="noopener noreferrer nofollow"'
        ' title="https://e.org/a">x</a></p>'
    ),
    "[x](javascript:a)": "<p><span>x</span></p>",
    "**unclosed *and `open": "<p>**unclosed *and `open</p>",
}  # fmt: skip


async def test_markdown(visit):
    async with visit(USER) as page:
        found = await page.evaluate(
            """async (sources) => {
                const { markdown } = await import("./markdown.js");
                return sources.map((source) => {
                    const box = document.createElement("div");
                    box.append(markdown(source));
                    return box.innerHTML;
                });
            }""",
            list(MARKDOWN),
        )
        assert dict(zip(MARKDOWN, found, strict=True)) == MARKDOWN
        # A text that grows ends as the same elements as the whole text; long runs end in time.
        same = await page.evaluate(
            """async (source) => {
                const { GrowingMarkdown, markdown } = await import("./markdown.js");
                const [growing, whole] = [0, 0].map(() => document.createElement("div"));
                const view = new GrowingMarkdown(growing);
                for (let end = 1; end <= source.length; end += 1) view.update(source.slice(0, end));
                whole.append(markdown(source));
                for (const run of ["[", "*", "_a ", "`", "> ", "- ", "(", "**a", "|-", "[]("]) {
                    markdown(run.repeat(20000));
                }
                return growing.innerHTML === whole.innerHTML;
            }""",
            "\n\n".join(
                [*MARKDOWN, "```py\n# x\n\ny\n```", "| a | b |\n|---|:-:|\n| 1 | 2 |", "end"]
            ),
        )
        assert same


async def test_the_fleet_is_live_and_drained_by_an_admin(stack, visit):
    async with visit(ADMIN, "fleet") as page:
        card = page.get_by_role("article", name=re.compile("Group g1"))
        await expect(card.locator(".pill")).to_have_text("ready")
        await card.get_by_role("button", name="Drain").click()
        await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
        await expect(card.locator(".pill")).to_have_text("draining")
        await card.get_by_role("button", name="Uncordon").click()
        await page.get_by_role("dialog").get_by_role("button", name="Uncordon").click()
        await expect(card.locator(".pill")).to_have_text("ready")
        await card.locator(".rank").click()
        await expect(page.get_by_role("dialog")).to_contain_text("scripted 1")
        await page.keyboard.press("Escape")
        # A killed rank is seen with its reason, and when it has proven itself again.
        server = stack.servers.pop()
        await server.stop()
        await expect(card).to_have_count(0)
        await expect(page.get_by_role("region", name="Former groups")).to_contain_text("g1")
        del stack.engines["g1"]
        await stack.join("g1")
        await expect(card.locator(".pill")).to_have_text("ready")


async def test_requests_show_why_and_are_cancelled(stack, visit):
    stack.script("a</think>one two three", hold_after="a</think>one")
    async with visit(ADMIN) as chat, visit(ADMIN, "requests") as page:
        await expect(page.get_by_text("No request is in progress.")).to_be_visible()
        await send(chat, "count")
        row = page.locator("tbody tr")
        await expect(row.locator(".pill")).to_have_text("generating")
        await row.get_by_role("button", name="Why?").click()
        await expect(page.get_by_role("dialog").locator("tbody tr")).to_have_count(2)
        await page.get_by_role("dialog").get_by_role("button", name="Close").click()
        await row.get_by_role("button", name="Cancel request").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel the request").click()
        await expect(row).to_have_count(0)
        await expect(chat.locator(".assistant .error")).to_contain_text("cancelled in the console")


async def test_the_heat_map_changes_and_pauses(stack, visit):
    stack.script("a</think>b")
    async with visit(ADMIN, "experts") as page:
        heat = page.get_by_role("img", name="Load of the experts")
        hottest = page.get_by_role("region", name="Hottest experts").locator("tbody tr").first
        await expect(hottest).to_contain_text("1")
        before = await heat.evaluate("node => node.toDataURL()")
        stack.engines["g0"].expert_tokens[2][7] = 500
        await expect(hottest).to_contain_text("500")
        assert await heat.evaluate("node => node.toDataURL()") != before
        await page.get_by_role("button", name="Pause").click()
        await heat.focus()
        for key in ["ArrowDown"] * 2 + ["ArrowRight"] * 7:
            await page.keyboard.press(key)
        await expect(page.locator(".reading")).to_contain_text(
            "Layer 5, expert 7, rank 0: 8 or more"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
async def test_every_view_is_accessible_and_fits(stack, visit, scheme, viewport):
    if not AXE.is_file():
        pytest.skip("no axe-core: .ci/tools fetched none")
    source = AXE.read_text("utf-8")
    stack.script(
        "think\n\n- a</think># Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```"
    )
    found = {}
    async with visit(ADMIN, scheme=scheme, viewport=viewport) as page:
        await page.evaluate(source)
        await send(page, "hello")
        await expect(page.locator(".assistant .stats")).to_contain_text("tokens")
        for view in ("chat", "fleet", "requests", "experts", "load", "cost", "batches"):
            await page.evaluate(f"location.hash = '{view}'")
            await expect(page.locator(f"nav a[href='#{view}']")).to_have_attribute(
                "aria-current", "page"
            )
            await expect(page.locator("main .view")).to_be_visible()
            if view == "fleet":
                await expect(page.locator(".rank")).to_have_count(2)
            found[view] = await page.evaluate(AUDIT)
            if viewport is WIDE:
                for width in WIDTHS:
                    await page.set_viewport_size(viewport | {"width": width})
                    found[view]["wider"] += await page.evaluate(WIDER)
                await page.set_viewport_size(viewport)
    assert found == {view: {"violations": [], "wider": 0} for view in found}
