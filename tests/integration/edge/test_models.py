"""Several models behind one router, with fake ranks on real links."""

import asyncio
import contextlib
import json

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc
from serving.api.v1 import inference_pb2 as pb
from serving.errors import SettingsError
from serving.requests.client import FleetClient
from serving.router.app import Router
from serving.settings import BUNDLED_MODEL, served_models
from tests.integration.edge.stand import Stand, stand_settings, standing
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

NEVER = 1e6
"""Seconds per token of an engine that does not answer."""
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 2})


def entry(name, **fields):
    return {"name": name, "path": str(BUNDLED_MODEL)} | fields


def settings_of(*entries, **groups):
    return stand_settings(models=list(entries), **groups)


def pool_of(stand, model, pool=0):
    by_name = {served.name: served for served in served_models(stand.settings)}
    return by_name[model].pools[pool].settings


@contextlib.asynccontextmanager
async def serving(settings, *groups):
    """Start a router, and one group for each (model, seconds per token) in ``groups``."""
    async with standing(settings, 0) as stand:
        for model, delay in groups:
            pool = pool_of(stand, model)
            await stand.join(f"group-{model}", settings=pool)
            stand.engines[-1]._token_delay = delay  # not before, for the canary
        base = stand.router.addresses.rest
        async with httpx.AsyncClient(base_url=base, timeout=PATIENCE) as rest:
            yield stand, rest


async def ask(rest, model, path=CHAT[0], body=CHAT[1]):
    # SageMaker selects the model of /invocations with a header.
    headers = {"x-amzn-sagemaker-adapter-identifier": model} if path == "/invocations" else {}
    return await rest.post(path, json=body | {"model": model}, headers=headers)


def served_by(stand: Stand, model: str) -> int:
    """Return the prompt tokens that the engines of a model have processed."""
    return sum(engine._prompt_tokens for engine in stand.engines if engine_model(engine) == model)


def engine_model(engine):
    return engine.describe().model


