"""Arbitrary bytes over REST get a client error, never a 5xx, a hang or a dead rank."""

import asyncio
import collections

import httpx
import pytest

from tests.fuzz.rest_cases import GOOD, Case, cases
from tests.fuzz.verdict import rest_problem
from tests.support.waiting import PATIENCE, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(3600)]

AT_ONCE = 8
SHARE = 0.47
"""Fraction of all cases."""


async def answer_to(rest: httpx.AsyncClient, case: Case) -> tuple[int, bytes]:
    async def pieces():
        for piece in case.content:
            yield piece

    content = pieces() if isinstance(case.content, list) else case.content
    try:
        async with asyncio.timeout(PATIENCE):
            answer = await rest.request(
                case.method, case.path, content=content, headers=case.headers
            )
    except TimeoutError:
        return 599, b"no response"
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
        return 598, f"cut off: {error!r}".encode()
    return answer.status_code, answer.content


async def run(rest, all_cases, answer=answer_to):
    """Send the cases concurrently; return the problems, and the number of each status."""
    problems, statuses = [], collections.Counter()

    async def work():
        for case in all_cases:
            status, body = await answer(rest, case)
            statuses[case.path if case.method == "POST" else case.method, status] += 1
            has_deadline = "x-request-timeout-ms" in case.headers
            problem = rest_problem(status, body, has_deadline=has_deadline)
            if problem is not None:
                problems.append(f"{problem}\n    {case}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return problems, statuses


async def fields_of(stand) -> dict[str, list[str]]:
    """Return the field names of every route's request, from the OpenAPI document."""
    document = await asyncio.to_thread(lambda: stand.openapi)
    found = {}
    for path, methods in document["paths"].items():
        names = set()
        body = methods.get("post", {}).get("requestBody", {})
        pending = [body.get("content", {}).get("application/json", {}).get("schema", {})]
        while pending:
            schema = pending.pop()
            name = schema.get("$ref", "").rpartition("/")[2]
            schema = document["components"]["schemas"].get(name, schema)
            names |= schema.get("properties", {}).keys()
            pending += schema.get("anyOf", [])
        found[path] = sorted(names)
    return found


async def still_serves(stand, rest) -> None:
    """Assert that all ranks are joined, nothing is left over, and valid requests succeed."""
    await eventually(lambda: stand.idle, "all requests to end")
    (group,) = stand.router.membership.snapshot().groups
    assert group.state == "ready"
    assert len(group.ranks) == stand.settings.group.data_parallel
    for path, body in GOOD:
        answer = await rest.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)


async def test_every_good_request_is_good(stand, rest):
    await still_serves(stand, rest)


async def test_mutated_requests_and_raw_bytes(stand, rest, cases_in_all, seed, show):
    count = int(cases_in_all * SHARE)
    problems, statuses = await run(rest, cases(seed, count, await fields_of(stand)))
    show(statuses)
    assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems[:40])
    # A fuzzer whose cases are all rejected by the first check finds nothing.
    served = sum(times for (_, status), times in statuses.items() if status == 200)
    assert count // 10 < served < count
    await still_serves(stand, rest)
