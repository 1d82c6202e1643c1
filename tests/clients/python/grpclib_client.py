"""grpclib, with the stubs of its own plugin."""
# ruff: noqa: E402, I001  some imports are of modules generated here

import contextlib
from typing import Any
from urllib.parse import urlsplit

from frame import GRPC, main
from grpc_code import RpcFailed, generate

generate("grpclib_python")

import grpclib
import health_grpc
import reflection_v1_grpc
import reflection_v1alpha_grpc
from google.rpc import error_details_pb2  # noqa: F401  grpclib decodes what it knows
from google.rpc.status_pb2 import Status
from grpc_features import OURS, try_all
from grpclib.client import Channel as GrpclibChannel
from grpclib.config import Configuration
from serving.api.v1 import inference_grpc

STUBS = {
    OURS: inference_grpc.InferenceServiceStub,
    "grpc.health.v1.Health": health_grpc.HealthStub,
    "grpc.reflection.v1.ServerReflection": reflection_v1_grpc.ServerReflectionStub,
    "grpc.reflection.v1alpha.ServerReflection": reflection_v1alpha_grpc.ServerReflectionStub,
}


class Channel:
    def __init__(self, channel: GrpclibChannel) -> None:
        self._channel = channel

    async def unary(self, service: str, name: str, request: Any, **more: Any) -> Any:
        method = getattr(STUBS[service](self._channel), name)
        with translated():
            async with method.open(**more) as stream:
                await stream.send_message(request, end=True)
                answer = await stream.recv_message()
                await stream.recv_trailing_metadata()
        return answer, {**stream.initial_metadata, **stream.trailing_metadata}

    async def stream(self, service: str, name: str, requests: list[Any], **more: Any) -> Any:
        method = getattr(STUBS[service](self._channel), name)
        with translated():
            async with method.open(**more) as stream:
                for request in requests:
                    await stream.send_message(request, end=request is requests[-1])
                async for answer in stream:
                    yield answer


@contextlib.contextmanager
def translated() -> Any:
    try:
        yield
    except grpclib.GRPCError as error:
        status = Status(code=error.status.value, message=error.message)
        for each in error.details or ():
            status.details.add().Pack(each)
        raise RpcFailed(
            error.status.name, error.message or "", status.SerializeToString(), {}
        ) from error
    except TimeoutError as error:
        raise RpcFailed("DEADLINE_EXCEEDED", "of the client", None, {}) from error


@contextlib.asynccontextmanager
async def open_channel(*, ping: float | None = None) -> Any:
    address = urlsplit(f"//{GRPC}")
    config = Configuration()
    if ping is not None:
        config = Configuration(
            _keepalive_time=ping,
            _keepalive_timeout=ping,
            _keepalive_permit_without_calls=True,
            _http2_max_pings_without_data=0,
        )
    async with GrpclibChannel(address.hostname, address.port, config=config) as channel:
        yield Channel(channel)


try_all(open_channel, without={"grpc.compression", "grpc.own_limit"})
main(
    packages=("grpclib",),
    cannot={
        "grpc.compression": "does not support compression",
        "grpc.own_limit": "the client has no message size limit",
        "grpc.blocking": "asynchronous only",
    },
)
