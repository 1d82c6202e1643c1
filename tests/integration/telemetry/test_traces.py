"""Traces of a complete router: every span, over REST and gRPC, also for failures."""

import asyncio

import grpc.aio
import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.edge.rest import middleware
from serving.router.app import Router
from serving.telemetry import tracing
from serving.telemetry.tracing import Tracing
from tests.integration.edge.stand import stand_settings, standing
from tests.integration.telemetry.collector import Collector
from tests.support.waiting import PATIENCE, eventually

CHAT = {
    "model": "pocket-r1",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 6,
    "ignore_eos": True,
}
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"


class Spans:
    """The recorded spans."""

    def __init__(self, exporter):
        self._exporter = exporter

    def all(self):
        return self._exporter.get_finished_spans()

    def names(self):
        return sorted(span.name for span in self.all())

    def one(self, name):
        (span,) = [span for span in self.all() if span.name == name]
        return span


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(1.0)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracing_of", lambda settings: Tracing(provider))
    return Spans(exporter)


@pytest.fixture
def works(monkeypatch):
    """The messages sent to ranks."""
    seen = []
    from serving.fleet.rank_link import RankLink

    submit = RankLink.submit

    def note(self, stream):
        if stream.work.trace_headers or "canary" not in stream.request_id:
            seen.append(stream.work)
        submit(self, stream)

    monkeypatch.setattr(RankLink, "submit", note)
    return seen


def parent_of(span):
    return None if span.parent is None else span.parent.span_id


async def post(stand, body=CHAT, **headers):
    async with httpx.AsyncClient(base_url=stand.router.addresses.rest, timeout=PATIENCE) as rest:
        return await rest.post("/v1/chat/completions", json=body, headers=headers)


