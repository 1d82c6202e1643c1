"""The servicer of interop.proto, served by grpc.aio's server and by this one."""
# ruff: noqa: N802  methods have the names of the proto's

import asyncio

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from tests.integration.h2grpc.messages import SERVICE, Messages

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
DETAILS = "grpc-status-details-bin"


def rich_status(code: int, message: str) -> bytes:
    """Return a google.rpc.Status with details, serialized for the metadata."""
    packed = Any()
    packed.Pack(ErrorInfo(reason="AS_WANTED", domain="interop", metadata={"k": "ü"}))
    return Status(code=code, message=message, details=[packed]).SerializeToString()


class TestServicer:
    """The behaviour that the published test cases require of a server."""

    __test__ = False

    def __init__(self, messages: Messages, wire_bytes, cut) -> None:
        """``wire_bytes`` returns the bytes carried by a peer's connection; ``cut`` closes it."""
        self._messages = messages
        self._wire_bytes = wire_bytes
        self._cut = cut
        self.running = 0
        """Number of running handlers."""
        self.cancelled = 0
        """Number of handlers that were cancelled."""

    # -- methods ------------------------------------------------------------------------

    async def EmptyCall(self, request, context):
        del request, context
        return self._messages.Empty()

    async def UnaryCall(self, request, context):
        await self._echo_metadata(context)
        if request.fail:
            raise ValueError("as the client wants it")
        self._end_with(request.response_status, context)
        if request.response_compressed:
            context.set_compression(grpc.Compression.Gzip)
        answer = self._messages.SimpleResponse()
        answer.payload.body = bytes(request.response_size)
        left = context.time_remaining()
        if request.fill_time_remaining and left is not None:
            answer.hundred_seconds_remaining = round(left / 100)
        return answer

    async def StreamingOutputCall(self, request, context):
        await self._echo_metadata(context)
        self._compress_streams(context)
        async for answer in self._answers(request, context):
            yield answer

    async def StreamingInputCall(self, requests, context):
        await self._echo_metadata(context)
        answer = self._messages.StreamingInputCallResponse()
        async for request in requests:
            if request.HasField("response_status"):
                status = request.response_status
                await context.abort(_code(status), status.message)
            answer.messages += 1
            answer.aggregated_payload_size += len(request.payload.body)
        return answer

    async def FullDuplexCall(self, requests, context):
        await self._echo_metadata(context)
        self._compress_streams(context)
        async for request in requests:
            async for answer in self._answers(request, context):
                yield answer
            if request.HasField("response_status"):
                return

    async def WireBytes(self, request, context):
        del request
        received, sent = self._wire_bytes(context.peer())
        return self._messages.WireBytesResponse(received=received, sent=sent)

    async def CutConnection(self, request, context):
        del request
        self._cut(context.peer())
        return self._messages.Empty()

    # -- helpers ------------------------------------------------------------------------

    async def _answers(self, request, context):
        for wanted in request.response_parameters:
            if wanted.interval_us:
                await asyncio.sleep(wanted.interval_us / 1e6)
            if not wanted.compressed:
                context.disable_next_message_compression()
            answer = self._messages.StreamingOutputCallResponse()
            answer.payload.body = bytes(wanted.size)
            yield answer
        if request.fail:
            raise ValueError("as the client wants it")
        self._end_with(request.response_status, context)

    @staticmethod
    def _compress_streams(context) -> None:
        # For the call; single messages are sent uncompressed below.
        if dict(context.invocation_metadata()).get("x-compressed"):
            context.set_compression(grpc.Compression.Gzip)

    @staticmethod
    async def _echo_metadata(context) -> None:
        given = context.invocation_metadata()
        initial = [(key, value) for key, value in given if key == INITIAL]
        if initial:
            await context.send_initial_metadata(initial)
        trailing = [(key, value) for key, value in given if key == TRAILING]
        if trailing:
            context.set_trailing_metadata(trailing)

    @staticmethod
    def _end_with(status, context) -> None:
        if not status.code:
            return
        context.set_code(_code(status))
        context.set_details(status.message)
        if status.error_info:
            context.set_trailing_metadata([(DETAILS, rich_status(status.code, status.message))])

    # -- serving ------------------------------------------------------------------------

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the interceptor of a server, which counts the running calls."""
        found = {}
        for method in self._messages.service.methods:
            behaviour = getattr(self, method.name, None)
            if behaviour is None:
                continue
            kind = (
                ("stream" if method.client_streaming else "unary")
                + "_"
                + ("stream" if method.server_streaming else "unary")
            )
            found[method.name] = getattr(grpc, f"{kind}_rpc_method_handler")(
                self._counted_stream(behaviour)
                if method.server_streaming
                else self._counted(behaviour),
                getattr(self._messages, method.input_type.name).FromString,
                getattr(self._messages, method.output_type.name).SerializeToString,
            )
        return grpc.method_handlers_generic_handler(SERVICE, found)

    def _counted(self, behaviour):
        async def run(request, context):
            self.running += 1
            try:
                return await behaviour(request, context)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1

        return run

    def _counted_stream(self, behaviour):
        async def run(request, context):
            self.running += 1
            try:
                async for answer in behaviour(request, context):
                    yield answer
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1

        return run


def _code(status) -> grpc.StatusCode:
    return next(each for each in grpc.StatusCode if each.value[0] == status.code)
