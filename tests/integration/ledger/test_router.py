"""A router with a ledger: the records that it writes before clients see the end, by protocol."""

import asyncio
import json
import time
from contextlib import aclosing
from decimal import Decimal

import grpc
import grpc.aio
import httpx
import openai
import pytest
import pytest_asyncio

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc, usage_pb2, usage_pb2_grpc
from serving.edge.auth.keys import digest_of
from serving.errors import SettingsError
from serving.ledger.records import from_line
from serving.router.app import Router
from tests.integration.edge.stand import stand_settings, standing
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER, ADMIN = "moe-user-key-of-this-test", "moe-admin-key-of-this-test"
POOR = "moe-other-key-of-this-test"
KEYS = f"""
keys:
  - {{id: alice-1, tenant: alice, roles: [user, cost], hash: "{digest_of(USER)}"}}
  - {{id: bob-1, tenant: bob, hash: "{digest_of(POOR)}"}}
  - {{id: ops-1, tenant: ops, roles: [admin], hash: "{digest_of(ADMIN)}"}}
"""
TARIFF = """
currency: EUR
models: {pocket-r1: {cached: 0.1, uncached: 1, output: 10}}
"""
CHAT = {
    "model": "pocket-r1",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 5,
    "ignore_eos": True,
}
PROMPTS = {
    "model": "pocket-r1",
    "prompt": ["a b c", "d e"],
    "n": 2,
    "max_tokens": 3,
    "ignore_eos": True,
}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory):
    """A router whose writer only writes when it stops, so that the spool shows all records."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "keys.yaml").write_text(KEYS)
    (folder / "tariff.yaml").write_text(TARIFF)
    settings = stand_settings(
        security={"keys_file": str(folder / "keys.yaml")},
        ledger={
            "directory": str(folder / "ledger"),
            "flush_interval": 3600,
            "tariff_file": str(folder / "tariff.yaml"),
        },
    )
    async with standing(settings) as stand:
        stand.folder = folder
        yield stand


def records(stand):
    """Return the records in the spool by request id, as another process would read them."""
    found = {}
    for file in sorted((stand.folder / "ledger" / "spool").glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            record = from_line(line)
            assert record.request_id not in found
            found[record.request_id] = record
    return found


def client(stand, request_id, key=USER):
    headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
    return httpx.AsyncClient(
        base_url=stand.router.addresses.rest, headers=headers, timeout=PATIENCE
    )


def counts(record):
    return record.prompt_tokens, record.output_tokens


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", PROMPTS),
        (
            "/v1/chat/completions/batch",
            {**CHAT, "messages": [CHAT["messages"], CHAT["messages"]]},
        ),
        ("/v1/responses", {"model": "pocket-r1", "input": "hi", "max_output_tokens": 16}),
        ("/v1/messages", {key: value for key, value in CHAT.items() if key != "ignore_eos"}),
        ("/invocations", CHAT),
    ],
)
async def test_a_whole_response_is_recorded_with_the_counts_of_its_usage(served, route, body):
    name = f"whole{route.replace('/', '-')}"
    async with client(served, name) as rest:
        usage = (await rest.post(route, json=body)).raise_for_status().json()["usage"]
    record = records(served)[name]
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    assert counts(record) == (prompt, usage.get("completion_tokens", usage.get("output_tokens")))
    assert (record.tenant, record.key_id, record.model) == ("alice", "alice-1", "pocket-r1")
    assert (record.protocol, record.route, record.outcome) == ("rest", route, "ok")
    assert record.priority == "standard"
    assert record.rank_us > 0
    assert record.ttft_us <= record.duration_us
    assert abs(record.finished_us / 1e6 - time.time()) < PATIENCE
    details = usage.get("completion_tokens_details", usage.get("output_tokens_details"))
    if route == "/v1/completions":
        assert record.reasoning_tokens == 0
    elif details is not None and route != "/v1/chat/completions/batch":
        assert record.reasoning_tokens == details["reasoning_tokens"] > 0


@pytest.mark.parametrize(
    ("route", "body", "last"),
    [
        ("/v1/chat/completions", CHAT | STREAMED, "data: [DONE]"),
        ("/v1/completions", PROMPTS | STREAMED, "data: [DONE]"),
        (
            "/v1/responses",
            {"model": "pocket-r1", "input": "hi", "max_output_tokens": 16, "stream": True},
            "event: response.incomplete",
        ),
        (
            "/v1/messages",
            {key: value for key, value in CHAT.items() if key != "ignore_eos"} | {"stream": True},
            "event: message_stop",
        ),
    ],
)
async def test_a_stream_is_recorded_when_its_last_event_arrives(served, route, body, last):
    """The record must survive a kill of the router from the moment a client sees the end."""
    name = f"stream{route.replace('/', '-')}"
    usage, seen = None, False
    async with client(served, name) as rest, rest.stream("POST", route, json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith(last):
                seen = True
                assert name in records(served)
            if '"usage":{' in line and line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                usage = data.get("response", data.get("message", data))["usage"]
    assert seen
    record = records(served)[name]
    assert record.outcome == "ok"
    assert record.output_tokens == usage.get("completion_tokens", usage.get("output_tokens"))
    if "prompt_tokens" in usage:
        assert record.prompt_tokens == usage["prompt_tokens"]
    if route == "/v1/responses":
        assert record.reasoning_tokens == usage["output_tokens_details"]["reasoning_tokens"] > 0


async def test_reasoning_in_raw_text_is_counted(served):
    """The prompts of two choices start reasoning that does not end; one prompt ends it."""
    body = {**PROMPTS, "prompt": ["a<think>b", "<think>a</think>b"]}
    for stream in (False, True):
        async with client(served, f"raw-{stream}") as rest:
            (await rest.post("/v1/completions", json=body | {"stream": stream})).raise_for_status()
        record = records(served)[f"raw-{stream}"]
        assert (record.output_tokens, record.reasoning_tokens) == (12, 6)


async def test_calls_over_grpc_are_recorded_with_the_counts_of_their_usage(served):
    chat = pb.ChatRequest(model="pocket-r1", messages=[pb.Message(role=pb.ROLE_USER, content="hi")])
    chat.sampling.max_tokens = 5
    text = pb.CompleteRequest(model="pocket-r1", text="hi")
    text.sampling.max_tokens = 5

    def metadata(name):
        return (("authorization", f"Bearer {USER}"), ("x-request-id", name))

    async with grpc.aio.insecure_channel(served.router.addresses.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for method, request in (("Chat", chat), ("Complete", text)):
            whole = await getattr(stub, method)(request, metadata=metadata(method))
            assert counts(records(served)[method]) == (
                whole.usage.prompt_tokens,
                whole.usage.completion_tokens,
            )
            name = f"{method}Stream"
            stream = getattr(stub, name)(request, metadata=metadata(name))
            async for _ in stream:
                pass
            record = records(served)[name]
            assert counts(record) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
            assert (record.protocol, record.route, record.outcome) == ("grpc", name, "ok")
        assert records(served)["Chat"].reasoning_tokens == 5
        assert records(served)["ChatStream"].reasoning_tokens == 5
        assert await stub.Tokenize(
            pb.TokenizeRequest(model="pocket-r1", text="hi"), metadata=metadata("tokenize")
        )
    assert "tokenize" not in records(served)


def price_of(record):
    """Return the text of a record's price at ``TARIFF``."""
    units = record.cached_tokens + 10 * (record.prompt_tokens - record.cached_tokens)
    units += 100 * record.output_tokens
    return f"{(Decimal(units) / 10**7).normalize():f} EUR"


