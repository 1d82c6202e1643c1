"""Authorization over real ports: every route and every RPC, with and without keys."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc
from serving.api.v1 import inference_pb2 as pb
from serving.edge.auth.keys import digest_of
from serving.edge.rest import middleware
from serving.h2grpc.server import Server
from serving.router.app import Router
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

USER, ADMIN, METRICS, BATCH, EXPIRED = (
    f"moe-{name}-key-of-this-test" for name in ("user", "admin", "metrics", "batch", "expired")
)
KEYS = f"""
keys:
  - {{id: user, tenant: alice, hash: "{digest_of(USER)}"}}
  - {{id: admin, tenant: ops, roles: [admin], hash: "{digest_of(ADMIN)}"}}
  - {{id: metrics, tenant: prometheus, roles: [metrics], hash: "{digest_of(METRICS)}"}}
  - {{id: batch, tenant: nightly, roles: [user, explain], priorities: [batch],
      hash: "{digest_of(BATCH)}"}}
  - {{id: expired, tenant: alice, expires: 2020-01-01, hash: "{digest_of(EXPIRED)}"}}
"""
CHAT = {"model": "pocket-r1", "messages": [{"role": "user", "content": "hi"}]}
OPEN_ROUTES = {"/livez", "/readyz", "/health", "/ping"}
CONSOLE = {"/console": 307, "/console/{path:path}": 404}
"""Public pages of the console, with the status of exactly these paths."""
ADMIN_ROUTES = {"/fleet"}
METRICS_ROUTES = {"/metrics", "/load"}
OPEN_SERVICES = {"grpc.health.v1.Health"}
ADMIN_SERVICES = {"serving.api.v1.FleetService", "serving.api.v1.UsageService"}
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVICES = {
    "serving.api.v1.InferenceService",
    "serving.api.v1.BatchService",
    *REFLECTION,
    *OPEN_SERVICES,
    *ADMIN_SERVICES,
}
HEALTH_LIST = "/grpc.health.v1.Health/List"
"""grpc_health's asyncio servicer does not have it."""
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


