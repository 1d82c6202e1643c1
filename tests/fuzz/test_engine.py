"""Parameters that pass the router's checks, on a real engine: it survives and stays correct."""

import asyncio
import contextlib
import itertools
import json
import os
import random

import httpx
import pytest
import pytest_asyncio

from serving.engine.router_link.server import RankIdentity, RankServer
from serving.engine.vllm_engine import VllmEngine
from serving.link.v1 import link_pb2
from serving.router.app import Router
from serving.settings import LinkSettings, Settings
from tests.fuzz.rest_cases import CHAT, DANGEROUS, MODEL, Case
from tests.fuzz.verdict import rest_problem
from tests.support.engines import share_fork_server
from tests.support.ports import held_port
from tests.support.waiting import PATIENCE, eventually

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(3600),
]

AT_ONCE = 6
QUESTION = {**CHAT, "temperature": 0, "max_tokens": 24}

# The engine's configuration; only sampling parameters are fuzzed here.
KEPT = {"model", "messages", "prompt", "tools", "stream", "request_id", "input"}
BASES = (
    ("/v1/chat/completions", {**CHAT, "max_tokens": 6}),
    ("/v1/completions", {"model": MODEL, "prompt": "What is", "max_tokens": 6}),
    ("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 6}),
)
# Well-formed, but expensive to compile or to apply.
PATHOLOGICAL = {
    "structured_outputs": (
        {"regex": "(a|b)*c"},
        {"regex": "a{1,2000}"},
        {"regex": "((a{1,30}){1,30}){1,30}"},
        {"regex": "(?=x)y"},
        {"regex": "\\"},
        {"regex": "(((((((((("},
        {"regex": "[\u0000-\uffff]*"},
        {"grammar": 'root ::= "a" root | "b"'},
        {"grammar": "root ::= root root"},
        {"grammar": 'root ::= ""'},
        {"grammar": "root ::= nowhere"},
        {"grammar": 'root ::= "' + "a" * 3000 + '"'},
        {"choice": ["yes", "no"]},
        {"choice": ["x" * 500] * 50},
        {"choice": ["\u0000", "🙂"]},
        {"json": {"type": "object", "additionalProperties": False}},
        {"json": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
        {"json": {"type": "string", "pattern": "(((a+)+)+)+$", "minLength": 10**9}},
        {"json": {"type": "integer", "minimum": 10**40, "maximum": -(10**40)}},
        {"json": {"type": "array", "minItems": 10**6}},
        {"json": {"enum": []}},
        {"json": {"enum": list(range(2000))}},
        {"json": {"anyOf": [{"type": "null"}] * 200}},
        {"json": {"not": {}}},
        {"json": True},
        {"json": {"type": "object", "properties": {f"k{i}": {} for i in range(300)}}},
        {"json": {"type": "object"}, "disable_any_whitespace": True, "whitespace_pattern": "x"},
        {"json_object": True},
        {"structural_tag": json.dumps({"type": "structural_tag", "format": {"type": "any_text"}})},
        {"structural_tag": json.dumps({"type": "structural_tag", "format": {"type": "x"}})},
        {
            "structural_tag": json.dumps(
                {"structures": [{"begin": "", "schema": {}, "end": ""}], "triggers": [""]}
            )
        },
    ),
    "thinking_token_budget": (0, 1, 3, 10**6),
    "allowed_token_ids": ([0], [70, 71], [287], [1] * 300, list(range(288))),
    "logit_bias": ({"70": -100}, {str(i): -100 for i in range(288)}, {"0": 100, "287": 1e-9}),
    "bad_words": (["a"], ["x" * 200], [" a", "b"], ["\u0000"]),
    "repetition_detection": (
        {"max_pattern_size": 2, "min_pattern_size": 1, "min_count": 2},
        {"max_pattern_size": 10**6, "min_pattern_size": 1, "min_count": 10**6},
    ),
    "prompt_logprobs": (0, 1, 20),
    "logprob_token_ids": ([0, 287], [70] * 50),
    "min_tokens": (1, 6, 7),
    "n": (1, 2, 64, 128, 129),
    "temperature": (0, 1e-9, 1e-3, 2),
    "top_k": (1, 288, 289, 10**9),
    "repetition_penalty": (1e-6, 1e6),
    "stop_token_ids": ([0], [287], list(range(288))),
    "vllm_xargs": ({"x": 1}, {"kv_transfer_params": "x"}, {"x": "y" * 1000}),
    "watermarking": (True,),
    "cache_salt": ("x",),
    "truncate_prompt_tokens": (1, 2),
    "use_beam_search": (True,),
    "priority": (-(2**31), 2**31 - 1),
    "stream_interval": (1, 10**9),
}


@contextlib.asynccontextmanager
async def real_rank():
    """Start a router and one real rank."""
    settings = Settings(
        router={"rest_port": 0, "grpc_port": 0, "join_port": 0, "request_timeout": PATIENCE},
        group={"data_parallel": 1},
        engine={"kv_cache_gib": 0.25, "max_num_seqs": 16, "max_model_len": 256},
        fleet={"stall_timeout": 30.0},
    )
    port = held_port()
    share_fork_server()
    engine = VllmEngine(settings, 0, "127.0.0.1", port)
    try:
        await engine.start()
        router = await Router.start(settings)
        link = LinkSettings(routers=(router.addresses.join,))
        server = RankServer(engine, link, RankIdentity("g0", "e0", 0, 1, "127.0.0.1"))
        await server.start()
        try:
            await eventually(lambda: router.membership.ready)
            yield router, engine
        finally:
            await server.stop()
            await router.stop()
    finally:
        await engine.shutdown()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rank():
    async with real_rank() as rank:
        yield rank


def parameters(seed: int, count: int):
    """Generate requests with one to four parameters; each value of the tables once, then random."""
    rng = random.Random(seed)
    table = {name: values for name, values in DANGEROUS.items() if name not in KEPT}
    for name, values in PATHOLOGICAL.items():
        table[name] = (*table.get(name, ()), *values)
    alone = [{name: value} for name, values in table.items() for value in values]
    mixed = (
        {name: rng.choice(table[name]) for name in rng.sample(sorted(table), rng.choice((2, 3, 4)))}
        for _ in itertools.count()
    )
    for chosen in itertools.islice(itertools.chain(alone, mixed), count):
        path, base = rng.choice(BASES)
        body = {**base, "stream": rng.random() < 0.5, **chosen}
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        yield Case(path, content, headers={"content-type": "application/json"})


async def ask(client, case):
    try:
        async with asyncio.timeout(PATIENCE * 1.5):
            answer = await client.post(case.path, content=case.content, headers=case.headers)
    except (TimeoutError, httpx.TransportError) as error:
        return 599, repr(error).encode()
    return answer.status_code, answer.content


async def test_no_parameters_kill_or_wedge_a_real_engine(rank, seed):
    router, engine = rank
    count = int(os.environ.get("FUZZ_ENGINE_CASES", "400"))
    problems: list[str] = []
    served = 0
    async with httpx.AsyncClient(base_url=router.addresses.rest, timeout=PATIENCE * 2) as client:

        async def answer():
            answered = await client.post("/v1/chat/completions", json=QUESTION)
            assert answered.status_code == 200, answered.text
            return answered.json()["choices"][0]["message"]

        right = await answer()
        todo = parameters(seed, count)

        async def work():
            nonlocal served
            for case in todo:
                status, body = await ask(client, case)
                served += status == 200
                problem = rest_problem(status, body, has_deadline=False)
                if problem is not None:
                    problems.append(f"{problem}\n    {case}")
                    if (await engine.load()).health != link_pb2.LoadSnapshot.HEALTHY:
                        problems.append("the engine has failed or stalled")
                        return

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
        assert not problems, f"{len(problems)} of {count}:\n" + "\n".join(problems[:40])
        assert count // 4 < served < count
        # Unchanged: nothing has leaked into other requests' answers.
        assert await answer() == right
    await engine.check_health()
    load = await engine.load()
    assert (load.running_requests, load.waiting_requests) == (0, 0)
    assert load.kv_usage == pytest.approx(0, abs=0.05)
