"""The contract of every engine, tested on the fake one and on vLLM with the bundled model."""

import asyncio
import contextlib

import msgspec
import psutil
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer

from serving.engine.fake.engine import FakeEngine, FakeFaults
from serving.errors import EngineError
from serving.link.adapter_files import AdapterBase, check_adapter
from serving.link.v1 import link_pb2
from serving.requests.output_buffer import OutputBuffer
from serving.requests.resume import plan
from serving.settings import BUNDLED_MODEL, EngineSettings, GroupSettings, ModelSettings, Settings
from tests.support.adapters import write_adapter
from tests.support.clock import ManualClock
from tests.support.engines import generate, share_fork_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALONE = Settings(group=GroupSettings(data_parallel=1), engine=EngineSettings(max_num_seqs=8))
ADAPTERS = ("one", "two", "three")
PROMPT = [1, 40, 41, 42, 43]
TOKENIZER = get_tokenizer(str(BUNDLED_MODEL))
DEADLINE = 300  # seconds; reached only on failure
# Only digits are allowed, after an unrelated prompt, so every token is random: otherwise, the
# trained model is so certain at temperature 1 that three choices can be the same.
THROWN = {"temperature": 2.0, "max_tokens": 24, "allowed_token_ids": list(range(48, 58))}
CODES = link_pb2.RequestError
CHOICE = link_pb2.ChoiceDelta


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["fake", pytest.param("vllm", marks=pytest.mark.vllm)],
)
async def engine(request, tmp_path_factory):
    """One engine for all tests of this module; none of its processes is left afterwards.

    It runs adapters, so that the whole contract holds with them.
    """
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        write_adapter(root / name, seed=seed, scale=1.0)
    entries = [{"name": name, "path": str(root / name)} for name in ADAPTERS]
    model = ModelSettings(adapters=entries, lora={"slots": 2, "max_rank": 8})
    settings = ALONE.model_copy(update={"model": model})
    if request.param == "vllm":
        share_fork_server()
    before = set(psutil.Process().children(recursive=True))
    if request.param == "fake":
        engine = FakeEngine(settings)
    else:
        from serving.engine.vllm_engine import VllmEngine

        engine = VllmEngine(settings)
    await engine.start()
    engine.root = root
    yield engine
    await engine.shutdown()
    await engine.shutdown()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert (await engine.load()).health == link_pb2.LoadSnapshot.FAILED


def submit(request_id, prompt=PROMPT, **params):
    """Return a request as a router encodes it: vLLM's sampling parameters as msgpack."""
    params = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True} | params
    return link_pb2.Submit(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=msgspec.msgpack.encode(params),
    )


def adapted(engine, request_id, name, digest=None, **params):
    """Return a request that names an adapter."""
    work = submit(request_id, **params)
    base = AdapterBase(frozenset({"pocket-r1"}), str(BUNDLED_MODEL), 8)
    work.adapter.name = name
    work.adapter.digest = digest or check_adapter(engine.root / name, base).digest
    return work


async def collect(engine, work):
    async with asyncio.timeout(DEADLINE):
        return [delta async for delta in generate(engine, work)]


def tokens(deltas, index=0):
    return [
        token
        for delta in deltas
        for choice in delta.choices
        if choice.index == index
        for token in choice.token_ids
    ]


def last(deltas, index=0):
    return [c for delta in deltas for c in delta.choices if c.index == index][-1]


async def test_describe_says_what_the_engine_holds(engine):
    hello = engine.describe()
    assert hello.model == "pocket-r1"
    assert hello.engine_version
    assert len(hello.model_fingerprint) == 16
    assert hello.capacity.max_num_seqs == 8
    assert hello.capacity.max_model_len >= 16
    assert hello.capacity.kv_blocks > 0
    assert hello.capacity.kv_block_size > 0
    assert hello.capacity.tensor_parallel_size == 1
    assert list(hello.experts.local_ids) == list(range(hello.experts.total))


async def test_a_stream_ends_with_one_finished_delta_and_says_its_prompt_once(engine):
    deltas = await collect(engine, submit("one"))
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert len(tokens(deltas)) == 8
    assert last(deltas).finish_reason == CHOICE.LENGTH
    assert [delta.prompt_tokens for delta in deltas] == [5] + [0] * (len(deltas) - 1)
    assert {delta.request_id for delta in deltas} == {"one"}
    assert not any(delta.HasField("error") for delta in deltas)


