"""Failures over the link: lost ranks, faults, silence, slow and lost routers, drains."""

import asyncio
import contextlib

import grpc
import msgspec
import pytest
from vllm.sampling_params import SamplingParams

from serving.errors import DeadlineExceeded, GroupLost
from serving.link.protocol import PROTOCOL_VERSION
from serving.link.v1 import link_pb2, link_pb2_grpc
from serving.request_context import RequestContext, use_request_context
from serving.routing.snapshot import MemberState
from serving.settings import FleetSettings, RouterSettings
from tests.support.waiting import PATIENCE, eventually, in_time

NO_RESUMES = FleetSettings(max_resumes=0)


@contextlib.contextmanager
def deadline(seconds):
    until = asyncio.get_running_loop().time() + seconds
    with use_request_context(RequestContext(deadline=until)):
        yield


async def collect(outputs):
    return [output async for output in outputs]


async def in_flight(router, ranks, count=6):
    """Start requests that stop after their first token; return their generators."""
    for rank in ranks:
        rank.engine.pause = 1
    streams = [router.generate(name=f"r{number}") for number in range(count)]
    for stream in streams:
        await anext(stream)
    return streams


async def kill(rank):
    """End a rank's links as if its process had died: no drain, no close handshake."""
    connections = list(rank._connections.values())
    tasks = [connection._task for connection in connections]
    for task in (*tasks, *rank._tasks):
        task.cancel()
    await asyncio.wait(tasks)


def group_of(router):
    (group,) = router.membership.snapshot().groups
    return group


# -- ranks --------------------------------------------------------------------------------


async def test_a_killed_rank_fences_its_group_and_fails_all_its_requests(fleet):
    router = await fleet.router(fleet=NO_RESUMES)
    ranks = await fleet.group(router)
    streams = await in_flight(router, ranks)
    assert all(len(rank.engine.running) == 3 for rank in ranks)
    await kill(ranks[0])
    for stream in streams:
        with pytest.raises(GroupLost, match="can be retried"):
            await anext(stream)
    assert group_of(router).state is MemberState.FENCED
    await eventually(lambda: not ranks[1].engine.running, "the abort on the surviving rank")
    with deadline(0.05), pytest.raises(DeadlineExceeded, match="g0 is fenced"):
        await collect(router.generate())


async def test_a_group_that_is_lost_leaves_the_other_one_alone(fleet):
    router = await fleet.router(fleet=NO_RESUMES)
    lost = await fleet.group(router, 1, group="g0")
    kept = await fleet.group(router, 1, group="g1")
    await eventually(lambda: len(router.membership.snapshot().groups) == 2)
    streams = await in_flight(router, lost + kept, 4)
    await kill(lost[0])
    kept[0].engine.go.set()
    results = await asyncio.gather(*map(collect, streams), return_exceptions=True)
    assert [type(result).__name__ for result in results].count("GroupLost") == 2
    assert sum(isinstance(result, list) and result[-1].finished for result in results) == 2
    await collect(router.generate())


async def test_gang_restarts_in_a_new_epoch_while_an_old_rank_lingers(fleet):
    router = await fleet.router()
    old = await fleet.group(router, epoch="e1")
    await kill(old[0])
    await eventually(lambda: group_of(router).state is MemberState.FENCED)
    await fleet.group(router, epoch="e2")
    assert group_of(router).epoch == "e2"
    status = old[1].status()["routers"][router.address]
    await eventually(lambda: old[1].status()["routers"][router.address]["state"] == "refused")
    status = old[1].status()["routers"][router.address]
    assert "stale, stop it" in status["reason"]
    await collect(router.generate())


