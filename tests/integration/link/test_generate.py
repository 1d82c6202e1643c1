"""FleetClient over the link: outputs, validation, cancellation, deadlines, no leaks."""

import asyncio
import gc

import pytest
from vllm.engine.protocol import StreamingInput
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from serving.engine.codec import decode_params, decode_parser_kwargs
from serving.errors import (
    DeadlineExceeded,
    ModelNotFound,
    NotReady,
    Overloaded,
    PoisonRequest,
    Unsupported,
)
from serving.link.v1 import link_pb2
from serving.request_context import Priority, RequestContext, use_request_context
from serving.settings import RouterSettings
from tests.support.samples import sample
from tests.support.waiting import eventually, in_time

DELTA, FINAL, CUMULATIVE = (
    RequestOutputKind.DELTA,
    RequestOutputKind.FINAL_ONLY,
    RequestOutputKind.CUMULATIVE,
)


async def collect(outputs):
    return [output async for output in outputs]


def joined(outputs, index=0):
    """Return the tokens, text and log-probabilities that a consumer of DELTA outputs assembles."""
    parts = [each for output in outputs for each in output.outputs if each.index == index]
    logprobs = [position for part in parts for position in part.logprobs or []]
    return [t for part in parts for t in part.token_ids], "".join(p.text for p in parts), logprobs


@pytest.fixture
async def router(fleet):
    return await fleet.router()


@pytest.fixture
async def engines(fleet, router):
    return [rank.engine for rank in await fleet.group(router)]


def busy(engines):
    return sum(len(engine.running) for engine in engines)


# -- outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [pytest.param(1, id="n=1"), pytest.param(3, id="n=3")])
async def test_all_kinds_tell_the_same(router, engines, n):
    deltas = await collect(router.generate(kind=DELTA, n=n, logprobs=1))
    cumulative = await collect(router.generate(kind=CUMULATIVE, n=n, logprobs=1))
    final = await collect(router.generate(kind=FINAL, n=n, logprobs=1))
    assert len(final) == 1
    assert len(final[0].outputs) == n
    for index in range(n):
        choice = final[0].outputs[index]
        tokens, text, logprobs = joined(deltas, index)
        assert tokens == choice.token_ids == [11 + index + i for i in range(8)]
        assert text == choice.text
        assert logprobs == choice.logprobs
        assert (choice.finish_reason, choice.index) == ("length", index)
        last = [each for output in cumulative for each in output.outputs if each.index == index][-1]
        assert last == choice
    for outputs in (deltas, cumulative, final):
        assert [output.finished for output in outputs] == [*[False] * (len(outputs) - 1), True]
        assert outputs[0].prompt_token_ids == [12, 11, 10]
        assert outputs[0].num_cached_tokens == 2
        assert outputs[0].request_id == "x"


async def test_log_probabilities_are_the_engines(router, engines):
    (final,) = await collect(router.generate(kind=FINAL, logprobs=1))
    (engine,) = [engine for engine in engines if engine.started]
    for token, position in zip(final.outputs[0].token_ids, final.outputs[0].logprobs, strict=True):
        assert [each.logprob for each in position.values()] == engine.logprobs[token]
        assert list(position) == [token, token + 1]
        assert [each.rank for each in position.values()] == [1, 2]
        assert position[token].decoded_token == chr(token)  # the model's tokens are bytes


async def test_what_reaches_the_engine(router, engines):
    params = SamplingParams(
        max_tokens=4,
        stop=["##"],
        seed=7,
        structured_outputs=StructuredOutputsParams(json='{"type": "object"}'),
        output_kind=FINAL,
    )
    outputs = router.client.generate(
        {"type": "token", "prompt_token_ids": [10, 11]},
        params,
        "chatcmpl-1",
        trace_headers={"traceparent": "00-1"},
        reasoning_ended=True,
        reasoning_parser_kwargs={"chat_template_kwargs": {"thinking": True}},
    )
    await collect(outputs)
    (work,) = [work for engine in engines for work in engine.started]
    assert list(work.prompt_token_ids) == [10, 11]
    assert work.request_id.endswith("chatcmpl-1")
    assert router.membership.router_id in work.request_id
    assert (work.priority, dict(work.trace_headers)) == (0, {"traceparent": "00-1"})
    assert work.reasoning_ended
    assert decode_parser_kwargs(work) == {"chat_template_kwargs": {"thinking": True}}
    sent = decode_params(work)
    assert (sent.max_tokens, sent.stop, sent.seed) == (4, ["##"], 7)
    assert sent.structured_outputs.json == '{"type": "object"}'
    assert sent.output_kind is DELTA
    assert params.output_kind is FINAL, "the caller's own parameters are not touched"