async def test_the_same_request_gives_the_same_tokens_alone_and_among_others(engine):
    alone = tokens(await collect(engine, submit("alone")))
    together = await asyncio.gather(
        *(
            collect(engine, submit(f"n{n}", PROMPT if n == 3 else [n + 5] * n + [7]))
            for n in range(6)
        ),
    )
    assert tokens(together[3]) == alone


@pytest.mark.parametrize("cut", [1, 4, 7])
async def test_an_answer_goes_on_where_it_was_cut(engine, cut):
    whole = tokens(await collect(engine, submit("whole")))
    rest = submit("rest", PROMPT + whole[:cut], max_tokens=8 - cut)
    assert whole[:cut] + tokens(await collect(engine, rest)) == whole


async def test_several_choices_have_their_own_tokens_and_ends(engine):
    deltas = await collect(engine, submit("n", n=3, seed=5, **THROWN))
    assert [len(tokens(deltas, index)) for index in range(3)] == [24, 24, 24]
    assert [last(deltas, index).finish_reason for index in range(3)] == [CHOICE.LENGTH] * 3
    assert [delta.finished for delta in deltas].count(True) == 1
    assert deltas[-1].finished
    assert len({tuple(tokens(deltas, index)) for index in range(3)}) > 1


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)], ids=["largest", "smallest"])
async def test_no_seed_is_too_large_for_several_choices(engine, seed):
    deltas = await collect(engine, submit(f"seed{seed}", n=2, seed=seed, **THROWN))
    assert [len(tokens(deltas, index)) for index in range(2)] == [24, 24]
    await engine.check_health()


async def test_the_seed_decides(engine):
    first, again, other = [
        await collect(engine, submit(f"s{n}", seed=seed, **THROWN))
        for n, seed in enumerate([1, 1, 2])
    ]
    assert len(tokens(first)) == 24
    assert tokens(first) == tokens(again)
    assert tokens(first) != tokens(other)


@pytest.mark.parametrize("flat", [False, True], ids=["dicts", "flat"])
async def test_log_probabilities_come_with_every_token(engine, flat):
    work = submit("logprobs", logprobs=2, prompt_logprobs=1, flat_logprobs=flat)
    deltas = await collect(engine, work)
    positions = [p for delta in deltas for choice in delta.choices for p in choice.logprobs]
    assert [position.token_ids[0] for position in positions] == tokens(deltas)
    for position in positions:
        size = len(position.token_ids)
        assert size >= 2
        assert len(position.logprobs) == len(position.vocab_ranks) == size
        assert all(value <= 0 for value in position.logprobs)
        assert position.vocab_ranks[0] == 1
    prompt = deltas[0].prompt_logprobs
    assert len(prompt) == len(PROMPT)
    assert not prompt[0].token_ids
    assert [position.token_ids[0] for position in prompt[1:]] == PROMPT[1:]
    assert not any(delta.prompt_logprobs for delta in deltas[1:])


async def test_stop_strings_are_left_to_the_router(engine):
    whole = tokens(await collect(engine, submit("whole")))
    deltas = await collect(engine, submit("stop", stop=[chr(token) for token in range(128)]))
    assert tokens(deltas) == whole
    assert last(deltas).finish_reason == CHOICE.LENGTH


async def test_a_complete_request_ends_without_a_delta_and_counts_as_stopped(engine):
    deltas, first = [], asyncio.Event()

    def deliver(delta):
        deltas.append(delta)
        first.set()

    before = stopped()
    running = engine.submit(submit("complete", max_tokens=1500), deliver)
    async with asyncio.timeout(DEADLINE):
        await first.wait()
    assert running.complete(0)
    count = len(deltas)
    assert running.complete(0)
    running.cancel()
    await until(engine, lambda load: load.running_requests == 0)
    assert len(deltas) == count
    assert not any(delta.finished for delta in deltas)
    await collect(engine, submit("next"))
    if engine.describe().engine_version.startswith("vllm"):
        assert stopped() == before + 1


def stopped():
    """Return vLLM's count of requests that ended because of a stop string or token."""
    labels = {"engine": "0", "model_name": "pocket-r1", "finished_reason": "stop"}
    return REGISTRY.get_sample_value("vllm:request_success_total", labels) or 0