async def test_health_that_fails_is_reported_at_once_and_fences(fleet):
    router = await fleet.router(fleet=NO_RESUMES)
    ranks = await fleet.group(router, load_interval=60.0)
    (stream, *_) = await in_flight(router, ranks, 1)

    async def generate(work):
        ranks[1].engine.fault = "worker died"
        raise RuntimeError("worker died")
        yield

    ranks[0].engine.generate = ranks[1].engine.generate = generate
    ranks[0].engine.fault = None
    with pytest.raises(Exception, match=r"RuntimeError in the engine|can be retried"):
        await collect(router.generate(name="poison"))
    ranks[1]._sample_now.set()
    await eventually(lambda: group_of(router).state is MemberState.FENCED)
    assert group_of(router).reason == "rank 1 failed: worker died"
    with pytest.raises(GroupLost):
        await anext(stream)
    assert ranks[1].status()["health"] == "FAILED"
    ranks[1].engine.fault = None
    ranks[1]._sample_now.set()
    await eventually(lambda: router.membership.ready, "the recovery")


@pytest.mark.parametrize(
    ("break_engine", "words"),
    [
        pytest.param(
            lambda engine: setattr(engine, "load", None),
            "failed to report its load",
            id="load raises",
        ),
        pytest.param(
            lambda engine: setattr(engine, "health", link_pb2.LoadSnapshot.STALLED),
            "stalled",
            id="engine says stalled",
        ),
    ],
)
async def test_faults_in_reports_fence(fleet, break_engine, words):
    router = await fleet.router()
    ranks = await fleet.group(router)
    break_engine(ranks[0].engine)
    await eventually(lambda: group_of(router).state is MemberState.FENCED)
    assert words in group_of(router).reason


async def test_a_rank_that_falls_silent_is_lost(fleet):
    router = await fleet.router(link={"keepalive": 0.1})
    async with grpc.aio.insecure_channel(router.address) as channel:
        call = link_pb2_grpc.RouterServiceStub(channel).Join()
        hello = link_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            model="pocket-r1",
            model_fingerprint="f",
            group_id="g0",
            epoch="e",
            world_size=1,
        )
        healthy = link_pb2.LoadSnapshot(health=link_pb2.LoadSnapshot.HEALTHY)
        await call.write(link_pb2.RankMessage(hello=hello))
        await call.write(link_pb2.RankMessage(load=healthy))
        await eventually(lambda: router.membership.ready)
        await eventually(lambda: not router.membership.snapshot().groups)
    (lost,) = router.membership.snapshot().history
    assert "nothing received for" in lost.reason


async def test_an_idle_link_stays(fleet):
    router = await fleet.router(link={"keepalive": 0.1})
    (rank,) = await fleet.group(router, 1, keepalive=0.1, load_interval=60.0)
    await eventually(lambda: group_of(router).ranks[0].round_trip is not None, "a Pong")
    round_trips = {group_of(router).ranks[0].round_trip}
    await eventually(
        lambda: round_trips.add(group_of(router).ranks[0].round_trip) or len(round_trips) > 8
    )
    assert rank.status()["routers"][router.address]["sessions"] == 1


# -- routers ------------------------------------------------------------------------------


async def test_two_routers_share_ranks_and_do_not_meet(fleet):
    routers = [await fleet.router(fleet=NO_RESUMES), await fleet.router()]
    (rank,) = [await fleet.rank(*routers)]
    await eventually(lambda: all(router.membership.ready for router in routers))
    rank.engine.pause = 1
    streams = [router.generate(prompt=[40], name="same") for router in routers]
    for stream in streams:
        await anext(stream)
    assert len({work.request_id for work in rank.engine.started}) == 2
    assert rank.running_requests == 2
    await routers[0].server.stop()
    with pytest.raises(GroupLost):
        await anext(streams[0])
    await eventually(lambda: len(rank.engine.running) == 1, "the lost router's abort")
    rank.engine.go.set()
    rest = await collect(streams[1])
    assert rest[-1].finished
    assert [token for output in rest for token in output.outputs[0].token_ids] == list(
        range(42, 49)
    )


class DeafRouter(link_pb2_grpc.RouterServiceServicer):
    """Welcomes a rank, sends it one endless request, and never reads again."""

    def __init__(self):
        self.left = asyncio.Event()

    async def Join(self, request_iterator, context):  # noqa: N802  gRPC's name
        await context.read()
        work = link_pb2.Submit(
            request_id="endless",
            prompt_token_ids=[1],
            sampling_params=msgspec.msgpack.encode(SamplingParams(max_tokens=10**7)),
        )
        await context.write(link_pb2.RouterMessage(welcome=link_pb2.Welcome(router_id="deaf")))
        await context.write(link_pb2.RouterMessage(submits=[work]))
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()


