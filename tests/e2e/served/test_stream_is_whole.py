"""A stream has the content of the non-streamed answer, for seeded random requests to five APIs.

``STREAM_CASES`` sets the number of requests, ``STREAM_SEED`` the seed.
"""

import asyncio
import json
import os
import random
from collections import Counter

import grpc.aio
import httpx
import pytest

from serving.api.v1 import inference_pb2_grpc
from tests.e2e.served.doors import DOORS, Case

CASES = int(os.environ.get("STREAM_CASES", "60"))
# Only ends a hang; a busy machine takes a few seconds per case.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600 + 10 * CASES)]
SEED = int(os.environ.get("STREAM_SEED", "1"))
TOGETHER = 8
QUESTIONS = (
    "What is {a}+{b}?",
    "Sort {a} {b} 7.",
    "Which is larger, {a} or {b}?",
    "Reverse the word {w}.",
    "How many {l} are in {w}?",
    "Tell me about {w} 🙂 and über.",
)
STOPS = (
    "\n\nZZZZ", "42", "</think>", "k>", "\n", "\n\n", "}", '"', "json", "zz", "</thinks", "0", "=",
)  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Rome"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["city", "n"],
    "additionalProperties": False,
}


def made(number: int) -> Case:
    """Derive a case from its number."""
    pick = random.Random(f"{SEED} {number}")
    words = {"a": pick.randint(1, 99), "b": pick.randint(1, 99)}
    question = pick.choice(QUESTIONS).format(**words, w=pick.choice(["apple", "sees"]), l="e")
    strict = pick.choice([True, None])
    tools = pick.choice([None, None, "auto", "required", "named"])
    return Case(
        door=pick.choice(list(DOORS)),
        question=question,
        max_tokens=pick.choice([1, 3, 12, 40, 120, 300]),
        stop=pick.sample(STOPS, pick.choice([0, 0, 1, 1, 2, 4])),
        n=pick.choice([1, 1, 1, 2, 3]),
        tools=tools,
        tool={"name": "look_up", "parameters": SCHEMA, "strict": strict},
        include_reasoning=pick.random() > 0.15,
        json_object=tools is None and pick.random() < 0.15,
        slow=pick.random() < 0.1,
        seed=number,
    )


async def test_the_stream_is_the_whole(stack):
    limit, differences, doors = asyncio.Semaphore(TOGETHER), [], Counter()

    async def compare(number: int, rest: httpx.AsyncClient, stub) -> None:
        case = made(number)
        async with limit:
            whole = await DOORS[case.door].whole(case, stack.model, rest, stub)
            streamed = await DOORS[case.door].streamed(case, stack.model, rest, stub)
        doors[case.door] += 1
        if doors.total() % 100 == 0:
            print(f"{doors.total()} of {CASES}: {len(differences)} differ", flush=True)  # noqa: T201
        if streamed != whole:
            differences.append(f"{number}: {case}\n  whole    {whole}\n  streamed {streamed}")

    metadata = (("authorization", f"Bearer {stack.key}"),) if stack.key else ()
    async with (
        httpx.AsyncClient(base_url=stack.rest, headers=stack.headers, timeout=300) as rest,
        grpc.aio.insecure_channel(stack.grpc) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await asyncio.gather(*(compare(i, rest, (stub, metadata)) for i in range(CASES)))
    print(f"{CASES} cases, seed {SEED}: {dict(doors)}")  # noqa: T201  pytest -s shows it
    assert set(doors) == set(DOORS)
    assert not differences, f"{len(differences)} of {CASES}:\n" + "\n".join(differences[:20])


async def test_forced_arguments_are_objects(stack):
    async with httpx.AsyncClient(base_url=stack.rest, headers=stack.headers, timeout=300) as rest:
        for strict in (True, None):
            tool = {"name": "look_up", "parameters": SCHEMA, "strict": strict}
            answer = await rest.post(
                "/v1/chat/completions",
                json={
                    "model": stack.model,
                    "messages": [{"role": "user", "content": "What is 17+25?"}],
                    "temperature": 0,
                    "max_tokens": 300,
                    "tools": [{"type": "function", "function": tool}],
                    "tool_choice": "required",
                },
            )
            choice = answer.json()["choices"][0]
            assert choice["finish_reason"] in {"tool_calls", "length"}
            arguments = [call["function"]["arguments"] for call in choice["message"]["tool_calls"]]
            if strict:
                assert choice["finish_reason"] == "tool_calls"
                assert {"city", "n"} == set(json.loads(arguments[0]))
            assert all(text.startswith("{") for text in arguments)
