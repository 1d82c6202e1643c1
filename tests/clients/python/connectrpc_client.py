"""connectrpc by the gRPC protocol; asynchronous, and its blocking interface."""
# ruff: noqa: E402, I001  some imports are of modules generated here

import contextlib
from base64 import b64decode, b64encode
from typing import Any

from connectrpc.client import ConnectClient, ConnectClientSync, ResponseMetadata
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType
from connectrpc.request import Headers
from frame import GRPC, feature, main, narrow_key
from grpc_code import RpcFailed, generate
from pyqwest import Client, HTTPTransport, HTTPVersion, SyncClient, SyncHTTPTransport

generate()

import health_pb2
import reflection_v1_pb2
import reflection_v1alpha_pb2
from errors_pb2 import Status
from google.protobuf import message_factory
from grpc_features import OURS, QUESTION, WAIT, chat, joined, long, metadata, same, try_all
from serving.api.v1 import inference_pb2

MODULES = {
    OURS: inference_pb2,
    "grpc.health.v1.Health": health_pb2,
    "grpc.reflection.v1.ServerReflection": reflection_v1_pb2,
    "grpc.reflection.v1alpha.ServerReflection": reflection_v1alpha_pb2,
}


def method_info(service: str, name: str) -> Any:
    """Return a method as written by connectrpc's protoc plugin, which works for other messages."""
    described = MODULES[service].DESCRIPTOR.services_by_name[service.rpartition(".")[2]]
    method = described.methods_by_name[name]
    kinds = {
        (False, False): StreamType.UNARY,
        (False, True): StreamType.SERVER_STREAM,
        (True, True): StreamType.BIDI_STREAM,
    }
    return MethodInfo(
        name=name,
        service_name=service,
        input=message_factory.GetMessageClass(method.input_type),
        output=message_factory.GetMessageClass(method.output_type),
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kinds[method.client_streaming, method.server_streaming],
    )


def options(service: str, name: str, more: dict[str, Any]) -> dict[str, Any]:
    headers = Headers()
    for key, value in more["metadata"].items():
        headers.add(key, b64encode(value).decode() if isinstance(value, bytes) else value)
    timeout = int(more["timeout"] * 1000)
    return {"method": method_info(service, name), "headers": headers, "timeout_ms": timeout}


class Channel:
    def __init__(self, client: ConnectClient) -> None:
        self._client = client

    async def unary(self, service: str, name: str, request: Any, **more: Any) -> Any:
        with ResponseMetadata() as received, translated(received):
            answer = await self._client.execute_unary(
                request=request, **options(service, name, more)
            )
        return answer, dict([*received.headers.allitems(), *received.trailers.allitems()])

    async def stream(self, service: str, name: str, requests: list[Any], **more: Any) -> Any:
        given = options(service, name, more)
        if given["method"].stream_type is StreamType.BIDI_STREAM:
            answers = self._client.execute_bidi_stream(request=iterated(requests), **given)
        else:
            answers = self._client.execute_server_stream(request=requests[0], **given)
        with ResponseMetadata() as received, translated(received):
            async with contextlib.aclosing(answers):
                async for answer in answers:
                    yield answer


async def iterated(requests: list[Any]) -> Any:
    for each in requests:
        yield each


@contextlib.contextmanager
def translated(came: ResponseMetadata) -> Any:
    try:
        yield
    except ConnectError as error:
        raise failed(error, came) from error


def failed(error: ConnectError, came: ResponseMetadata) -> RpcFailed:
    found = dict(came.trailers.allitems())
    binary = found.get("grpc-status-details-bin")
    status = None if binary is None else b64decode(binary + "===")
    if status is not None:
        assert len(Status.FromString(status).details) == len(error.details)
    return RpcFailed(error.code.name.replace("CANCELED", "CANCELLED"), error.message, status, found)


def settings(compressed: bool, max_bytes: int | None) -> dict[str, Any]:
    return {
        "codec": google_protobuf_binary_codec(),
        "protocol": ProtocolType.GRPC,
        "send_compression": GzipCompression() if compressed else None,
        "accept_compression": [GzipCompression()] if compressed else [],
        "read_max_bytes": max_bytes,
    }


@contextlib.asynccontextmanager
async def open_channel(*, compressed: bool = False, max_bytes: int | None = None) -> Any:
    async with HTTPTransport(http_version=HTTPVersion.HTTP2) as transport:
        more = settings(compressed, max_bytes)
        async with ConnectClient(f"http://{GRPC}", http_client=Client(transport), **more) as client:
            yield Channel(client)


try_all(open_channel, without={"grpc.ping"})


@feature("grpc.blocking")
def blocking() -> None:
    with SyncHTTPTransport(http_version=HTTPVersion.HTTP2) as transport:
        more = settings(compressed=False, max_bytes=None)
        client = ConnectClientSync(f"http://{GRPC}", http_client=SyncClient(transport), **more)
        given = {"metadata": metadata(), "timeout": WAIT}
        whole, streamed = options(OURS, "Chat", given), options(OURS, "ChatStream", given)
        parts = list(client.execute_server_stream(request=chat(QUESTION), **streamed))
        same(joined(parts), client.execute_unary(request=chat(QUESTION), **whole))
        given["metadata"] = metadata(narrow_key())
        whole, streamed = options(OURS, "Chat", given), options(OURS, "ChatStream", given)
        answers = client.execute_server_stream(request=long(), **streamed)
        next(answers)
        answers.close()
        while True:
            try:
                client.execute_unary(request=chat(max_tokens=2), **whole)
                break
            except ConnectError as error:
                if error.code.name != "RESOURCE_EXHAUSTED":
                    raise


main(packages=("connectrpc",), cannot={"grpc.ping": "sends no pings"})