async def test_a_request_with_several_choices_ends_when_all_of_them_have(engine):
    deltas, done = [], asyncio.Event()

    def deliver(delta):
        deltas.append(delta)
        if delta.finished:
            done.set()

    running = engine.submit(submit("some", n=2, **THROWN), deliver)
    assert not running.complete(1)
    async with asyncio.timeout(DEADLINE):
        await done.wait()
    assert len(tokens(deltas, 0)) == 24
    both = engine.submit(submit("both", n=2, **THROWN | {"max_tokens": 1500}), deliver)
    assert [both.complete(0), both.complete(1)] == [False, True]
    await until(engine, lambda load: load.running_requests + load.waiting_requests == 0)


async def test_a_stop_token_ends_the_stream(engine):
    whole = tokens(await collect(engine, submit("whole")))
    stop = whole[3]
    work = submit("stop", stop_token_ids=[stop])
    deltas = await collect(engine, work)
    assert tokens(deltas) == whole[: whole.index(stop) + 1]
    assert last(deltas).finish_reason == CHOICE.STOP
    assert last(deltas).stop_token_id == stop


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(submit("x", []), id="empty-prompt"),
        pytest.param(submit("x", [10**6]), id="out-of-vocabulary"),
        pytest.param(submit("x", [5] * 5000), id="too-long"),
        pytest.param(submit("x", n="two"), id="wrong-type"),
        pytest.param(
            link_pb2.Submit(request_id="x", prompt_token_ids=[1], sampling_params=b"\xc1"),
            id="no-msgpack",
        ),
    ],
)
async def test_a_bad_request_ends_with_an_error_and_the_next_one_works(engine, work):
    deltas = await collect(engine, work)
    assert len(deltas) == 1
    assert deltas[0].finished
    assert deltas[0].error.code == CODES.INVALID_REQUEST
    assert deltas[0].error.message
    assert len(tokens(await collect(engine, submit("next")))) == 8


async def test_closing_the_iterator_aborts_the_request(engine):
    stream = generate(engine, submit("closed", max_tokens=1500))
    await anext(stream)
    await stream.aclose()
    load = await until(engine, lambda load: load.running_requests + load.waiting_requests == 0)
    assert load.kv_usage == 0


QUESTION = list(b"What is 17+25? Show the steps, then the result.")
ROWS = [
    pytest.param({"temperature": 0.0}, id="greedy"),
    pytest.param({"temperature": 0.0, "stop": "answer"}, id="stop string"),
    pytest.param(
        {"temperature": 0.0, "stop": "answer", "include_stop_str_in_output": True},
        id="stop string, kept",
    ),
    pytest.param({"temperature": 0.0, "stop": "answer", "min_tokens": 24}, id="late stop string"),
    pytest.param({"temperature": 0.0, "logprobs": 2}, id="log-probabilities"),
    pytest.param({"temperature": 0.0, "repetition_penalty": 1.2}, id="repetition penalty"),
    pytest.param({"temperature": 0.0, "presence_penalty": 0.5}, id="presence penalty"),
    pytest.param({"temperature": 1.0, "seed": 5}, id="seed"),
    pytest.param({"temperature": 1.0, "seed": 5, "n": 2, "stop": "answer"}, id="choices"),
    pytest.param({"temperature": 0.0, "structured_outputs": "[a-z ]{40,60}"}, id="grammar"),
]
CUTS = (1, 11, 23)


@pytest.mark.parametrize("row", ROWS)
async def test_a_request_that_changes_ranks_has_the_same_output(engine, row):
    """The rows of resumption.md: each output is assembled from four pieces."""
    row = dict(row)
    if "stop" in row:
        # Part of the answer, so that it is found; one of the cuts is inside it.
        whole = await played(engine, {**row, "stop": None}, "whole")
        row["stop"] = [whole[0]["text"][21:25]]
    if "structured_outputs" in row:
        row["structured_outputs"] = StructuredOutputsParams(regex=row["structured_outputs"])
    undisturbed = await played(engine, row, "undisturbed")
    assert await played(engine, row, "cut", cuts=CUTS) == undisturbed
    if "stop" in row and row["temperature"] == 0:
        assert undisturbed[0]["reason"] == ("stop", row["stop"][0])


