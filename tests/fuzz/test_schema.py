"""Valid and invalid requests that schemathesis generates from the router's OpenAPI document."""

import asyncio
import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from schemathesis import GenerationMode

from tests.fuzz.rest_cases import MODEL, Case
from tests.fuzz.test_rest import run, still_serves

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(3600)]

SHARE = 0.06
"""Fraction of all cases; they are expensive, and most are rejected by the first check."""


def made_by_schemathesis(document: dict[str, Any], number: int, count: int) -> list[Case]:
    """Generate ``count`` cases over all operations, half of them against the schema."""
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    made: list[Case] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=False,
    )
    @given(
        strategies.one_of(
            operation.as_strategy(generation_mode=mode)
            for operation in operations
            for mode in GenerationMode
        ),
        strategies.booleans(),
    )
    def collect(case: Any, named: bool) -> None:
        made.append(_converted(case, named=named))

    collect()
    return made[:count]


def _converted(case: Any, *, named: bool) -> Case:
    sent = case.as_transport_kwargs(base_url="http://router")
    body = sent.get("json")
    if isinstance(body, dict) and named:
        body = {**body, "model": MODEL}  # a random name would fail the first check
    content = sent.get("data") or b""
    if body is not None:
        content = json.dumps(body).encode("utf-8", "surrogatepass")
    headers = {name: str(value) for name, value in (sent.get("headers") or {}).items()}
    headers = {
        name: value
        for name, value in headers.items()
        if name.isascii() and value.isascii() and value.isprintable()
    }
    if "json" in sent:
        headers["content-type"] = "application/json"
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    path = sent["url"].removeprefix("http://router")
    return Case(path, content if isinstance(content, bytes) else b"", case.method, headers)


async def test_cases_of_schemathesis(stand, rest, cases_in_all, seed, show):
    count = int(cases_in_all * SHARE)
    # In threads: both take long, and this loop serves the ranks' connections.
    document = await asyncio.to_thread(lambda: stand.openapi)
    made = await asyncio.to_thread(made_by_schemathesis, document, seed, count)
    assert len(made) == count
    problems, statuses = await run(rest, iter(made))
    show(statuses)
    assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems[:40])
    assert len({path for path, _ in statuses}) >= 8
    await still_serves(stand, rest)