async def test_a_request_is_one_trace_from_the_client_to_the_rank(spans, works, monkeypatch):
    lines = []
    monkeypatch.setattr(middleware, "log_request", lines.append)
    async with standing(stand_settings()) as stand:
        works.clear()
        answer = await post(stand, traceparent=SAMPLED, **{"x-request-id": "r-1"})
        assert answer.status_code == 200
    root = spans.one("POST /v1/chat/completions")
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{parent_of(root):016x}" == "b7ad6b7169203331"
    assert spans.names() == ["POST /v1/chat/completions", "admission", "pick", "rank"]
    children = [spans.one(name) for name in ("admission", "pick", "rank")]
    assert {parent_of(span) for span in children} == {root.context.span_id}
    _, _, rank = children
    assert (rank.attributes["moe.group"], rank.attributes["moe.rank"]) == ("g0", 0)
    assert [event.name for event in rank.events] == ["first token"]
    assert root.start_time <= rank.start_time <= rank.events[0].timestamp <= rank.end_time
    assert rank.end_time <= root.end_time
    sent = works[-1].trace_headers["traceparent"]
    assert sent == f"00-{TRACE}-{rank.context.span_id:016x}-01", "vLLM's span goes under ours"
    assert root.attributes["moe.request_id"] == "r-1"
    assert root.attributes["gen_ai.usage.output_tokens"] == 6
    assert (root.attributes["moe.outcome"], root.status.is_ok) == ("ok", True)
    assert [line.trace_id for line in lines] == [TRACE]
    shown = str([dict(span.attributes) for span in spans.all()])
    assert "hi" not in shown.split("'"), "prompts stay out of traces"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_one_line_of_a_request_says_where_it_ran_and_what_it_took(monkeypatch, stream):
    lines = []
    monkeypatch.setattr(middleware, "log_request", lines.append)
    body = CHAT | {"stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    async with standing(stand_settings(), token_delay=0.001) as stand:
        for _ in range(2):
            assert (await post(stand, body)).status_code == 200
    first, again = lines
    assert (first.group, first.rank, first.resumes, first.parked) == ("g0", 0, 0, None)
    assert (first.outcome, first.tenant, first.priority) == ("ok", "anonymous", "standard")
    assert (first.completion_tokens, first.cached_tokens) == (6, 0)
    assert again.cached_tokens in range(0, again.prompt_tokens + 1, 16)
    assert 0 < first.ttft <= first.duration
    assert first.trace_id is None


async def test_grpc_calls_are_traced_alike(spans):
    async with standing(stand_settings()) as stand:
        async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = pb.ChatRequest(
                model="pocket-r1",
                sampling=pb.SamplingParams(max_tokens=3),
                messages=[pb.Message(role=pb.ROLE_USER, content="hi")],
            )
            await stub.Chat(request, metadata=(("traceparent", SAMPLED),))
        await stand.idle_soon()
    root = spans.one("serving.api.v1.InferenceService/Chat")
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.attributes["rpc.grpc.status"] == "OK"
    assert spans.names() == ["admission", "pick", "rank", "serving.api.v1.InferenceService/Chat"]


async def test_a_resumption_has_a_rank_each_and_an_event(spans):
    async with standing(stand_settings(), token_delay=0.02) as stand:
        posted = asyncio.create_task(post(stand, CHAT | {"max_tokens": 40}))
        await eventually(lambda: stand.running, "the request's start")
        lost, stand.servers = stand.servers, []
        await eventually(lambda: stand.engines[0]._tokens > 3, "the first tokens")
        await stand.join("g1")
        for server in lost:
            await server.stop()
        assert (await posted).status_code == 200
    ranks = [span for span in spans.all() if span.name == "rank"]
    assert [span.attributes["moe.group"] for span in ranks] == ["g0", "g1"]
    assert [span.status.is_ok for span in ranks] == [False, True]
    root = spans.one("POST /v1/chat/completions")
    (event,) = root.events
    assert (event.name, event.attributes["moe.way"]) == ("resumes", "continue")
    assert root.attributes["moe.resumes"] == 1


async def test_one_that_parks_until_its_deadline_is_a_failure_without_a_rank(spans):
    async with standing(stand_settings(), groups=0) as stand:
        answer = await post(stand, **{"x-request-timeout-ms": "200"})
        assert answer.status_code == 504
    assert spans.names() == ["POST /v1/chat/completions", "admission"]
    root = spans.one("POST /v1/chat/completions")
    assert (root.status.is_ok, root.status.description) == (False, "DEADLINE_EXCEEDED")
    assert root.attributes["http.response.status_code"] == 504


async def test_the_client_may_ask_not_to_be_traced(spans, works):
    async with standing(stand_settings()) as stand:
        assert (await post(stand, traceparent=NOT_SAMPLED)).status_code == 200
        assert works[-1].trace_headers["traceparent"] == NOT_SAMPLED
    assert spans.names() == []


async def test_off_by_default_and_then_the_clients_context_goes_on_to_the_rank(works):
    async with standing(stand_settings()) as stand:
        assert (await post(stand)).status_code == 200
        assert dict(works[-1].trace_headers) == {}
        assert (await post(stand, traceparent=SAMPLED)).status_code == 200
        assert dict(works[-1].trace_headers) == {"traceparent": SAMPLED}


async def test_spans_reach_a_collector_before_the_router_is_gone():
    with Collector() as collector:
        settings = stand_settings(telemetry={"otlp_endpoint": collector.endpoint})
        async with standing(settings) as stand:
            assert (await post(stand)).status_code == 200
        assert collector.named("rank").parent_span_id
        assert collector.services == {"moe-serving-router"}


async def test_a_dead_collector_does_not_keep_a_router_from_stopping(unused_tcp_port):
    settings = stand_settings(telemetry={"otlp_endpoint": f"http://127.0.0.1:{unused_tcp_port}"})
    async with asyncio.timeout(PATIENCE):
        async with standing(settings) as stand:
            assert (await post(stand)).status_code == 200
        assert isinstance(stand.router, Router)
