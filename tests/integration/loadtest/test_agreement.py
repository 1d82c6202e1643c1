"""Our load client counts the same tokens as vLLM's bench client and the router.

vLLM's own, unmodified functions are the oracle. These tests do not measure time;
``python -m loadtest.bench.agreement`` compares the throughput of three clients.
"""

import asyncio
from itertools import accumulate

import aiohttp
import pytest
import pytest_asyncio
from vllm.benchmarks.lib.endpoint_request_func import (
    ASYNC_REQUEST_FUNCS,
    RequestFuncInput,
    RequestFuncOutput,
)
from vllm.benchmarks.lib.ready_checker import wait_for_endpoint
from vllm.benchmarks.serve import (
    SampleRequest,
    _align_prompts_to_server_tokenizer,
    calculate_metrics,
    get_first_model_from_server,
)

from loadtest.arguments import parse
from loadtest.bench.agreement import generated
from loadtest.record import Record
from loadtest.runner import run_load
from loadtest.slo import Slo
from loadtest.statistics import summarize
from serving.settings import BUNDLED_MODEL
from tests.integration.edge.stand import stand_settings, standing

REQUESTS, STREAMS, TOKENS = 12, 3, 7
SHORT = ("--prompt-tokens", "20", "--tokens-per-word", "1")
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
BACKENDS = {"chat": "openai-chat", "completions": "openai"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router():
    async with standing(stand_settings(), 2) as stand:
        yield stand.router.addresses


class Counted:
    """The increase of the router's token counter in the block."""

    def __init__(self, rest):
        self._rest = rest

    async def __aenter__(self):
        self._before = await asyncio.to_thread(generated, self._rest)
        return self

    async def __aexit__(self, *_):
        self.tokens = await asyncio.to_thread(generated, self._rest) - self._before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("endpoint", PATHS)
@pytest.mark.parametrize("door", ["rest", "grpc"])
async def test_ours_counts_what_the_router_counts(router, door, endpoint):
    where = ("--rest-url", router.rest) if door == "rest" else ("--grpc-address", router.grpc)
    line = ["run", *where, "--endpoint", endpoint, "--concurrency", str(STREAMS)]
    line += ["--requests", str(REQUESTS), "--output-tokens", str(TOKENS), "--ignore-eos"]
    line += [*SHORT, "--warmup", "0"]
    async with Counted(router.rest) as counted:
        run = await run_load(parse(line, "load"), "x")
    summary = run.summary(run.stages[0])
    assert (summary.ok, summary.failed) == (REQUESTS, 0)
    assert summary.tokens == REQUESTS * TOKENS == counted.tokens
    assert summary.output_tokens * summary.busy == pytest.approx(summary.tokens)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_warm_up_is_over_when_what_is_measured_begins(router):
    line = ["run", "--rest-url", router.rest, "--concurrency", str(STREAMS), "--warmup", "0.05"]
    line += ["--requests", str(REQUESTS), "--output-tokens", str(TOKENS), "--ignore-eos"]
    run = await run_load(parse([*line, *SHORT], "load"), "x")
    parts = {
        phase: [record for record in run.records if record.phase == phase]
        for phase in ("warmup", "measure")
    }
    assert len(parts["warmup"]) >= STREAMS
    assert len(parts["measure"]) == REQUESTS
    assert all(one.ok for one in run.records)
    assert max(one.end for one in parts["warmup"]) <= min(one.sent for one in parts["measure"])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_rate_sends_so_many_requests_too(router):
    line = ["run", "--rest-url", router.rest, "--rate", "500", "--requests", str(REQUESTS)]
    line += ["--output-tokens", str(TOKENS), "--ignore-eos", "--warmup", "0"]
    run = await run_load(parse([*line, *SHORT], "load"), "x")
    assert run.summary(run.stages[0]).tokens == REQUESTS * TOKENS
    assert len(run.records) == REQUESTS


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("endpoint", PATHS)
async def test_vllms_client_gets_and_counts_the_same(router, endpoint):
    model, root = await get_first_model_from_server(router.rest)
    assert (model, root) == ("pocket-r1", str(BUNDLED_MODEL))
    send = ASYNC_REQUEST_FUNCS[BACKENDS[endpoint]]
    asked = [
        RequestFuncInput(
            prompt=f"question {number}",
            api_url=router.rest + PATHS[endpoint],
            prompt_len=2,
            output_len=TOKENS,
            model=model,
            ignore_eos=True,
            request_id=f"bench-{number}",
        )
        for number in range(REQUESTS)
    ]
    async with aiohttp.ClientSession() as session:
        ready = await wait_for_endpoint(send, asked[0], session, timeout_seconds=60)
        assert ready.success, ready.error
        async with Counted(router.rest) as counted:
            outputs = await asyncio.gather(*(send(one, session) for one in asked))
    assert [one.error for one in outputs] == [""] * REQUESTS
    assert [one.output_tokens for one in outputs] == [TOKENS] * REQUESTS
    assert counted.tokens == REQUESTS * TOKENS
    assert all(one.ttft > 0 for one in outputs)
    # In chats the fake model writes reasoning only, which vLLM's client discards.
    assert all(bool(one.generated_text) is (endpoint == "completions") for one in outputs)


@pytest.mark.asyncio(loop_scope="module")
async def test_vllms_client_finds_the_tokenizer_of_the_server(router, capsys):
    asked = [SampleRequest("one two three", prompt_len=2, expected_output_len=1)]
    aligned = await _align_prompts_to_server_tokenizer(router.rest, "pocket-r1", asked)
    assert "unavailable" not in capsys.readouterr().out
    assert aligned[0].prompt_len == 2
    assert "one two three".startswith(aligned[0].prompt)


def test_names_mean_what_they_mean_in_vllms_client():
    """The same responses, as our records and as vLLM's outputs, yield the same figures."""
    records, outputs = [], []
    for index in range(20):
        sent, ttft = 0.25 * index, 0.05 + 0.01 * (index % 7)
        gaps = [0.02 + 0.001 * ((index + place) % 5) for place in range(index % 4 + 1)]
        tokens = 2 * len(gaps) + 1  # several in a chunk
        times = [sent + ttft, *(sent + ttft + passed for passed in accumulate(gaps))]
        good = index % 10 != 9
        records.append(
            Record(
                index, 0, index, 0, "measure", sent, sent, times[0], times[-1], 10, tokens, 0,
                tuple(gap * 1000 for gap in gaps), "" if good else "broken",
            )
        )  # fmt: skip
        outputs.append(
            RequestFuncOutput(
                success=good,
                latency=times[-1] - sent,
                output_tokens=tokens,
                ttft=ttft,
                itl=gaps,
                prompt_len=10,
                start_time=sent,
            )
        )
    duration = max(record.end for record in records)
    theirs, _ = calculate_metrics([], outputs, duration, None, [99.0], {})
    ours = summarize(records, Slo(), 5.0)
    same = {
        "completed": (ours.ok, theirs.completed),
        "failed": (ours.failed, theirs.failed),
        "output tokens": (ours.tokens, theirs.total_output),
        "output throughput": (ours.output_tokens, theirs.output_throughput),
        "request throughput": (ours.completed, theirs.request_throughput),
        "mean TTFT": (ours.ttft.mean * 1000, theirs.mean_ttft_ms),
        "median TTFT": (ours.ttft.p50 * 1000, theirs.median_ttft_ms),
        "p99 TTFT": (ours.ttft.p99 * 1000, theirs.percentiles_ttft_ms[0][1]),
        "mean TPOT": (ours.itl.mean * 1000, theirs.mean_tpot_ms),
        "mean ITL": (ours.gap.mean * 1000, theirs.mean_itl_ms),
        "p99 ITL": (ours.gap.p99 * 1000, theirs.percentiles_itl_ms[0][1]),
    }
    for name, (mine, vllms) in same.items():
        assert mine == pytest.approx(vllms), name