async def played(engine, row, name, cuts=()):
    """Run a request as a router does, changing ranks after each number of tokens in ``cuts``."""
    sampling = SamplingParams(max_tokens=48, ignore_eos=True, **row)
    buffer = OutputBuffer(name, QUESTION, sampling, RequestOutputKind.DELTA, tokenizer=TOKENIZER)
    first = work = link_pb2.Submit(
        request_id=name,
        prompt_token_ids=QUESTION,
        sampling_params=msgspec.msgpack.encode(sampling),
    )
    outputs = []
    for attempt, cut in enumerate((*cuts, 10**6), 1):
        async with asyncio.timeout(DEADLINE), contextlib.aclosing(generate(engine, work)) as deltas:
            async for delta in deltas:
                assert not delta.HasField("error"), delta.error.message
                if buffer.add(delta) is None:
                    buffer.apply(delta)
                if (output := buffer.take()) is not None:
                    outputs.append(output)
                if buffer.finished or buffer.emitted_tokens >= cut:
                    break
        if buffer.finished:
            break
        work = plan(first, sampling, buffer, attempt=attempt, expected_output=48).work
    assert buffer.finished
    parts = [choice for output in outputs for choice in output.outputs]
    return [
        {
            "tokens": buffer.emitted(index),
            "text": "".join(part.text for part in parts if part.index == index),
            "logprobs": [
                {
                    token: (round(one.logprob, 2), one.rank, one.decoded_token)
                    for token, one in position.items()
                }
                for part in parts
                if part.index == index
                for position in part.logprobs or ()
            ],
            "reason": next(
                (part.finish_reason, part.stop_reason)
                for part in parts
                if part.index == index and part.finish_reason
            ),
        }
        for index in range(sampling.n)
    ]


async def test_load_counts_what_was_done(engine):
    before = await engine.load()
    await asyncio.gather(*(collect(engine, submit(f"l{n}")) for n in range(3)))
    counted = sum(sum(layer.tokens) for layer in before.experts)
    load = await until(
        engine,
        lambda load: sum(sum(layer.tokens) for layer in load.experts) > counted,
    )
    assert load.health == link_pb2.LoadSnapshot.HEALTHY
    assert load.prompt_tokens_total - before.prompt_tokens_total == 15
    assert load.generated_tokens_total - before.generated_tokens_total == 24
    assert load.engine_steps_total > before.engine_steps_total
    assert load.resident_bytes > 10 * 2**20
    local = len(engine.describe().experts.local_ids)
    assert {len(layer.tokens) for layer in load.experts} == {local}