async def test_unset_max_tokens_is_the_rest_of_the_context(router, engines):
    outputs = router.generate(prompt=[10] * 490, max_tokens=None, kind=FINAL)
    (final,) = await collect(outputs)
    assert len(final.outputs[0].token_ids) == 512 - 490


async def test_equal_ids_of_two_callers_do_not_meet(router, engines):
    both = await asyncio.gather(
        collect(router.generate(prompt=[10], name="same")),
        collect(router.generate(prompt=[100], name="same")),
    )
    assert [joined(outputs)[0][0] for outputs in both] == [11, 101]


async def test_work_is_spread_over_the_ranks(router, engines):
    for engine in engines:
        engine.pause = 1
    streams = [asyncio.create_task(collect(router.generate(name=f"r{i}"))) for i in range(10)]
    await eventually(lambda: busy(engines) == 10)
    assert [len(engine.running) for engine in engines] == [5, 5]
    (group,) = router.membership.snapshot().groups
    assert [rank.inflight_requests for rank in group.ranks] == [5, 5]
    assert all(rank.outstanding_tokens > 0 for rank in group.ranks)
    for engine in engines:
        engine.go.set()
    await asyncio.gather(*streams)
    (group,) = router.membership.snapshot().groups
    assert [rank.outstanding_tokens for rank in group.ranks] == [0, 0]


async def test_idle_ranks_take_turns(router, engines):
    for number in range(6):
        await collect(router.generate(name=f"r{number}"))
    assert [len(engine.started) for engine in engines] == [3, 3]


# -- rejections before work ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        pytest.param({"temperature": 0.5, "logprobs": 10_000}, "logprobs", id="logprobs"),
        pytest.param({"prompt": range(1, 600)}, "maximum model length", id="prompt too long"),
        pytest.param({"prompt": []}, "cannot be empty", id="no prompt"),
        pytest.param({"prompt": [10**7]}, "vocab", id="token out of range"),
        pytest.param({"logit_bias": {10**7: 1.0}}, "logit_bias", id="logit bias"),
    ],
)
async def test_invalid_requests_never_reach_a_rank(router, engines, request_, words):
    with pytest.raises(VLLMValidationError, match=words):
        await collect(router.generate(**request_))
    assert not any(engine.started for engine in engines)
    assert router.client.inflight_requests == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"data_parallel_rank": 1}, "data-parallel rank", id="rank"),
        pytest.param({"kv_hints": object()}, "KV hints", id="kv hints"),
    ],
)
async def test_what_a_fleet_cannot_do_is_said(router, engines, arguments, words):
    outputs = router.client.generate(
        {"type": "token", "prompt_token_ids": [1]}, SamplingParams(), "x", **arguments
    )
    with pytest.raises(Unsupported, match=words):
        await collect(outputs)


async def test_an_adapter_that_was_just_unloaded_is_not_found(router, engines):
    outputs = router.client.generate(
        {"type": "token", "prompt_token_ids": [1]},
        SamplingParams(),
        "x",
        lora_request=LoRARequest("gone", 1, "/gone"),
    )
    with pytest.raises(ModelNotFound, match="the adapter 'gone' does not exist"):
        await collect(outputs)
    assert not any(engine.started for engine in engines)


async def test_streamed_prompt_is_unsupported(router, engines):
    async def prompts():
        yield StreamingInput({"type": "token", "prompt_token_ids": [1]})

    with pytest.raises(Unsupported, match="a streamed prompt"):
        await collect(router.client.generate(prompts(), SamplingParams(), "x"))


