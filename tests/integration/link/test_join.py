"""Joining, rejections on both sides, losing and finding routers again."""

import asyncio
import contextlib

import grpc
import pytest
from structlog.testing import capture_logs

from serving.engine.router_link import server
from serving.errors import LinkRefused, SettingsError
from serving.link.protocol import PROTOCOL_VERSION
from serving.link.v1 import link_pb2, link_pb2_grpc
from serving.routing.snapshot import MemberState
from tests.integration.link.conftest import ScriptedEngine
from tests.support.waiting import PATIENCE, eventually


def state(rank, router):
    return rank.status()["routers"][router.address]


async def test_a_group_joins_and_is_shown(fleet):
    router = await fleet.router()
    first = await fleet.rank(router, rank=0, world=2)
    await eventually(lambda: router.membership.snapshot().groups)
    assert router.membership.snapshot().groups[0].state is MemberState.JOINING
    await fleet.rank(router, rank=1, world=2)
    await eventually(lambda: router.membership.ready)
    (group,) = router.membership.snapshot().groups
    assert [rank.rank for rank in group.ranks] == [0, 1]
    assert (group.total_experts, group.ranks[0].local_expert_ids) == (16, tuple(range(8)))
    assert (group.ranks[0].node, group.ranks[0].engine_version) == ("here", "scripted 1")
    status = first.status()
    assert state(first, router)["state"] == "connected"
    assert router.membership.router_id in state(first, router)["reason"]
    assert status["health"] == "HEALTHY"


def hello(**fields):
    values = {
        "protocol_version": PROTOCOL_VERSION,
        "model": "pocket-r1",
        "model_fingerprint": "f",
        "group_id": "g0",
        "epoch": "e1",
        "rank": 0,
        "world_size": 2,
    } | fields
    return link_pb2.RankMessage(hello=link_pb2.Hello(**values))


@contextlib.asynccontextmanager
async def dialled(router, *messages):
    """Open a Join call by hand; yield the call and its first message."""
    async with grpc.aio.insecure_channel(router.address) as channel:
        call = link_pb2_grpc.RouterServiceStub(channel).Join()
        for message in messages:
            await call.write(message)
        if not messages:
            await call.done_writing()
        yield call, await call.read()
        call.cancel()


async def test_router_serves_ranks_of_the_previous_protocol(fleet):
    router = await fleet.router()
    async with dialled(router, hello(protocol_version=PROTOCOL_VERSION - 1)) as (_, answer):
        assert answer.HasField("welcome")


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        pytest.param(
            hello(protocol_version=99),
            "PROTOCOL_VERSION",
            ["uses link protocol 99", f"serves 1 and {PROTOCOL_VERSION}", "same version"],
            id="protocol",
        ),
        pytest.param(
            hello(model="other"), "MODEL", ["'other'", "'pocket-r1'", "model.name"], id="model"
        ),
        pytest.param(
            hello(pool="large"),
            "MODEL",
            ["'large'", "'pocket-r1'", "'default'", "group.pool"],
            id="pool",
        ),
        pytest.param(
            hello(model_fingerprint="g"), "MODEL", ["'g'", "'f'", "tokenizer"], id="fingerprint"
        ),
        pytest.param(
            hello(rank=2), "BAD_HELLO", ["rank 2", "world size 2"], id="rank out of range"
        ),
        pytest.param(hello(group_id=""), "BAD_HELLO", ["group_id"], id="no group"),
        pytest.param(hello(epoch=""), "BAD_HELLO", ["epoch"], id="no epoch"),
        pytest.param(link_pb2.RankMessage(), "BAD_HELLO", ["not a Hello"], id="no hello"),
        pytest.param(None, "BAD_HELLO", ["not a Hello"], id="nothing at all"),
    ],
)
async def test_router_refuses_says_why_and_logs_it(fleet, message, code, words):
    router = await fleet.router()
    with capture_logs() as logs:
        async with dialled(router, *([message] if message is not None else [])) as (call, answer):
            assert link_pb2.Refusal.Code.Name(answer.refusal.code) == code
            assert all(word in answer.refusal.reason for word in words)
            assert await call.read() is grpc.aio.EOF
    (line,) = [entry for entry in logs if entry["event"] == "refused a rank"]
    assert (line["code"], line["reason"]) == (code, answer.refusal.reason)
    assert not router.membership.snapshot().groups


async def test_silent_caller_is_refused_after_hello_timeout(fleet):
    router = await fleet.router(link={"hello_timeout": 0.05})
    async with grpc.aio.insecure_channel(router.address) as channel:
        call = link_pb2_grpc.RouterServiceStub(channel).Join()
        answer = await call.read()
    assert answer.refusal.code == link_pb2.Refusal.BAD_HELLO
    assert "link.hello_timeout" in answer.refusal.reason


async def test_second_hello_ends_the_link(fleet):
    router = await fleet.router()
    async with dialled(router, hello(), hello()) as (call, answer):
        assert answer.HasField("welcome")
        while (await call.read()) is not grpc.aio.EOF:
            pass
    (lost,) = router.membership.snapshot().history
    assert "second Hello" in lost.reason


async def test_rank_and_router_both_say_why_a_pool_is_refused(fleet, monkeypatch):
    router = await fleet.router()
    describe = ScriptedEngine.describe

    def with_pool(engine):
        described = describe(engine)
        described.pool = "large"
        return described

    monkeypatch.setattr(ScriptedEngine, "describe", with_pool)
    with capture_logs() as logs:
        rank = await fleet.rank(router)
        await eventually(lambda: state(rank, router)["state"] == "refused")
    assert "belongs to pool 'large'" in state(rank, router)["reason"]
    (line,) = [entry for entry in logs if entry["event"] == "refused a rank"]
    assert line["reason"] in state(rank, router)["reason"]


