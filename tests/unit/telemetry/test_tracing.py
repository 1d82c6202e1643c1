"""Tracing off and on, and which requests count as failed."""

from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving.request_context import RequestContext
from serving.settings import TelemetrySettings
from serving.telemetry.logs import RequestLine
from serving.telemetry.tracing import Tracing, tracing_of

LINE = RequestLine("r", "rest", "/v1/completions", "m", "ok", "200", 0.5)


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def test_without_an_endpoint_there_is_no_tracing():
    assert tracing_of(TelemetrySettings()) is None
    assert RequestContext().log_fields()["trace_id"] is None


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_with_one_there_is_an_exporter(protocol):
    settings = TelemetrySettings(
        otlp_endpoint="http://127.0.0.1:1/v1/traces", otlp_protocol=protocol, trace_ratio=0.0
    )
    tracing = tracing_of(settings)
    assert isinstance(tracing, Tracing)
    assert tracing.begin("x", {}, {}) is None, "none is sampled"
    await tracing.close()


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        pytest.param({}, False, id="ok"),
        pytest.param({"outcome": "INVALID_REQUEST", "status": "400"}, False, id="client's fault"),
        pytest.param({"outcome": "OVERLOADED", "status": "429"}, False, id="refused"),
        pytest.param({"outcome": "NOT_READY", "status": "503"}, True, id="not ready"),
        pytest.param({"outcome": "GROUP_LOST"}, True, id="in the middle of a stream"),
        pytest.param({"outcome": "CANCELLED", "status": "0"}, False, id="client went away"),
        pytest.param(
            {"protocol": "grpc", "outcome": "INVALID_REQUEST", "status": "INVALID_ARGUMENT"},
            False,
            id="grpc, client's fault",
        ),
        pytest.param(
            {"protocol": "grpc", "outcome": "NOT_READY", "status": "UNAVAILABLE"},
            True,
            id="grpc, not ready",
        ),
    ],
)
def test_failures(tracing, exporter, changes, failed):
    tracing.begin("x", {}, {}).end(replace(LINE, **changes))
    (span,) = exporter.get_finished_spans()
    assert (not span.status.is_ok) is failed


def test_a_rank_that_was_not_found_leaves_no_span(tracing, exporter):
    trace = tracing.begin("x", {}, {})
    first, second = {}, {}
    trace.start_placement(first)
    trace.start_placement(second)
    trace.placed("g", 1, "only", 3)
    trace.end(LINE)
    assert [span.name for span in exporter.get_finished_spans()] == ["pick", "rank", "x"]
    rank = exporter.get_finished_spans()[1]
    assert f"{rank.context.span_id:016x}" in second["traceparent"]
    assert first["traceparent"] != second["traceparent"]


@pytest.mark.parametrize("given", ["", "00-zz-1-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
def test_a_malformed_traceparent_begins_a_trace_of_its_own(tracing, exporter, given):
    tracing.begin("x", {"traceparent": given}, {}).end(LINE)
    assert exporter.get_finished_spans()[0].parent is None