async def test_cache_salt_is_not_dropped_in_silence(router, engines):
    prompt = {"type": "token", "prompt_token_ids": [1], "cache_salt": "tenant"}
    with pytest.raises(Unsupported, match="cache_salt"):
        await collect(router.client.generate(prompt, SamplingParams(), "x"))


UNSUPPORTED = {
    "encode": ("x", PoolingParams(), "x"),
    "start_profile": (),
    "stop_profile": (),
    "reset_prefix_cache": (),
    "sleep": (),
    "wake_up": (),
    "release_kv_cache_memory": (),
    "add_lora": (None,),
    "pause_generation": (),
    "resume_generation": (),
}


@pytest.mark.parametrize("name", list(UNSUPPORTED))
async def test_engine_commands_are_unsupported(router, name):
    with pytest.raises(Unsupported):
        await getattr(router.client, name)(*UNSUPPORTED[name])


async def test_not_ready_says_what_is_missing(fleet, router):
    with pytest.raises(NotReady):
        await router.client.check_health()
    soon = RequestContext(deadline=asyncio.get_running_loop().time() + 0.05)
    with use_request_context(soon):
        with pytest.raises(DeadlineExceeded, match="no group has joined this router yet"):
            await collect(router.generate())
        rank = await fleet.rank(router, world=2)
        await eventually(lambda: router.membership.snapshot().groups)
        with pytest.raises(DeadlineExceeded, match="waiting for rank 1"):
            await collect(router.generate())
    assert not rank.engine.started


async def test_a_request_waits_for_a_group_to_come(fleet, router):
    waiting = asyncio.create_task(collect(router.generate()))
    await asyncio.sleep(0)
    await fleet.group(router)
    assert (await waiting)[-1].finished


async def test_ready_fleet_is_healthy(router, engines):
    await router.client.check_health()
    router.client.check_admission(2, "x")
    assert await router.client.get_supported_tasks() == ("generate",)
    assert (router.client.errored, router.client.is_running, router.client.is_stopped) == (
        False,
        True,
        False,
    )


async def test_overloaded_when_the_limit_is_reached(fleet):
    router = await fleet.router(router=RouterSettings(max_inflight_requests=2))
    (rank,) = await fleet.group(router, 1)
    rank.engine.pause = 1
    streams = [router.generate(name=f"r{i}") for i in range(2)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(Overloaded, match="has 2 requests in flight"):
        router.client.check_admission()
    with pytest.raises(Overloaded):
        await collect(router.generate())
    await streams[0].aclose()
    router.client.check_admission()
    await streams[1].aclose()
    assert len(rank.engine.started) == 2


# -- early ends ---------------------------------------------------------------------------


async def test_closing_the_generator_aborts_on_the_rank(router, engines):
    for engine in engines:
        engine.pause = 1
    outputs = router.generate()
    await anext(outputs)
    assert busy(engines) == 1
    await outputs.aclose()
    assert router.client.inflight_requests == 0
    await eventually(lambda: busy(engines) == 0, "the abort")


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13])
async def test_cancelled_at_any_await_leaves_nothing(router, engines, steps):
    for engine in engines:
        engine.pause = 2
    task = asyncio.create_task(collect(router.generate(prompt=[10] * 5)))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert router.client.inflight_requests == 0
    await eventually(lambda: busy(engines) == 0, "the abort")
    (group,) = router.membership.snapshot().groups
    assert [rank.outstanding_tokens for rank in group.ranks] == [0, 0]


async def test_dropped_generator_is_cleaned_up(router, engines):
    for engine in engines:
        engine.pause = 1
    outputs = router.generate()
    await anext(outputs)
    del outputs
    gc.collect()
    await eventually(lambda: router.client.inflight_requests == 0 and busy(engines) == 0)


async def test_deadline_of_the_context_ends_the_request_everywhere(router, engines):
    for engine in engines:
        engine.pause = 1
    clock = asyncio.get_running_loop().time

    async def begin(seconds):
        with use_request_context(RequestContext(deadline=clock() + seconds)):
            outputs = router.generate(max_tokens=4)
        return outputs, await anext(outputs)

    outputs, first = await in_time(begin, DeadlineExceeded)
    assert first.outputs[0].token_ids == [11]
    # The rank stops although the caller is busy elsewhere.
    await eventually(lambda: busy(engines) == 0, "the abort")
    with pytest.raises(DeadlineExceeded):
        await anext(outputs)