async def test_a_rank_that_names_no_pool_joins_the_first(fleet):
    router = await fleet.router()
    async with dialled(router, hello(world_size=1)) as (_, answer):
        assert answer.HasField("welcome")
        (group,) = router.membership.snapshot().groups
        assert (group.model, group.pool) == ("pocket-r1", "default")


async def test_refused_rank_says_why_and_joins_when_it_can(fleet):
    router = await fleet.router()
    first = await fleet.rank(router)
    await eventually(lambda: router.membership.ready)
    with capture_logs() as logs:
        second = await fleet.rank(router, node="there")
        await eventually(lambda: state(second, router)["state"] == "refused")
    assert "DUPLICATE_RANK" in state(second, router)["reason"]
    assert "has already joined from here" in state(second, router)["reason"]
    assert any(entry["event"] == "router refused" for entry in logs)
    await first.stop()
    await eventually(lambda: state(second, router)["state"] == "connected")
    await eventually(lambda: router.membership.ready)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            link_pb2.RouterMessage(
                refusal=link_pb2.Refusal(code=link_pb2.Refusal.CREDENTIALS, reason="no key")
            ),
            id="code of a later version",
        ),
        pytest.param(link_pb2.RouterMessage(), id="neither welcome nor refusal"),
    ],
)
async def test_rank_survives_strange_answers(fleet, answer):
    class Strange(link_pb2_grpc.RouterServiceServicer):
        async def Join(self, request_iterator, context):  # noqa: N802  gRPC's name
            await context.read()
            await context.write(answer)

    server = grpc.aio.server()
    link_pb2_grpc.add_RouterServiceServicer_to_server(Strange(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    rank = await fleet.rank(f"127.0.0.1:{port}")
    await eventually(lambda: rank.status()["routers"][f"127.0.0.1:{port}"]["state"] == "refused")
    await rank.stop()
    await server.stop(0)


async def test_rank_waits_for_a_router_that_comes_late_and_again(fleet):
    router = await fleet.router()
    port = router.server.port
    await router.server.stop()
    rank = await fleet.rank(router)
    await eventually(lambda: state(rank, router)["state"] == "retrying")
    for _ in range(2):
        sessions = state(rank, router)["sessions"]
        router.server = router.make_server(port)
        await router.server.start()
        await eventually(lambda: router.membership.ready)
        assert state(rank, router)["sessions"] == sessions + 1
        await router.server.stop()
        await eventually(lambda: not router.membership.ready)
        await eventually(lambda: state(rank, router)["state"] in {"retrying", "refused"})


async def test_backoff_grows_with_jitter_and_starts_anew_after_success(fleet, monkeypatch):
    waits = []
    sleep = asyncio.sleep

    async def note(seconds, *args):
        if seconds:
            waits.append(seconds)
        await sleep(0)

    router = await fleet.router()
    port = router.server.port
    await router.server.stop()
    settings = {"backoff_initial": 0.2, "backoff_max": 5.0}
    monkeypatch.setattr("serving.engine.router_link.connection.asyncio.sleep", note)
    rank = await fleet.rank(router, **settings)
    async with asyncio.timeout(PATIENCE):
        while len(waits) < 9:
            await sleep(0.005)
    bounds = [min(0.2 * 2**number, 5.0) for number in range(9)]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits[:9], bounds, strict=True)), (
        waits
    )
    assert len({round(wait / bound, 6) for wait, bound in zip(waits, bounds, strict=False)}) > 3
    router.server = router.make_server(port)
    await router.server.start()
    async with asyncio.timeout(PATIENCE):
        while state(rank, router)["state"] != "connected":
            await sleep(0.005)
        waits.clear()
        await router.server.stop()
        while not waits:
            await sleep(0.005)
    assert waits[0] <= 0.2
    await rank.stop()


async def test_port_in_use_is_a_clear_error(fleet):
    router = await fleet.router()
    second = router.make_server(router.server.port)
    with pytest.raises(LinkRefused, match=r"is another router running there\?"):
        await second.start()


async def test_dns_name_is_followed(fleet, monkeypatch):
    routers = [await fleet.router(), await fleet.router()]
    found = {routers[0].address}

    async def addresses(host, port):
        assert (host, port) == ("routers.test", 50052)
        return set(found)

    monkeypatch.setattr(server, "addresses_of", addresses)
    rank = await fleet.rank("dns:///routers.test:50052")
    await eventually(lambda: routers[0].membership.ready)
    found.add(routers[1].address)
    await eventually(lambda: routers[1].membership.ready)
    found.clear()
    found.add(routers[1].address)
    await routers[0].server.stop()
    await eventually(lambda: set(rank.status()["routers"]) == {routers[1].address})
    assert routers[1].membership.ready


async def test_name_that_does_not_resolve_keeps_what_is_there(fleet, monkeypatch):
    router = await fleet.router()
    lookups = []

    async def addresses(host, port):
        lookups.append(host)
        if len(lookups) > 1:
            raise OSError("no such name")
        return {router.address}

    monkeypatch.setattr(server, "addresses_of", addresses)
    rank = await fleet.rank("dns:///routers.test:50052")
    await eventually(lambda: router.membership.ready)
    await eventually(lambda: len(lookups) > 3)
    assert state(rank, router)["state"] == "connected"


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:", ":5", "dns:///routers.test", "host:port"]
)
async def test_address_without_a_port_is_a_settings_error(fleet, address):
    with pytest.raises(SettingsError, match=r"link\.routers"):
        await fleet.rank(address)
