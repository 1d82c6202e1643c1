"""vLLM's span is a child of the router's, through the trace headers of the link."""

import msgspec
import pytest

from serving.link.v1 import link_pb2
from serving.settings import EngineSettings, GroupSettings, Settings, TelemetrySettings
from tests.integration.telemetry.collector import Collector
from tests.support.engines import generate, share_fork_server

pytestmark = pytest.mark.vllm

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_vllms_span_is_a_child_of_the_span_that_the_link_carries():
    from serving.engine.vllm_engine import VllmEngine

    share_fork_server()
    with Collector() as collector:
        engine = VllmEngine(
            Settings(
                group=GroupSettings(data_parallel=1),
                engine=EngineSettings(max_num_seqs=4),
                telemetry=TelemetrySettings(otlp_endpoint=collector.endpoint),
            )
        )
        await engine.start()
        try:
            work = link_pb2.Submit(
                request_id="traced",
                prompt_token_ids=[1, 40, 41],
                sampling_params=msgspec.msgpack.encode({"temperature": 0.0, "max_tokens": 4}),
                trace_headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
            )
            assert [delta async for delta in generate(engine, work)][-1].finished
            span = collector.named("llm_request", TRACE)
        finally:
            await engine.shutdown()
    assert span.parent_span_id.hex() == SPAN
    assert "moe-serving-rank" in collector.services