@dataclass
class Guarded:
    """A router with keys."""

    router: Router
    keys_file: Path
    rpcs: list[str]
    limit: int
    """Return the bytes of a request's headers."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory, router_settings, join_rank):
    """A router with keys, and its rank."""
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    file.write_text(KEYS)
    settings = router_settings().model_copy(
        update={
            "security": router_settings().security.model_copy(
                update={"keys_file": str(file), "reload_interval": 0.02}
            )
        }
    )
    rpcs = []
    add = Server.add_generic_rpc_handlers

    def noting(server, handlers):
        rpcs.extend(name for handler in handlers for name in handler._method_handlers)
        add(server, handlers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Server, "add_generic_rpc_handlers", noting)
        router = await Router.start(settings)
    rank = await join_rank(router, settings)
    yield Guarded(router, file, sorted(rpcs), settings.security.max_header_bytes)
    await rank.server.stop()
    await router.stop()


@pytest_asyncio.fixture(loop_scope="session")
async def rest(guarded):
    async with httpx.AsyncClient(
        base_url=guarded.router.addresses.rest, timeout=PATIENCE
    ) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def channel(guarded):
    async with grpc.aio.insecure_channel(guarded.router.addresses.grpc) as made:
        yield made


def routes_of(router: Router) -> list[tuple[str, str]]:
    """Return (method, path) of all routes of the app, including its documentation."""
    app = router.rest.config.app  # the app that uvicorn calls, with all routes
    inner = app.app.app
    found = [
        (method, route.path.replace("{response_id}", "resp_1"))
        for route in inner.router.routes
        for method in sorted(route.methods)
    ]
    documents = [("GET", path) for path in ("/openapi.json", "/docs", "/redoc", "/nowhere")]
    return found + documents


def is_let_in(answer: httpx.Response) -> bool:
    """Return whether the app answered; vLLM disables some routes with a 403."""
    switched_off = answer.status_code == 403 and "are disabled" in answer.text
    return switched_off or answer.status_code not in {401, 403, 500}


async def test_every_route_without_a_key_but_health(guarded, rest):
    routes = routes_of(guarded.router)
    assert {"/v1/chat/completions", "/fleet", "/metrics", "/v1/models"} <= {p for _, p in routes}
    for method, path in routes:
        for headers in ({}, bearer("wrong"), bearer(EXPIRED), {"authorization": f"Basic {USER}"}):
            answer = await rest.request(method, path, headers=headers)
            if path in OPEN_ROUTES or path in CONSOLE:
                assert answer.status_code == CONSOLE.get(path, 200), (method, path)
                continue
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            if method != "HEAD":
                assert answer.json()["error"]["reason"] == "UNAUTHENTICATED"


async def test_every_route_with_a_users_key(guarded, rest):
    for method, path in routes_of(guarded.router):
        answer = await rest.request(method, path, headers=bearer(USER))
        for_admins = ("/v1/organization/", "/console/api/groups", "/console/api/autoscaler")
        for_admins += ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
        user_may_not = path.startswith(for_admins) or (
            path not in OPEN_ROUTES
            and not path.startswith(
                ("/v1/", "/tokenize", "/detokenize", "/invocations", "/version", "/openapi.json",
                 "/console")
            )
        )  # fmt: skip
        if user_may_not:
            assert answer.status_code == 403, (method, path)
            if method != "HEAD":
                assert answer.json()["error"]["reason"] == "PERMISSION_DENIED"
        else:
            assert is_let_in(answer), (method, path, answer.text)


async def test_every_route_with_an_admins_key(guarded, rest):
    for method, path in routes_of(guarded.router):
        answer = await rest.request(method, path, headers=bearer(ADMIN))
        assert is_let_in(answer), (method, path, answer.text)


async def test_a_metrics_key_reads_metrics_and_nothing_else(rest):
    assert (await rest.get("/metrics", headers=bearer(METRICS))).status_code == 200
    assert (await rest.get("/fleet", headers=bearer(METRICS))).status_code == 403
    answer = await rest.post("/v1/chat/completions", json=CHAT, headers=bearer(METRICS))
    assert answer.status_code == 403


async def test_readiness_has_no_details_for_strangers(rest):
    assert (await rest.get("/readyz")).json() == {"ready": True}
    assert (await rest.get("/readyz", headers=bearer(USER))).json() == {"ready": True}
    assert "g0" in (await rest.get("/readyz", headers=bearer(ADMIN))).json()["groups"]


async def test_anthropic_clients_key_header(rest):
    body = {**CHAT, "max_tokens": 8}
    answer = await rest.post("/v1/messages", json=body, headers={"x-api-key": USER})
    assert answer.status_code == 200
    answer = await rest.post("/v1/messages", json=body, headers={"x-api-key": "wrong"})
    assert answer.status_code == 401


async def test_a_browsers_preflight_needs_no_key_but_reaches_no_route(rest):
    question = {"origin": "https://app", "access-control-request-method": "POST"}
    answer = await rest.options("/v1/chat/completions", headers=question)
    assert "CORS" in answer.text  # vLLM's response: allowed origins are one of its settings
    assert (await rest.options("/fleet")).status_code == 401


async def test_websockets_are_refused(rest):
    wanted = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert (await rest.get("/v1/realtime", headers=wanted)).status_code == 401
    answer = await rest.get("/v1/realtime", headers={**wanted, **bearer(USER)})
    assert (answer.status_code, "WebSocket" in answer.text) == (400, True)


# -- gRPC -------------------------------------------------------------------------------


async def status_of(channel, method: str, key: str | None, *, write: bool) -> grpc.StatusCode:
    """Call an RPC with an empty message, or without one; return the status."""
    metadata = tuple(bearer(key).items())
    call = channel.stream_stream(method)(metadata=metadata, timeout=PATIENCE)
    try:
        if write:
            await call.write(b"")
            await call.done_writing()
        async for _ in call:
            if method.endswith("/Watch"):
                call.cancel()  # it does not end
                return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        return error.code()
    return await call.code()


@pytest.fixture
def methods(guarded):
    """Return the full names of all RPCs of all services on the port."""
    return [name for name in guarded.rpcs if not name.startswith("/serving.link.")]


def split(method: str) -> tuple[str, str]:
    _, service, name = method.split("/")
    return service, name


async def test_the_walk_sees_every_service(methods):
    assert {split(method)[0] for method in methods} == SERVICES
    assert len(methods) >= 15


async def test_every_rpc_without_a_key_but_health(channel, methods):
    for method in (*methods, "/serving.api.v1.InferenceService/None", "/no.such.Service/X"):
        if method == HEALTH_LIST:
            continue
        for key in (None, "wrong", EXPIRED):
            is_open = split(method)[0] in OPEN_SERVICES
            # Rejected before a message is sent; an allowed call would wait for one.
            status = await status_of(channel, method, key, write=is_open)
            assert status is (grpc.StatusCode.OK if is_open else UNAUTHENTICATED), method


async def test_every_rpc_with_a_users_key(channel, methods):
    for method in methods:
        denied = split(method)[0] in ADMIN_SERVICES
        status = await status_of(channel, method, USER, write=not denied)
        if denied:
            assert status is DENIED, method
        elif method != HEALTH_LIST:
            assert status not in {UNAUTHENTICATED, DENIED, grpc.StatusCode.UNKNOWN}, method


async def test_every_rpc_with_an_admins_key(channel, methods):
    for method in methods:
        if method == HEALTH_LIST:
            continue
        status = await status_of(channel, method, ADMIN, write=True)
        assert status not in {UNAUTHENTICATED, DENIED, grpc.StatusCode.UNKNOWN}, method


async def test_refusals_carry_our_reason(channel):
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListModels(pb.ListModelsRequest())
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert (info.reason, info.domain) == ("UNAUTHENTICATED", "moe-serving")


@pytest.mark.parametrize("key", [USER, METRICS, ADMIN])
@pytest.mark.parametrize("service", REFLECTION)
async def test_reflection_works_with_any_key(channel, service, key):
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
        metadata=tuple(bearer(key).items()),
    )
    answers = [answer async for answer in call]
    assert {item.name for item in answers[0].list_services_response.service} == SERVICES


@pytest.mark.parametrize("key", [USER, METRICS, ADMIN])
async def test_with_any_key_what_is_not_there_is_unimplemented(channel, key):
    """Clients fall back to an older version of a service on this status."""
    for method in (
        "/grpc.reflection.v2.ServerReflection/ServerReflectionInfo",
        "/serving.api.v1.InferenceService/None",
        "/serving.api.v1.FleetService/None",
        "/no.such.Service/X",
    ):
        status = await status_of(channel, method, key, write=False)
        assert status is grpc.StatusCode.UNIMPLEMENTED, method


async def test_operators_reach_the_fleet(channel):
    stub = fleet_pb2_grpc.FleetServiceStub(channel)
    metadata = tuple(bearer(ADMIN).items())
    fleet = await stub.GetFleet(fleet_pb2.GetFleetRequest(), metadata=metadata)
    assert [group.group_id for group in fleet.groups] == ["g0"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Cordon(fleet_pb2.CordonRequest(group_id="none"), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await stub.Cordon(fleet_pb2.CordonRequest(group_id="g0"), metadata=metadata)
    await stub.Uncordon(fleet_pb2.UncordonRequest(group_id="g0"), metadata=metadata)
    drained = await stub.Drain(
        fleet_pb2.DrainRequest(group_id="g0", timeout_seconds=5), metadata=metadata
    )
    assert drained.finished
    await stub.Uncordon(fleet_pb2.UncordonRequest(group_id="g0"), metadata=metadata)


# -- callers ----------------------------------------------------------------------------


@pytest.fixture
def lines(monkeypatch):
    seen = []
    monkeypatch.setattr(middleware, "log_request", seen.append)
    return seen


@pytest.mark.parametrize(
    ("key", "headers", "status", "priority"),
    [
        pytest.param(USER, {}, 200, "standard", id="default"),
        pytest.param(USER, {"x-priority": "interactive"}, 200, "interactive", id="asked-for"),
        pytest.param(BATCH, {}, 200, "batch", id="default-is-what-the-key-allows"),
        pytest.param(BATCH, {"x-priority": "standard"}, 403, None, id="not-allowed"),
        pytest.param(USER, {"x-priority": "urgent"}, 400, None, id="no-such-priority"),
        pytest.param(USER, {"x-session-id": "a b"}, 400, None, id="bad-session"),
        pytest.param(USER, {"x-explain-routing": "1"}, 403, None, id="explain-without-role"),
    ],
)
async def test_priority_and_session_over_rest(rest, lines, key, headers, status, priority):
    answer = await rest.post("/v1/chat/completions", json=CHAT, headers={**bearer(key), **headers})
    assert answer.status_code == status, answer.text
    assert lines[0].priority == priority
    assert lines[0].tenant == (None if priority is None else "alice" if key == USER else "nightly")


@pytest.mark.parametrize("stream", [False, True])
async def test_explanation_over_rest(rest, stream):
    headers = {**bearer(BATCH), "x-explain-routing": "1"}
    answer = await rest.post(
        "/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers
    )
    assert answer.status_code == 200
    assert len(json.loads(answer.headers["x-explain-routing"])) == 1


@pytest.mark.parametrize("method", ["Chat", "ChatStream"])
async def test_explanation_over_grpc(channel, method):
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    request = pb.ChatRequest(
        model="pocket-r1", messages=[pb.Message(role=pb.ROLE_USER, content="hi")]
    )
    metadata = (*bearer(BATCH).items(), ("x-explain-routing", "1"))
    call = getattr(stub, method)(request, metadata=metadata)
    if method == "Chat":
        await call
    else:
        assert [message async for message in call]
    trailing = dict(await call.trailing_metadata())
    assert len(json.loads(trailing["x-explain-routing"])) == 1


async def test_a_key_that_is_added_works_and_one_that_is_taken_away_does_not(
    guarded, rest, monkeypatch
):
    added = "moe-added-while-it-runs"
    before = guarded.keys_file.read_text()
    entry = f'  - {{id: added, tenant: bob, hash: "{digest_of(added)}"}}\n'

    async def status() -> int:
        return (await rest.get("/v1/models", headers=bearer(added))).status_code

    async def answers(wanted: int) -> bool:
        return await status() == wanted

    assert await status() == 401
    guarded.keys_file.write_text(before + entry)
    await eventually(lambda: answers(200))
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        "serving.credentials.watched.log.error",
        lambda *_, **__: loop.call_soon_threadsafe(seen.set),
    )
    guarded.keys_file.write_text("keys: [")
    async with asyncio.timeout(PATIENCE):
        await seen.wait()
    assert await status() == 200
    guarded.keys_file.write_text(before)
    await eventually(lambda: answers(401))


async def test_metadata_over_the_limit_is_refused(guarded, channel):
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    limit = guarded.limit
    for size, status in (
        (limit // 2, grpc.StatusCode.OK),
        (limit, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        metadata = (*bearer(USER).items(), ("x-filler", "x" * size))
        call = stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=PATIENCE)
        assert await call.code() is status


async def test_headers_over_the_limit_are_a_431(guarded, rest):
    for size, status in ((guarded.limit // 2, 200), (guarded.limit, 431)):
        headers = {**bearer(USER), "x-filler": "x" * size}
        assert (await rest.get("/v1/models", headers=headers)).status_code == status
