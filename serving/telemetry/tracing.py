"""OpenTelemetry traces of requests; off by default, at almost no cost.

    request (server)                 at the edge; child of the client's traceparent, if sent
    ├─ admission                     time in the admission queue, including parked time
    ├─ pick                          choosing a rank; one span per placement
    └─ rank (client)                 time on a rank, with an event at the first token
       └─ llm_request                vLLM's own span in the rank, linked by W3C trace context

A resumed request has several pick and rank spans. No code here runs per token. Prompts, answers and
keys are never recorded.
"""

import asyncio
from collections.abc import Mapping, MutableMapping
from time import time_ns
from typing import TYPE_CHECKING, Any

from serving.settings import TelemetrySettings
from serving.telemetry.logs import RequestLine

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SERVICE = "moe-serving-router"
_EXPORT_TIMEOUT = 2
"""Export timeout, seconds; limits how long an unreachable collector delays a router's shutdown."""
_FIRST_SERVER_ERROR = 500
_FAILED_RPCS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""gRPC statuses that OpenTelemetry's RPC conventions count as server errors."""


def tracing_of(settings: TelemetrySettings) -> "Tracing | None":
    """Return tracing to ``telemetry.otlp_endpoint``, or None without an endpoint."""
    if settings.otlp_endpoint is None:
        return None
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": SERVICE}),
        sampler=ParentBased(TraceIdRatioBased(settings.trace_ratio)),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(_exporter(settings)))
    return Tracing(provider)


class Tracing:
    """Starts traces with a private OpenTelemetry provider; the global provider is not changed."""

    def __init__(self, provider: "TracerProvider") -> None:
        """Record spans with ``provider``."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("serving")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> "RequestTrace | None":
        """Start the trace of a request that has just arrived.

        Args:
            name: Span name: method and route, or the full name of the RPC.
            headers: Request headers with lower-case names; traceparent and tracestate are read.
            attributes: Span attributes.

        Returns:
            The trace; None if the request is not sampled.
        """
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract({key: headers[key] for key in _W3C if key in headers})
        span = self._tracer.start_span(
            name, context=parent, kind=SpanKind.SERVER, attributes=dict(attributes)
        )
        if not span.is_recording():
            return None  # the client's trace context is forwarded to the rank
        return RequestTrace(self._tracer, span, self._propagator)

    async def close(self) -> None:
        """Export the remaining spans; takes a few seconds if the collector is unreachable."""
        await asyncio.to_thread(self._provider.shutdown)


class RequestTrace:
    """The trace of one request."""

    __slots__ = ("_admission", "_attempt", "_context", "_propagator", "_rank", "_root", "_tracer")

    def __init__(self, tracer: "Tracer", root: "Span", propagator: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._root = root
        self._context = set_span_in_context(root)
        self._propagator = propagator
        self._admission: Span | None = None
        # Rank span of a placement in progress, and when it started.
        self._attempt: tuple[Span, int] | None = None
        self._rank: Span | None = None

    @property
    def trace_id(self) -> str:
        """Trace id, 32 hexadecimal digits."""
        return f"{self._root.get_span_context().trace_id:032x}"

    def start_admission(self) -> None:
        """Start the admission span."""
        self._admission = self._tracer.start_span("admission", context=self._context)

    def end_admission(self) -> None:
        """End the admission span, whether the request was admitted or rejected. Idempotent."""
        if self._admission is not None:
            self._admission.end()
            self._admission = None

    def start_placement(self, headers: MutableMapping[str, str]) -> None:
        """Start choosing a rank; add the trace context to ``headers`` for the rank."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        # If no rank is found, the span is never ended, and therefore never exported.
        span = self._tracer.start_span("rank", context=self._context, kind=SpanKind.CLIENT)
        self._attempt = (span, time_ns())
        self._propagator.inject(headers, context=set_span_in_context(span))

    def placed(self, group: str, rank: int, reason: str, matched_tokens: int) -> None:
        """Record that the request was placed on a rank.

        Args:
            group: Id of the rank's group.
            rank: Index of the rank in its group.
            reason: Why the rank was chosen.
            matched_tokens: Prompt tokens that the rank had reported as cached.
        """
        assert self._attempt is not None
        self._rank, began = self._attempt
        self._attempt = None
        where: dict[str, str | int] = {"moe.group": group, "moe.rank": rank}
        self._rank.set_attributes(where)
        pick = self._tracer.start_span(
            "pick",
            context=self._context,
            start_time=began,
            attributes=where | {"moe.reason": reason, "moe.matched_tokens": matched_tokens},
        )
        pick.end()

    def first_token(self) -> None:
        """Record the arrival of the first tokens from the rank."""
        if self._rank is not None:
            self._rank.add_event("first token")

    def end_rank(self, error: str | None = None) -> None:
        """End the rank span. Idempotent.

        Args:
            error: Reason why the request left the rank unfinished. None if it finished.
        """
        span, self._rank = self._rank, None
        if span is None:
            return
        if error is not None:
            _fail(span, error)
        span.end()

    def resumed(self, way: str, emitted_tokens: int) -> None:
        """Record a resumption on another group."""
        self._root.add_event("resumes", {"moe.way": way, "moe.emitted_tokens": emitted_tokens})

    def end(self, line: RequestLine) -> None:
        """End the trace with the attributes of the request's log line."""
        self.end_admission()
        self.end_rank()
        span = self._root
        span.set_attributes(
            {name: value for name, value in _attributes(line).items() if value is not None}
        )
        if _is_failure(line):
            _fail(span, line.outcome)
        span.end()


_W3C = ("traceparent", "tracestate")


def _exporter(settings: TelemetrySettings) -> Any:
    if settings.otlp_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        insecure = not str(settings.otlp_endpoint).startswith("https://")
        return GrpcExporter(
            endpoint=settings.otlp_endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter(endpoint=settings.otlp_endpoint, timeout=_EXPORT_TIMEOUT)


def _attributes(line: RequestLine) -> dict[str, Any]:
    status = "http.response.status_code" if line.protocol == "rest" else "rpc.grpc.status"
    return {
        status: int(line.status) if line.status.isdigit() else line.status,
        "gen_ai.request.model": line.model,
        "gen_ai.usage.input_tokens": line.prompt_tokens,
        "gen_ai.usage.output_tokens": line.completion_tokens,
        "moe.request_id": line.request_id,
        "moe.outcome": line.outcome,
        "moe.tenant": line.tenant,
        "moe.priority": line.priority,
        "moe.waited_seconds": line.waited,
        "moe.resumes": line.resumes,
        "moe.time_to_first_token_seconds": line.ttft,
    }


def _is_failure(line: RequestLine) -> bool:
    if line.outcome in {"ok", "CANCELLED"}:
        return False
    if line.protocol == "grpc":
        return line.status in _FAILED_RPCS
    # A stream that fails after its start has status 200.
    status = int(line.status or 0)
    return status >= _FIRST_SERVER_ERROR or status < 400  # noqa: PLR2004  4xx blames the client


def _fail(span: "Span", why: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, why))
