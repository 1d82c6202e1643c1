"""The console's routes over real ports: headers, roles, actions, streams that end."""

import asyncio
import contextlib
import itertools
import json
import socket

import httpx
import pytest
import pytest_asyncio

from serving.console.assets import assets
from tests.integration.console.stack import ADMIN, METRICS, OTHER, USER, running, settings
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    async with running(settings(folder, max_streams=3), "g0", "g1") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def http(stack):
    async with httpx.AsyncClient(base_url=stack.url, timeout=PATIENCE) as client:
        yield client
    stack.release()
    await stack.idle()
    await eventually(lambda: not stack.hub.subscriptions, "the end of all streams")


def bearer(key):
    return {"authorization": f"Bearer {key}"} if key else {}


@contextlib.asynccontextmanager
async def snapshots(http, key, *feeds):
    """Yield a function that returns the next event as (name, data)."""
    query = "&".join(f"feed={feed}" for feed in feeds)
    async with http.stream("GET", f"api/stream?{query}", headers=bearer(key)) as response:
        assert response.status_code == 200, await response.aread()
        lines = response.aiter_lines()

        async def following(name):
            event = ""
            async for line in lines:
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event == name:
                    return json.loads(line.removeprefix("data: "))
            return None

        yield following


async def test_every_file_has_the_security_headers_and_a_tag(http):
    for path in ("", *assets(), "nowhere.js"):
        answer = await http.get(path)
        assert answer.status_code == (404 if path == "nowhere.js" else 200)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        if answer.status_code == 200:
            assert answer.headers["content-encoding"] == "gzip"
            again = await http.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert again.status_code == 304


@pytest.mark.parametrize(
    "path",
    ["../fleet_feed.py", "..%2froutes.py", "%2e%2e/routes.py", "static/app.js", "/etc/passwd"],
)
async def test_no_path_leads_out_of_the_folder(http, path):
    answer = await http.get(f"{http.base_url}{path}")
    assert answer.status_code in {404, 401}


async def test_without_a_slash_a_relative_redirect(stack, http):
    answer = await http.get(stack.url.rstrip("/"))
    assert answer.headers["location"] == "console/"


@pytest.mark.parametrize(
    ("key", "status", "may"),
    [
        (None, 401, {}),
        ("moe-unknown", 401, {}),
        (USER, 200, {"chat": True, "admin": False, "explain": False, "tenant": "alice"}),
        (ADMIN, 200, {"chat": True, "admin": True, "explain": True, "tenant": "ops"}),
        (METRICS, 200, {"chat": False, "admin": False}),
    ],
)
async def test_a_session_says_what_its_key_may(http, key, status, may):
    answer = await http.get("api/session", headers=bearer(key))
    assert answer.status_code == status
    assert status != 200 or answer.headers["cache-control"] == "no-store"
    assert may.items() <= answer.json().items()


@pytest.mark.parametrize(
    ("feed", "key", "status"),
    [
        ("fleet", None, 401),
        ("fleet", USER, 403),
        ("timeline", USER, 403),
        ("experts:g0", METRICS, 403),
        ("requests", METRICS, 403),
        ("nothing", ADMIN, 400),
        ("experts:", ADMIN, 400),
    ],
)
async def test_feeds_need_roles_and_names(http, feed, key, status):
    answer = await http.get("api/stream", params={"feed": feed}, headers=bearer(key))
    assert answer.status_code == status


async def test_the_fleet_is_sent_whole_then_as_it_changes(stack, http):
    async with snapshots(http, ADMIN, "fleet") as following:
        whole = await following("fleet")
        assert [group["state"] for group in whole["groups"]] == ["ready", "ready"]
        assert len(await following("load")) == 2
        stack.router.membership.cordon("g1", "for the test")
        assert (await following("fleet"))["groups"][1]["state"] == "draining"
        stack.router.membership.uncordon("g1")
        assert (await following("fleet"))["groups"][1]["state"] == "ready"


async def test_experts_are_a_matrix(stack, http):
    stack.engines["g0"].expert_tokens[1] = [0] * 15 + [160]
    async with snapshots(http, ADMIN, "experts:g0") as following:
        found = await following("experts")
        while found["tokens"][1] != 160:
            found = await following("experts")
    assert (found["layers"], found["experts"]) == ([3, 4, 5], 16)
    assert found["hottest"][0]["expert"] == 15
    async with snapshots(http, ADMIN, "experts:absent", "timeline") as following:
        assert await following("experts") is None
        assert (await following("timeline"))["period"] == 10


async def ask(http, key=USER, **more):
    body = {"model": "pocket-r1", "messages": [{"role": "user", "content": "hi"}]}
    return await http.post("../v1/chat/completions", json=body | more, headers=bearer(key))


async def test_requests_are_seen_by_their_tenant_and_cancelled(stack, http):
    stack.script("one two three</think>four", hold_after="one")
    async with (
        snapshots(http, OTHER, "requests") as others,
        snapshots(http, ADMIN, "requests") as all_,
    ):
        asking = asyncio.create_task(ask(http))
        while not (found := await all_("requests"))["phases"].get("generating"):
            pass
        [request] = found["requests"]
        assert request["tenant"] == "alice"
        assert request["output_tokens"] > 0
        assert request["why"]["reason"]
        # A console is watching, so the scores are kept although the client did not request them.
        assert len(request["why"]["candidates"]) == 2
        assert (await others("requests"))["total"] == 0
        cancel = {"number": request["number"]}
        refused = await http.post("api/cancel", json=cancel, headers=bearer(OTHER))
        assert refused.status_code == 400
        assert (await http.post("api/cancel", json=cancel, headers=bearer(USER))).status_code == 200
        answer = await asking
        assert (answer.status_code, answer.json()["error"]["reason"]) == (
            403,
            "CANCELLED_BY_OPERATOR",
        )
    await eventually(lambda: not stack.router.client._services.explain_all)


