"""Complete runs on tiny servers: measurements and reports of failures."""

import asyncio
import os
import signal

import pytest

from loadtest.arguments import parse
from loadtest.runner import INTERRUPTED, run_load
from serving import errors
from serving.flags.messages import FlagError
from tests.integration.loadtest.asking import been_asked, options
from tests.support.waiting import PATIENCE


async def test_open_loop_sends_what_was_asked_for(server):
    run = await run_load(options(server, "--rate", "200", "--duration", "0.3"), "x")
    assert run.model == "tiny"
    assert not run.stopped
    assert all(record.ok for record in run.records)
    assert len(run.records) == len(server.app.asked) - 2  # two probes measure how the server counts
    assert {record.output_tokens for record in run.records} == {3}
    # The server adds 5 tokens to each prompt; the others are words.
    assert all(abs(record.prompt_tokens - 100) <= 1 for record in run.records)
    assert all(record.sent >= record.intended for record in run.records)


async def test_equal_seeds_send_the_same(server):
    line = ("--rate", "100", "--duration", "0.2", "--seed", "7")
    first = await run_load(options(server, *line), "x")
    second = await run_load(options(server, *line), "x")
    sent = server.app.asked
    half = len(sent) // 2
    texts = [{str(request["messages"]) for request in part} for part in (sent[:half], sent[half:])]
    assert texts[0] == texts[1]
    assert len(first.records) == len(second.records)


async def test_shards_together_send_what_one_sends(server):
    line = ("--rate", "100", "--duration", "0.2")
    whole = await run_load(options(server, *line), "x")
    parts = [await run_load(options(server, *line, "--shard", f"{n}/2"), "x") for n in range(2)]
    assert sum(len(part.records) for part in parts) == len(whole.records)


async def test_turns_of_a_session_hold_the_answers_before(server):
    line = ("--concurrency", "2", "--duration", "0.2", "--turns", "3")
    run = await run_load(options(server, *line), "x")
    long = [request["messages"] for request in server.app.asked if len(request["messages"]) == 5]
    assert long
    assert long[0][1] == {"role": "assistant", "content": "word word word "}
    assert {record.turn for record in run.records} == {0, 1, 2}


async def test_nobody_there():
    class Nowhere:
        url = "http://127.0.0.1:1"

    with pytest.raises(errors.NotReady, match=r"cannot connect to http://127\.0\.0\.1:1"):
        await run_load(options(Nowhere, "--rate", "1"), "x")
    line = ["run", "--grpc-address", "127.0.0.1:1", "--rate", "1"]
    with pytest.raises(errors.NotReady, match=r"cannot connect to 127\.0\.0\.1:1"):
        await run_load(parse(line, "loadtest"), "x")


async def test_a_model_that_is_not_there(server):
    with pytest.raises(FlagError, match=r"--model other: must be a model that .* serves: tiny"):
        await run_load(options(server, "--rate", "1", "--model", "other"), "x")


async def test_several_models_and_none_named(server):
    server.app.models = {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(FlagError, match="--model is missing"):
        await run_load(options(server, "--rate", "1"), "x")


async def test_a_server_of_another_kind(server):
    server.app.models = ["what"]
    with pytest.raises(errors.NotReady, match="did not return an OpenAI model list"):
        await run_load(options(server, "--rate", "1"), "x")


async def test_a_server_that_refuses_the_first_request(server):
    server.app.status = 400
    with pytest.raises(errors.EngineError, match=r"requests for tiny to .*: HTTP 400: not today"):
        await run_load(options(server, "--rate", "1"), "x")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        pytest.param({"break_after": 6}, "broken", "ClientPayloadError", id="cut"),
        pytest.param({"done": False}, "broken", "without", id="no-done"),
        pytest.param({"status": 429}, "refused", "HTTP 429: not today", id="too-much"),
        pytest.param({"status": 500}, "rejected", "HTTP 500: not today", id="error"),
    ],
)
async def test_failures_are_told_apart(server, change, kind, message):
    line = ("--rate", "100", "--duration", "0.2", "--tokens-per-word", "1")
    for name, value in change.items():
        setattr(server.app, name, value)
    run = await run_load(options(server, *line), "x")
    assert {record.error for record in run.records} <= {"", kind}
    failed = [record for record in run.records if not record.ok]
    assert failed
    assert message in failed[0].message
    assert not run.stopped


async def test_a_server_that_dies_ends_the_run_with_what_was_seen(server):
    running = asyncio.create_task(
        run_load(options(server, "--rate", "200", "--duration", "60"), "x")
    )
    async with asyncio.timeout(PATIENCE):
        await been_asked(server, 12)
        await server.die()
        run = await running
    assert "the server stopped responding: cannot connect to" in run.stopped
    assert sum(record.ok for record in run.records) >= 5
    assert {record.error for record in run.records} <= {"", "broken", "connect", "cancelled"}


async def test_ctrl_c_ends_the_run_with_what_was_seen(server):
    running = asyncio.create_task(
        run_load(options(server, "--rate", "200", "--duration", "60"), "x")
    )
    async with asyncio.timeout(PATIENCE):
        await been_asked(server, 12)
        os.kill(os.getpid(), signal.SIGINT)
        run = await running
    assert run.stopped == INTERRUPTED
    assert run.stages[0].seconds < 60
    assert any(record.ok for record in run.records)