async def test_keys_that_may_see_what_a_request_cost(served):
    wanted = {"x-request-cost": "1"}
    responses = {"model": "pocket-r1", "input": "hi", "max_output_tokens": 16}
    for route, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", PROMPTS),
        ("/v1/responses", responses),
    ):
        name = f"cost{route.replace('/', '-')}"
        async with client(served, name) as rest:
            answer = await rest.post(route, json=body, headers=wanted)
            assert answer.headers["x-request-cost"] == price_of(records(served)[name])
        async with client(served, f"{name}-stream") as rest:
            answer = await rest.post(route, json=body | {"stream": True}, headers=wanted)
            lines = answer.raise_for_status().text.splitlines()
            expected = f": x-request-cost {price_of(records(served)[f'{name}-stream'])}"
            assert lines.index(expected) >= len(lines) - 5
    async with client(served, "cost-none") as rest:
        answer = await rest.post("/v1/chat/completions", json=CHAT)
        assert "x-request-cost" not in answer.headers
        refused = await rest.post("/v1/chat/completions", json={}, headers=wanted)
        assert (refused.status_code, refused.headers.get("x-request-cost")) == (400, None)
    async with client(served, "cost-poor", POOR) as rest:
        refused = await rest.post("/v1/chat/completions", json=CHAT, headers=wanted)
        assert refused.status_code == 403
        assert "role cost required" in refused.json()["error"]["message"]
    chat = pb.ChatRequest(model="pocket-r1", messages=[pb.Message(role=pb.ROLE_USER, content="hi")])
    metadata = (
        ("authorization", f"Bearer {USER}"),
        ("x-request-id", "cost-grpc"),
        *wanted.items(),
    )
    async with grpc.aio.insecure_channel(served.router.addresses.grpc) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Chat(chat, metadata=metadata)
        await call
        trailers = dict(await call.trailing_metadata())
    assert trailers["x-request-cost"] == price_of(records(served)["cost-grpc"])