ROUTES = [
    pytest.param(*CHAT, id="chat"),
    pytest.param("/v1/chat/completions", CHAT[1] | {"stream": True}, id="streamed chat"),
    pytest.param(
        "/v1/chat/completions/batch", {"messages": [MESSAGES], "max_tokens": 2}, id="batch"
    ),
    pytest.param("/v1/completions", {"prompt": "a", "max_tokens": 2}, id="completion"),
    pytest.param("/v1/responses", {"input": "hi", "max_output_tokens": 2}, id="responses"),
    pytest.param("/v1/messages", {"messages": MESSAGES, "max_tokens": 2}, id="messages"),
    pytest.param("/invocations", {"messages": MESSAGES, "max_tokens": 2}, id="invocations"),
]
WITHOUT_RANKS = [
    pytest.param("/v1/messages/count_tokens", {"messages": MESSAGES}, id="count tokens"),
    pytest.param("/tokenize", {"prompt": "a"}, id="tokenize"),
    pytest.param("/detokenize", {"tokens": [5, 6]}, id="detokenize"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def two():
    settings = settings_of(entry("a"), entry("org/b", aliases=["b"]))
    async with serving(settings, ("a", 0.0), ("org/b", 0.0)) as found:
        yield found


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize(("asked", "model"), [("a", "a"), ("org/b", "org/b"), ("b", "org/b")])
async def test_a_request_goes_to_the_ranks_of_its_model(two, path, body, asked, model):
    stand, rest = two
    before = {name: served_by(stand, name) for name in ("a", "org/b")}
    response = await ask(rest, asked, path, body)
    assert response.status_code == 200, response.text
    other = "a" if model == "org/b" else "org/b"
    assert served_by(stand, model) > before[model]
    assert served_by(stand, other) == before[other]
    if path != "/v1/messages" and not body.get("stream"):
        assert response.json()["model"] == model


@pytest.mark.parametrize(("path", "body"), ROUTES + WITHOUT_RANKS)
async def test_an_unknown_model_is_404_and_the_names_are_listed(two, path, body):
    _, rest = two
    response = await ask(rest, "c", path, body)
    assert response.status_code == 404, response.text
    message = response.json()["error"]["message"]
    assert all(name in message for name in ("`c`", "a, org/b, b")), message


@pytest.mark.parametrize(("path", "body"), WITHOUT_RANKS)
@pytest.mark.parametrize("asked", ["a", "b"])
async def test_routes_without_ranks_know_all_models(two, path, body, asked):
    _, rest = two
    response = await ask(rest, asked, path, body)
    assert response.status_code == 200, response.text


async def test_models_are_listed_with_aliases_and_limits(two):
    _, rest = two
    cards = (await rest.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == ["a", "org/b", "b"]
    assert {card["max_model_len"] for card in cards} == {512}
    assert (await rest.get("/v1/models/org/b")).json()["id"] == "org/b"
    missing = await rest.get("/v1/models/c")
    assert missing.status_code == 404
    assert "a, org/b, b" in missing.json()["error"]["message"]


async def test_grpc(two):
    stand, _ = two
    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        listed = await inference.ListModels(pb.ListModelsRequest())
        assert [model.id for model in listed.models] == ["a", "org/b", "b"]

        def chat(model):
            return pb.ChatRequest(
                model=model,
                messages=[pb.Message(role=pb.ROLE_USER, content="hi")],
                sampling=pb.SamplingParams(max_tokens=2),
            )

        before = served_by(stand, "org/b")
        assert (await inference.Chat(chat("b"))).model == "org/b"
        chunks = [chunk async for chunk in inference.ChatStream(chat("org/b"))]
        assert chunks
        assert served_by(stand, "org/b") > before
        for call in (inference.Chat(chat("c")), inference.ChatStream(chat("c")).read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert "a, org/b, b" in str(caught.value.details())


async def test_latencies_and_tokens_are_counted_by_model_and_pool(two):
    """The autoscaler decides for each pool from these."""
    stand, rest = two

    async def page():
        return (await rest.get("/metrics")).text

    def value(text, name, model):
        labels = f'{{model="{model}",pool="default"}} '
        return float(text.split(f"\n{name}{labels}")[1].split()[0])

    before = await page()
    assert (await ask(rest, "b")).status_code == 200
    await eventually(lambda: not stand.router.models.client.inflight_requests, "the end")
    after = await page()
    tokens, first = "moe_pool_generated_tokens_total", "moe_pool_time_to_first_token_seconds_count"
    for name in (tokens, first):
        assert value(after, name, "a") == value(before, name, "a")
        assert value(after, name, "org/b") > value(before, name, "org/b")
    assert value(after, "moe_pool_inflight_requests", "org/b") == 0.0
    waits = 'moe_model_admission_wait_seconds_count{model="org/b"} '
    assert after.split(waits)[1].split()[0] != before.split(waits)[1].split()[0]
    assert 'moe_model_queued_tokens{model="a"} 0.0' in after


async def test_fleet_and_metrics_name_model_and_pool(two):
    stand, rest = two
    fleet = (await rest.get("/fleet")).json()
    assert [(group["model"], group["pool"]) for group in fleet["groups"]] == [
        ("a", "default"),
        ("org/b", "default"),
    ]
    (_, second) = fleet["models"]
    assert (second["name"], second["aliases"]) == ("org/b", ["b"])
    assert second["pools"] == [{"name": "default", "groups": 1, "ready_groups": 1}]
    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        service = fleet_pb2_grpc.FleetServiceStub(channel)
        answer = await service.GetFleet(fleet_pb2.GetFleetRequest())
        assert [model.name for model in answer.models] == ["a", "org/b"]
        # Operations find the group among all models.
        await service.Cordon(fleet_pb2.CordonRequest(group_id="group-org/b"))
        assert stand.ready_groups() == ["group-a"]
        await service.Uncordon(fleet_pb2.UncordonRequest(group_id="group-org/b"))
        await eventually(lambda: len(stand.ready_groups()) == 2, "the group's return")
    page = (await rest.get("/metrics")).text
    assert 'moe_pool_ready_groups{model="org/b",pool="default"} 1.0' in page
    assert 'moe_group_info{app="",group="group-a",model="a",pool="default"} 1.0' in page
    assert 'moe_model_queued_requests{model="a"} 0.0' in page


async def test_requests_for_a_model_without_ranks_wait_for_its_ranks():
    async with serving(settings_of(entry("a"), entry("b")), ("a", 0.0)) as (stand, rest):
        waiting = asyncio.create_task(ask(rest, "b"))
        b = stand.router.models.status
        await eventually(lambda: b()[1].queued_requests == 1, "the request in the queue")
        assert (await ask(rest, "a")).status_code == 200
        assert (await rest.get("/readyz")).status_code == 200
        assert (await rest.get("/health")).status_code == 200
        assert not waiting.done()
        page = (await rest.get("/metrics")).text
        assert 'moe_model_parked_requests{model="b"} 1.0' in page
        assert 'moe_model_queued_tokens{model="b"} 0.0' not in page
        await stand.join("group-b", settings=pool_of(stand, "b"))
        assert (await waiting).status_code == 200


async def test_overload_of_one_model_neither_delays_nor_refuses_the_others():
    small = {"group": {"data_parallel": 1}, "engine": {"max_num_seqs": 1}}
    settings = settings_of(
        entry("a", pools=[small]),
        entry("b", pools=[small]),
        admission={"queue_requests": 4},
        routing={"queue_allowance": 0},
    )
    async with serving(settings, ("a", NEVER), ("b", 0.0)) as (stand, rest):
        status = stand.router.models.status
        flood = [asyncio.create_task(ask(rest, "a")) for _ in range(12)]
        await eventually(lambda: any(task.done() for task in flood), "the first refusal")
        refused = [task.result() for task in flood if task.done()]
        assert {response.status_code for response in refused} == {429}
        assert status()[0].queued_requests
        for _ in range(3):
            answer = await ask(rest, "b")
            assert answer.status_code == 200, answer.text
            assert status()[1].queued_requests == 0
        assert status()[0].queued_requests
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def test_at_most_loaded_models_are_in_memory():
    settings = settings_of(
        entry("a"), entry("b"), entry("c"), router={"loaded_models": 2, "rest_port": 0}
    )
    async with serving(settings, ("b", 0.0), ("c", 0.0)) as (stand, rest):

        def loaded():
            return [model.name for model in stand.router.models.status() if model.loaded]

        assert loaded() == ["a"]
        answers = await asyncio.gather(*(ask(rest, "b") for _ in range(3)))
        assert {answer.status_code for answer in answers} == {200}
        assert loaded() == ["a", "b"]
        assert (await ask(rest, "c")).status_code == 200
        assert loaded() == ["a", "c"]
        assert (await ask(rest, "b")).status_code == 200
        assert loaded() == ["a", "b"]


async def test_a_model_in_use_is_not_dropped():
    settings = settings_of(
        entry("a"), entry("b"), entry("c"), router={"loaded_models": 2, "rest_port": 0}
    )
    async with serving(settings, ("b", NEVER), ("c", 0.0)) as (stand, rest):
        running = asyncio.create_task(ask(rest, "b"))
        await eventually(lambda: stand.running == 1, "the running request")
        assert (await ask(rest, "c")).status_code == 200
        assert {model.name for model in stand.router.models.status() if model.loaded} == {
            "a",
            "b",
            "c",
        }
        running.cancel()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        pytest.param({"path": "/nowhere"}, "models[1]: ", id="path"),
        pytest.param({"tool_parser": "x"}, "models[1].tool_parser: vLLM has no", id="tool parser"),
        pytest.param({"reasoning_parser": "x"}, "models[1].reasoning_parser", id="reasoning"),
        pytest.param(
            {"pools": [{"engine": {"args": {"max_sequences": 1}}}]}, "models[1]: ", id="argument"
        ),
    ],
)
async def test_errors_of_a_later_model_end_the_start_and_name_their_place(fields, words):
    with pytest.raises(SettingsError) as caught:
        await Router.start(settings_of(entry("a"), entry("b") | fields))
    assert str(caught.value).startswith(words)


async def test_a_model_that_cannot_be_loaded_costs_only_its_own_requests(monkeypatch):
    build = FleetClient.__init__

    def fail(client, config, *args, **kwargs):
        if kwargs.get("share") and config.model_config.served_model_name == "b":
            raise OSError("no tokenizer")
        build(client, config, *args, **kwargs)

    monkeypatch.setattr(FleetClient, "__init__", fail)
    async with serving(settings_of(entry("a"), entry("b")), ("a", 0.0)) as (_, rest):
        for path, body in (CHAT, ("/v1/messages", CHAT[1])):
            answer = await ask(rest, "b", path, body)
            assert answer.status_code == 503, answer.text
            assert "'b' cannot be loaded" in json.dumps(answer.json())
        assert (await ask(rest, "a")).status_code == 200
