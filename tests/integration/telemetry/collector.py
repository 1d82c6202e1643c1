"""An OpenTelemetry collector for tests: receives spans over gRPC and keeps them."""

import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc

from tests.support.waiting import PATIENCE


class Collector(rpc.TraceServiceServicer):
    """Listens on a free loopback port inside the context."""

    def __init__(self):
        self.spans = []
        self.services = set()
        self._arrived = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        rpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def Export(self, request, context):  # noqa: N802  gRPC's name
        with self._arrived:
            for resource in request.resource_spans:
                self.services.update(
                    item.value.string_value
                    for item in resource.resource.attributes
                    if item.key == "service.name"
                )
                for scope in resource.scope_spans:
                    self.spans += scope.spans
            self._arrived.notify_all()
        return pb.ExportTraceServiceResponse()

    def named(self, name, trace_id=None, patience=PATIENCE):
        """Wait for a span of this name (and trace)."""

        def found():
            return next(
                (
                    span
                    for span in self.spans
                    if span.name == name and trace_id in {None, span.trace_id.hex()}
                ),
                None,
            )

        with self._arrived:
            assert self._arrived.wait_for(lambda: found() is not None, patience), (
                f"no span {name}, only {[span.name for span in self.spans]}"
            )
            return found()

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()