async def test_a_client_that_leaves_pays_for_what_was_generated(served):
    for engine in served.engines:
        engine._token_delay = 0.02
    body = CHAT | {"stream": True, "max_tokens": 400}
    async with client(served, "left") as rest:
        async with (
            rest.stream("POST", "/v1/chat/completions", json=body) as response,
            aclosing(response.aiter_lines()) as lines,
        ):
            arrived = 0
            async for line in lines:
                arrived += line.startswith("data: ")
                if arrived > 3:
                    break
        record = await eventually(lambda: records(served).get("left"))
    for engine in served.engines:
        engine._token_delay = 0.0
    assert record.outcome == "CANCELLED"
    assert record.prompt_tokens > 0
    assert 2 <= record.output_tokens < 400


async def test_requests_that_reach_no_rank_are_not_recorded(served):
    async with client(served, "refused") as rest:
        assert (await rest.post("/v1/chat/completions", json={"model": "x"})).status_code == 400
        assert (await rest.post("/v1/chat/completions", json=CHAT | {"n": 999})).status_code == 400
        wrong = {"authorization": "Bearer wrong"}
        assert (
            await rest.post("/v1/chat/completions", json=CHAT, headers=wrong)
        ).status_code == 401
        assert (await rest.post("/tokenize", json={"prompt": "hi"})).status_code == 200
        assert (await rest.get("/v1/models")).status_code == 200
    assert "refused" not in records(served)


async def test_openais_admin_client_reads_usage_and_costs(served):
    """Through openai's released SDK, with paging, after the writer has caught up."""
    served_ledger = served.router.ledger
    await asyncio.to_thread(served_ledger._writer.flush)
    now = int(time.time())
    whole = {"completion": 0, "prompt": 0, "requests": 0}
    async with openai.AsyncOpenAI(
        base_url=f"{served.router.addresses.rest}/v1",
        api_key=USER,
        admin_api_key=ADMIN,
        max_retries=0,
    ) as sdk:
        organization = sdk.admin.organization.usage
        page = await organization.completions(
            start_time=now - 3600, bucket_width="1h", group_by=["project_id", "model"]
        )
        assert [bucket.end_time - bucket.start_time for bucket in page.data] == [3600] * len(
            page.data
        )
        results = [result for bucket in page.data for result in bucket.results]
        assert {(each.project_id, each.model) for each in results} == {("alice", "pocket-r1")}
        tokens = sum(each.output_tokens for each in results)
        prompt = sum(each.input_tokens for each in results)
        # The same by pages of one minute, for one key.
        cursor = openai.NOT_GIVEN
        while True:
            page = await organization.completions(
                start_time=now - 3600,
                end_time=now + 60,
                bucket_width="1m",
                limit=30,
                page=cursor,
                api_key_ids=["alice-1"],
            )
            assert len(page.data) <= 30
            for bucket in page.data:
                for each in bucket.results:
                    whole["completion"] += each.output_tokens
                    whole["prompt"] += each.input_tokens
                    whole["requests"] += each.num_model_requests
            if not page.has_more:
                break
            cursor = page.next_page
        assert whole == {
            "completion": tokens,
            "prompt": prompt,
            "requests": sum(each.num_model_requests for each in results),
        }
        costs = await organization.costs(start_time=now, group_by=["project_id", "line_item"])
        lines = [each for bucket in costs.data for each in bucket.results]
        amounts = {each.line_item: each.amount.value for each in lines}
        assert {each.amount.currency for each in lines} == {"eur"}
        assert sum(amounts.values()) == pytest.approx((prompt + 10 * tokens) / 1e6)
        quantities = {each.line_item: each.quantity for each in lines}
        assert quantities["pocket-r1, input_tokens"] == prompt
        unknown = await organization.completions(start_time=now, models=["unknown"])
        assert [bucket.results for bucket in unknown.data] == [[]]


