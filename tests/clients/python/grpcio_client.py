"""grpcio, asynchronous, and its blocking interface."""
# ruff: noqa: E402, I001  some imports are of modules generated here

import contextlib
from typing import Any

import grpc
import grpc.aio
from frame import GRPC, feature, main, narrow_key
from grpc_code import RpcFailed, generate

generate("grpc_python")

import health_pb2_grpc
import reflection_v1_pb2_grpc
import reflection_v1alpha_pb2_grpc
from grpc_features import OURS, QUESTION, WAIT, chat, joined, long, metadata, same, try_all
from serving.api.v1 import inference_pb2_grpc

STUBS = {
    OURS: inference_pb2_grpc.InferenceServiceStub,
    "grpc.health.v1.Health": health_pb2_grpc.HealthStub,
    "grpc.reflection.v1.ServerReflection": reflection_v1_pb2_grpc.ServerReflectionStub,
    "grpc.reflection.v1alpha.ServerReflection": reflection_v1alpha_pb2_grpc.ServerReflectionStub,
}


def options(max_bytes: int | None, ping: float | None) -> list[tuple[str, int]]:
    found = [("grpc.use_local_subchannel_pool", 1)]
    if max_bytes is not None:
        found.append(("grpc.max_receive_message_length", max_bytes))
    if ping is not None:
        found += [
            ("grpc.keepalive_time_ms", int(ping * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
    return found


class Channel:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def _method(self, service: str, name: str) -> Any:
        return getattr(STUBS[service](self._channel), name)

    async def unary(self, service: str, name: str, request: Any, **more: Any) -> Any:
        more["metadata"] = tuple(more["metadata"].items())
        call = self._method(service, name)(request, **more)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise failed(error) from error
        return answer, dict([*await call.initial_metadata(), *await call.trailing_metadata()])

    async def stream(self, service: str, name: str, requests: list[Any], **more: Any) -> Any:
        more["metadata"] = tuple(more["metadata"].items())
        many = name == "ServerReflectionInfo"
        call = self._method(service, name)(iter(requests) if many else requests[0], **more)
        try:
            async for answer in call:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise failed(error) from error
        finally:
            call.cancel()


def failed(error: Any) -> RpcFailed:
    found = dict([*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())])
    status = found.pop("grpc-status-details-bin", None)
    return RpcFailed(error.code().name, error.details(), status, found)


@contextlib.asynccontextmanager
async def open_channel(
    *, compressed: bool = False, max_bytes: int | None = None, ping: float | None = None
) -> Any:
    compression = grpc.Compression.Gzip if compressed else None
    async with grpc.aio.insecure_channel(
        GRPC, options=options(max_bytes, ping), compression=compression
    ) as channel:
        yield Channel(channel)


try_all(open_channel)


@feature("grpc.blocking")
def blocking() -> None:
    with grpc.insecure_channel(GRPC) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        more: dict[str, Any] = {"timeout": WAIT, "metadata": tuple(metadata().items())}
        parts = list(stub.ChatStream(chat(QUESTION), **more))
        same(joined(parts), stub.Chat(chat(QUESTION), **more))
        narrow = {**more, "metadata": tuple(metadata(narrow_key()).items())}
        for _ in range(2):
            stream = stub.ChatStream(long(), wait_for_ready=True, **narrow)
            next(stream)
            stream.cancel()
            while True:
                try:
                    stub.Chat(chat(max_tokens=2), **narrow)
                    break
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise


main(packages=("grpcio",), cannot={})
