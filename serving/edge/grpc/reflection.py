"""Server reflection under both names: grpc.reflection.v1, and v1alpha for older clients.

Both versions have identical messages (grpc/grpc-proto), so one servicer serves both.
grpcio-reflection ships only v1alpha. The v1 descriptors, which clients need to describe the listed
services, are derived from it.
"""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

V1ALPHA: str = reflection.SERVICE_NAME
V1 = V1ALPHA.replace(".v1alpha.", ".v1.")
_METHOD = "ServerReflectionInfo"
_FILE = "grpc/reflection/v1/reflection.proto"
"""File name in grpc/grpc-proto."""


class _Reflection(ReflectionServicer):
    """Also finds methods (``package.Service.Method``), as the protocol specifies."""

    def _file_containing_symbol(
        self, request: reflection_pb2.ServerReflectionRequest, fully_qualified_name: str
    ) -> reflection_pb2.ServerReflectionResponse:
        service, _, method = fully_qualified_name.rpartition(".")
        try:
            is_method = method in self._pool.FindServiceByName(service).methods_by_name
        except KeyError:
            is_method = False
        name = service if is_method else fully_qualified_name
        return super()._file_containing_symbol(request, name)


def add_reflection(services: Sequence[str], server: Any) -> None:
    """Add the reflection services to a server.

    Args:
        services: Full names of the services to list, including reflection.
        server: A gRPC server.
    """
    _describe_v1()
    servicer = _Reflection(services)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(V1, {_METHOD: method}),))


def _describe_v1() -> None:
    """Add the v1 file descriptor to the default pool, which reflection reads. Idempotent."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_FILE)
    except KeyError:
        pool.AddSerializedFile(_v1().SerializeToString())


def _v1() -> descriptor_pb2.FileDescriptorProto:
    """Return the v1alpha file descriptor with the name, package and type references of v1."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    old, new = f".{file.package}.", f".{V1.rpartition('.')[0]}."
    file.name, file.package = _FILE, new.strip(".")
    file.options.go_package = file.options.go_package.replace("v1alpha", "v1")
    file.options.java_package = file.options.java_package.replace("v1alpha", "v1")
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return file