async def test_usage_is_for_admins(served):
    for route in ("usage/completions", "costs"):
        path = f"/v1/organization/{route}?start_time=0&end_time=86400"
        async with client(served, "user") as rest:
            assert (await rest.get(path)).status_code == 403
        async with client(served, "admin", ADMIN) as rest:
            assert (await rest.get(path)).status_code == 200
            assert (await rest.get(path + "&limit=0")).status_code == 400
            assert (await rest.post(path)).status_code == 405


async def test_without_a_ledger_the_routes_say_so():
    async with (
        standing(stand_settings(), groups=0) as stand,
        client(stand, "none") as rest,
        grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel,
    ):
        answer = await rest.get("/v1/organization/costs?start_time=0&end_time=86400")
        assert answer.status_code == 501
        assert "ledger.directory" in answer.json()["error"]["message"]
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetUsage(usage_pb2.GetUsageRequest(start_time=0))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_broken_tariff_or_a_used_folder_stops_the_start(served, tmp_path):
    (tmp_path / "tariff.yaml").write_text("currency: USD\nmodels: {m: {cached: -1}}")
    tariff = {"directory": str(tmp_path), "tariff_file": str(tmp_path / "tariff.yaml")}
    used = {"directory": str(served.folder / "ledger")}
    for ledger, message in ((tariff, "models.m.cached"), (used, "another router uses")):
        with pytest.raises(SettingsError, match=message):
            await Router.start(stand_settings(ledger=ledger))


async def test_usage_over_grpc_is_that_over_rest_with_exact_prices(served):
    await asyncio.to_thread(served.router.ledger._writer.flush)
    start = int(time.time()) - 3600
    request = usage_pb2.GetUsageRequest(
        start_time=start, bucket_width="1h", group_by=["project_id"]
    )
    path = "/v1/organization/usage/completions?bucket_width=1h&group_by=project_id"
    async with (
        client(served, "admin", ADMIN) as rest,
        grpc.aio.insecure_channel(served.router.addresses.grpc) as channel,
    ):
        page = (await rest.get(f"{path}&start_time={start}")).raise_for_status().json()
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        metadata = (("authorization", f"Bearer {ADMIN}"),)
        answer = await stub.GetUsage(request, metadata=metadata)
        assert answer.currency == "EUR"
        assert answer.next_page == ""
        assert [
            (
                bucket.start_time,
                bucket.end_time,
                [each.num_model_requests for each in bucket.results],
            )
            for bucket in answer.buckets
        ] == [
            (
                bucket["start_time"],
                bucket["end_time"],
                [each["num_model_requests"] for each in bucket["results"]],
            )
            for bucket in page["data"]
        ]
        (result,) = [each for bucket in answer.buckets for each in bucket.results][-1:]
        assert (result.project_id, result.HasField("model")) == ("alice", False)
        uncached = result.input_tokens - result.input_cached_tokens
        price = Decimal(uncached) + 10 * result.output_tokens
        price += Decimal("0.1") * result.input_cached_tokens
        assert Decimal(result.price) == Decimal(result.list_price) == price / 10**6

        for wrong, code in (
            (usage_pb2.GetUsageRequest(), grpc.StatusCode.INVALID_ARGUMENT),
            (
                usage_pb2.GetUsageRequest(start_time=0, group_by=["user_id"]),
                grpc.StatusCode.INVALID_ARGUMENT,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetUsage(wrong, metadata=metadata)
            assert caught.value.code() == code
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetUsage(request, metadata=(("authorization", f"Bearer {USER}"),))
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