async def test_a_queued_request_is_cancelled(stack, http):
    stack.router.membership.cordon("g0", "for the test")
    stack.router.membership.cordon("g1", "for the test")
    try:
        asking = asyncio.create_task(ask(http))
        async with snapshots(http, USER, "requests") as following:
            while not (found := await following("requests"))["requests"]:
                pass
            [request] = found["requests"]
            assert request["phase"] == "parked"
            assert request["waiting_for"]
            await http.post("api/cancel", json={"number": request["number"]}, headers=bearer(ADMIN))
            assert (await asking).status_code == 403
    finally:
        stack.router.membership.uncordon("g0")
        stack.router.membership.uncordon("g1")


async def test_a_resumption_is_marked_in_the_stream(stack, http):
    stack.script("one two three</think>four five", hold_after="one two")
    body = {
        "model": "pocket-r1", "stream": True, "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    headers = bearer(USER)
    async with http.stream("POST", "../v1/chat/completions", json=body, headers=headers) as answer:
        lines = answer.aiter_lines()
        await eventually(lambda: stack.busy)
        lost = stack.busy
        await stack.engines[lost].held.wait()
        stack.lose(lost)
        stack.release()
        found = [line async for line in lines]
    assert [line for line in found if line.startswith(": x-resumed")] == [": x-resumed 1"]
    chunks = [json.loads(line[6:]) for line in found if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    text = "".join(
        (delta.get("reasoning") or "") + (delta.get("content") or "") for delta in deltas
    )
    assert text == "one two threefour five"
    await eventually(lambda: stack.router.membership.ready_groups == 2)


async def test_groups_are_cordoned_and_drained(stack, http):
    async def act(action, group="g1", key=ADMIN, **headers):
        body = {"group": group, "action": action}
        sent = await http.post("api/groups", json=body, headers=bearer(key) | headers)
        return sent.status_code

    def state():
        groups = stack.router.membership.snapshot().groups
        return {group.group_id: (group.state.value, group.reason) for group in groups}["g1"]

    assert await act("cordon") == 200
    assert state() == ("draining", "cordoned: cordoned in the console")
    assert await act("uncordon") == 200
    assert state()[0] == "ready"
    assert await act("drain") == 200
    assert state()[0] == "draining"
    assert await act("uncordon") == 200
    assert await act("cordon", key=USER) == 403
    assert await act("cordon", key=None) == 401
    assert await act("cordon", group="absent") == 404
    assert await act("destroy") == 400
    assert await act("cordon", **{"sec-fetch-site": "cross-site"}) == 403
    plain = await http.post(
        "api/groups", content='{"group": "g1", "action": "cordon"}',
        headers=bearer(ADMIN) | {"content-type": "text/plain"},
    )  # fmt: skip
    assert plain.status_code == 400
    assert state()[0] == "ready"


async def test_consoles_beyond_the_limit_are_refused(stack, http):
    async with contextlib.AsyncExitStack() as opened:
        for _ in range(3):
            await opened.enter_async_context(snapshots(http, ADMIN, "fleet"))
        refused = await http.get("api/stream?feed=fleet", headers=bearer(ADMIN))
        assert (refused.status_code, refused.json()["error"]["reason"]) == (429, "OVERLOADED")


async def test_a_console_that_does_not_read_is_dropped(tmp_path):
    made = settings(tmp_path, stall_timeout=0.2)
    async with running(made, "g0") as stack:
        hub = stack.hub
        with contextlib.closing(socket.socket()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", stack.router.addresses.rest_port))
            head = (
                "GET /console/api/stream?feed=fleet HTTP/1.1",
                "host: x",
                f"authorization: Bearer {ADMIN}",
                "\r\n",
            )
            await loop.sock_sendall(client, "\r\n".join(head).encode())
            await eventually(lambda: hub.subscriptions == 1)
            [feed] = hub._feeds.values()
            sizes = itertools.count()
            # Snapshots that differ each time, and are larger than the connection's buffers.
            feed.build = lambda: {"fleet": b"%d %s" % (next(sizes), b"x" * 2**20)}
            await eventually(lambda: hub.subscriptions == 0, "the end of its stream")


async def test_open_consoles_end_when_the_router_stops(tmp_path):
    async with (
        running(settings(tmp_path), "g0") as stack,
        httpx.AsyncClient(base_url=stack.url, timeout=PATIENCE) as client,
        snapshots(client, ADMIN, "fleet") as following,
    ):
        assert await following("fleet")
        stopping = asyncio.create_task(stack.router.stop())
        assert await following("never") is None  # the end of the stream, not an error
        await stopping


async def test_a_router_without_the_console_has_no_page(tmp_path):
    async with (
        running(settings(tmp_path, enabled=False)) as stack,
        httpx.AsyncClient(timeout=PATIENCE) as client,
    ):
        assert (await client.get(stack.url, headers=bearer(ADMIN))).status_code == 404


async def test_without_keys_actions_need_an_address(tmp_path):
    made = settings(tmp_path)
    made = made.model_copy(
        update={"security": made.security.model_copy(update={"keys_file": None})}
    )
    async with (
        running(made, "g0") as stack,
        httpx.AsyncClient(base_url=stack.url, timeout=PATIENCE) as client,
    ):
        body = {"group": "g0", "action": "uncordon"}
        for host, status in (
            ("rebound.example:80", 403),
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
        ):
            sent = await client.post("api/groups", json=body, headers={"host": host})
            assert sent.status_code == status