async def test_a_slow_router_is_cut_off_and_slows_nobody(fleet):
    deaf = DeafRouter()
    server = grpc.aio.server()
    link_pb2_grpc.add_RouterServiceServicer_to_server(deaf, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    router = await fleet.router()
    rank = await fleet.rank(
        router, address, outbox_limit=64, backoff_initial=30.0, backoff_max=30.0
    )
    rank.engine.burst = 20
    await eventually(lambda: router.membership.ready)
    for number in range(5):
        outputs = await collect(router.generate(name=f"r{number}"))
        assert outputs[-1].finished
    async with asyncio.timeout(PATIENCE):
        await deaf.left.wait()
    await eventually(lambda: not rank.engine.running, "the abort of the endless request")
    await eventually(lambda: "link.outbox_limit" in rank.status()["routers"][address]["reason"])
    assert rank.status()["routers"][router.address]["state"] == "connected"
    await rank.stop()
    await server.stop(0)


async def test_link_lost_under_requests_comes_back(fleet):
    router = await fleet.router(fleet=NO_RESUMES)
    ranks = await fleet.group(router)
    port = router.server.port
    streams = await in_flight(router, ranks)
    await router.server.stop()
    for stream in streams:
        with pytest.raises(GroupLost):
            await anext(stream)
    await eventually(lambda: not any(rank.engine.running for rank in ranks), "the aborts")
    router.server = router.make_server(port)
    await router.server.start()
    await eventually(lambda: router.membership.ready)
    for rank in ranks:
        rank.engine.go.set()
    assert (await collect(router.generate()))[-1].finished
    await router.server.stop()


# -- drains -------------------------------------------------------------------------------


async def test_draining_rank_finishes_its_requests_and_gets_no_new_ones(fleet):
    router = await fleet.router()
    (rank,) = await fleet.group(router, 1)
    streams = await in_flight(router, [rank], 3)
    draining = asyncio.create_task(rank.drain("scale down", 20.0))
    await eventually(lambda: group_of(router).state is MemberState.DRAINING)
    with deadline(0.05), pytest.raises(DeadlineExceeded, match="scale down"):
        await collect(router.generate())
    rank.engine.go.set()
    results = await asyncio.gather(*map(collect, streams))
    assert all(outputs[-1].finished for outputs in results)
    assert await draining
    await rank.stop()
    await eventually(lambda: not router.membership.snapshot().groups)


async def test_drain_that_takes_too_long_says_so_and_stop_aborts(fleet):
    async def lose(seconds):
        settings = RouterSettings(request_timeout=seconds)
        router = await fleet.router(router=settings, fleet=NO_RESUMES)
        (rank,) = await fleet.group(router, 1)
        (stream,) = await in_flight(router, [rank], 1)
        assert not await rank.drain("now", 0.05)
        await rank.stop()
        assert not rank.engine.running
        # It waits for another group: its own left on purpose, so the loss does not count.
        with pytest.raises(DeadlineExceeded, match="no group is connected"):
            await anext(stream)

    # Too late: the request ended before its rank did.
    await in_time(lose, (DeadlineExceeded, AssertionError))


async def test_answers_given_before_stop_still_arrive(fleet):
    router = await fleet.router()
    (rank,) = await fleet.group(router, 1)
    streams = await in_flight(router, [rank], 20)
    rank.engine.go.set()
    assert await rank.drain("scale down", 20.0)
    await rank.stop()
    results = await asyncio.gather(*map(collect, streams))
    assert all(outputs[-1].finished for outputs in results)


async def test_a_rank_dialled_while_draining_is_known_to_drain(fleet):
    router = await fleet.router()
    port = router.server.port
    await router.server.stop()
    rank = await fleet.rank(router)
    await rank.drain("going", 1.0)
    router.server = router.make_server(port)
    await router.server.start()
    await eventually(lambda: router.membership.snapshot().groups)
    await eventually(lambda: group_of(router).state is MemberState.DRAINING)
    await rank.stop()
    await router.server.stop()