async def test_request_timeout_bounds_every_request(fleet):
    router = await fleet.router(router=RouterSettings(request_timeout=0.05))
    (rank,) = await fleet.group(router, 1)
    rank.engine.pause = 0
    with pytest.raises(DeadlineExceeded):
        await collect(router.generate())
    await eventually(lambda: not rank.engine.running, "the abort")


async def test_a_request_that_engines_fail_on_is_refused_as_poison(router, engines):
    class Broken:
        async def __call__(self, work):
            yield link_pb2.Delta(
                request_id=work.request_id,
                finished=True,
                error=link_pb2.RequestError(
                    code=link_pb2.RequestError.ENGINE_FAILED, message="out of blocks"
                ),
            )

    for engine in engines:
        engine.generate = Broken()
    with pytest.raises(PoisonRequest, match="2 groups failed right after"):
        await collect(router.generate())
    assert router.client.inflight_requests == 0


async def test_a_rank_that_refuses_because_it_drains_is_not_asked_again(fleet, router):
    (leaving,) = await fleet.group(router, 1, group="g0")
    refusals = []
    refused = asyncio.Event()

    async def refuse(work):
        refusals.append(work.request_id)
        refused.set()
        yield link_pb2.Delta(
            request_id=work.request_id,
            finished=True,
            error=link_pb2.RequestError(code=link_pb2.RequestError.DRAINING, message="scale down"),
        )

    leaving.engine.generate = refuse
    task = asyncio.create_task(collect(router.generate()))
    await refused.wait()
    await fleet.rank(router, group="g1")
    assert (await task)[-1].finished
    assert len(refusals) == 1


# -- load ---------------------------------------------------------------------------------


async def test_a_thousand_at_once_leave_nothing_behind(router, engines):
    before = asyncio.all_tasks()
    ok = sample("moe_requests_total", outcome="OK")

    async def one(number):
        outputs = router.generate(prompt=[number % 90 + 1], name=f"r{number}", max_tokens=20)
        if number % 5 == 0:
            await anext(outputs)
            await outputs.aclose()
            return
        tokens, _, _ = joined(await collect(outputs))
        assert tokens == [number % 90 + 2 + i for i in range(20)]

    await asyncio.gather(*(one(number) for number in range(1000)))
    await eventually(lambda: busy(engines) == 0, "the last abort")
    assert router.client.inflight_requests == 0
    (group,) = router.membership.snapshot().groups
    assert [(rank.inflight_requests, rank.outstanding_tokens) for rank in group.ranks] == [
        (0, 0),
        (0, 0),
    ]
    await eventually(lambda: asyncio.all_tasks() <= before, "the end of the requests' tasks")
    assert sample("moe_requests_total", outcome="OK") - ok == 800


async def test_a_burst_travels_in_few_frames(router, engines):
    for engine in engines:
        engine.burst = 50
    frames = sample("moe_link_frames_total", direction="up")
    deltas = sample("moe_link_deltas_total")
    await asyncio.gather(
        *(collect(router.generate(name=f"r{i}", max_tokens=50)) for i in range(20))
    )
    assert sample("moe_link_deltas_total") - deltas == 1000
    assert sample("moe_link_frames_total", direction="up") - frames < 200


@pytest.mark.parametrize(
    ("policy", "reaches"),
    [pytest.param("fcfs", 0, id="fcfs"), pytest.param("priority", 2, id="priority")],
)
async def test_the_callers_key_sets_the_engines_priority_not_the_body(
    router, engines, monkeypatch, policy, reaches
):
    monkeypatch.setattr(router.client.vllm_config.scheduler_config, "policy", policy)
    with use_request_context(RequestContext(priority=Priority.BATCH)):
        outputs = router.client.generate(
            {"type": "token", "prompt_token_ids": [1, 2]},
            SamplingParams(max_tokens=1),
            "x",
            priority=-5,
        )
        assert await collect(outputs)
    assert [work.priority for engine in engines for work in engine.started][-1] == reaches
