"""Arbitrary bytes over gRPC get a client error, never INTERNAL, UNKNOWN or a hang."""

import asyncio
import collections

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from tests.fuzz.grpc_cases import GOOD, SERVICES, Case, cases
from tests.fuzz.verdict import grpc_problem
from tests.support.waiting import PATIENCE, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(3600)]

AT_ONCE = 8
SHARE = 0.47
"""Fraction of all cases."""


async def call(channel: grpc.aio.Channel, case: Case) -> tuple[grpc.StatusCode, str]:
    """Send bytes unchanged; the response must be decodable."""
    streamed = case.method.server_streaming
    make = channel.unary_stream if streamed else channel.unary_unary
    made = make(case.path, request_serializer=None, response_deserializer=case.response.FromString)(
        case.content, timeout=PATIENCE
    )
    try:
        if streamed:
            async for _ in made:
                pass
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def run(channel, all_cases):
    problems, statuses = [], collections.Counter()

    async def work():
        for case in all_cases:
            code, details = await call(channel, case)
            statuses[case.method.name, code.name] += 1
            if (problem := grpc_problem(code, details)) is not None:
                problems.append(f"{problem}\n    {case}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return problems, statuses


def good_cases():
    return [
        Case(method, message.SerializeToString())
        for method in SERVICES[0].methods
        for message in GOOD[method.name]
    ]


async def still_serves(stand, channel) -> None:
    await eventually(lambda: stand.idle, "all requests to end")
    (group,) = stand.router.membership.snapshot().groups
    assert group.state == "ready"
    assert len(group.ranks) == stand.settings.group.data_parallel
    for case in good_cases():
        wanted = "UNIMPLEMENTED" if case.method.name == "Embed" else "OK"
        code, details = await call(channel, case)
        assert code.name == wanted, (case, details)


@pytest_asyncio.fixture(loop_scope="session")
async def channel(stand, watched):
    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        yield channel


async def test_every_good_message_is_good(stand, channel):
    await still_serves(stand, channel)


async def test_random_bytes_and_mutated_messages(stand, channel, cases_in_all, seed, show):
    count = int(cases_in_all * SHARE)
    problems, statuses = await run(channel, cases(seed, count))
    show(statuses)
    assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems[:40])
    # A fuzzer whose cases are all rejected by the first check finds nothing.
    served = sum(times for (_, status), times in statuses.items() if status == "OK")
    assert count // 10 < served < count
    await still_serves(stand, channel)