async def until(engine, condition):
    """Return the load as soon as ``condition`` holds for it."""
    async with asyncio.timeout(DEADLINE):
        while not condition(load := await engine.load()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return load


# ------------------------------------------------------------- faults of the fake engine


async def test_a_fake_engine_that_fails_ends_every_request():
    engine = FakeEngine(ALONE, faults=FakeFaults(fail_after=5))
    await engine.start()
    streams = await asyncio.gather(*(collect(engine, submit(f"f{n}")) for n in range(2)))
    assert {deltas[-1].error.code for deltas in streams} == {CODES.ENGINE_FAILED}
    assert all(deltas[-1].finished for deltas in streams)
    with pytest.raises(EngineError, match="failed as configured"):
        await engine.check_health()
    assert (await engine.load()).health == link_pb2.LoadSnapshot.FAILED
    after = await collect(engine, submit("after"))
    assert after[-1].error.code == CODES.ENGINE_FAILED


async def test_a_fake_engine_that_stalls_says_so_until_it_is_given_up():
    clock = ManualClock(0.0)
    engine = FakeEngine(ALONE, clock=clock, faults=FakeFaults(stall_after=2))
    await engine.start()
    stream = generate(engine, submit("stalled"))
    assert len(tokens([await anext(stream), await anext(stream)])) == 2
    third = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await engine.check_health()
    clock.now += ALONE.fleet.stall_timeout + 1
    with pytest.raises(EngineError, match="no step"):
        await engine.check_health()
    assert (await engine.load()).health == link_pb2.LoadSnapshot.STALLED
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    await stream.aclose()
    assert (await engine.load()).running_requests == 0


async def test_a_fake_engine_refuses_when_told_to():
    engine = FakeEngine(ALONE, faults=FakeFaults(reject="full"))
    await engine.start()
    deltas = await collect(engine, submit("refused"))
    assert deltas[-1].error.code == CODES.OVERLOADED
    engine.faults.reject = None
    assert len(tokens(await collect(engine, submit("taken")))) == 8


async def test_an_adapter_changes_the_tokens_of_its_requests_alone(engine):
    names = (None, *ADAPTERS)

    async def ask(name, number):
        work = (
            submit(f"{name}{number}") if name is None else adapted(engine, f"{name}{number}", name)
        )
        return tokens(await collect(engine, work))

    alone = {name: await ask(name, 0) for name in names}
    assert len({tuple(found) for found in alone.values()}) > 1
    # More adapters than slots: requests wait, and all are answered.
    together = await asyncio.gather(*(ask(name, number) for number in (1, 2) for name in names))
    assert together == [alone[name] for _ in (1, 2) for name in names]
    report = (await engine.load()).adapters
    assert report.requests_total >= 9
    assert report.evictions_total == report.loads_total - len(report.resident)
    assert len(report.resident) == 2
    assert engine.describe().adapters == link_pb2.AdapterCapacity(slots=2, max_rank=8)


async def test_an_answer_with_an_adapter_goes_on_where_it_was_cut(engine):
    whole = tokens(await collect(engine, adapted(engine, "whole", "one")))
    rest = adapted(engine, "rest", "one", prompt=PROMPT + whole[:4], max_tokens=4)
    assert whole[:4] + tokens(await collect(engine, rest)) == whole


@pytest.mark.parametrize(
    ("name", "digest", "error"),
    [("none", "0", "not in the settings of this rank"), ("one", "0" * 16, "have the digest")],
)
async def test_a_wrong_adapter_fails_its_request_alone(engine, name, digest, error):
    wrong, right = await asyncio.gather(
        collect(engine, adapted(engine, f"wrong-{name}", name, digest)),
        collect(engine, adapted(engine, f"right-{name}", "two")),
    )
    assert wrong[-1].finished
    assert wrong[-1].error.code == CODES.ADAPTER
    assert error in wrong[-1].error.message
    assert len(tokens(right)) == 8
    await engine.check_health()


async def test_an_engine_without_adapters_refuses_requests_for_them():
    engine = FakeEngine(ALONE)
    await engine.start()
    work = submit("x")
    work.adapter.name = "one"
    (delta,) = await collect(engine, work)
    assert delta.error.code == CODES.ADAPTER
    assert "runs no adapters" in delta.error.message
    assert not engine.describe().HasField("adapters")


async def test_a_fake_engine_fails_to_start_when_told_to():
    engine = FakeEngine(ALONE, faults=FakeFaults(start_error="no memory"))
    with pytest.raises(EngineError, match="no memory"):
        await engine.start()
    assert (await engine.load()).health == link_pb2.LoadSnapshot.FAILED


async def test_a_fake_engine_makes_the_rest_wait_when_it_is_full():
    engine = FakeEngine(ALONE, faults=FakeFaults(stall_after=0))
    await engine.start()
    tasks = [asyncio.create_task(collect(engine, submit(f"w{n}"))) for n in range(10)]
    load = await until(engine, lambda load: load.running_requests + load.waiting_requests == 10)
    assert (load.running_requests, load.waiting_requests) == (8, 2)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert (await engine.load()).running_requests == 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
async def test_fake_ranks_share_the_experts(ranks):
    settings = Settings(group=GroupSettings(data_parallel=ranks))
    hellos = [FakeEngine(settings, rank=rank).describe() for rank in range(ranks)]
    ids = [expert for hello in hellos for expert in hello.experts.local_ids]
    assert ids == list(range(hellos[0].experts.total))


async def test_steps_take_time_and_vllm_counts_for_its_own_page(engine):
    before = await engine.load()
    await collect(engine, submit("counted", max_tokens=16))
    after = await engine.load()
    assert after.engine_steps_total > before.engine_steps_total
    if not engine.describe().engine_version.startswith("vllm"):
        return  # without delay the fake engine's steps take no time, and vLLM does not count here
    assert after.busy_seconds_total > before.busy_seconds_total
    own = REGISTRY.get_sample_value(
        "vllm:generation_tokens_total", {"engine": "0", "model_name": "pocket-r1"}
    )
    assert own >= 16
