"""The messages of interop.proto, created from descriptors without generated code.

This module is also imported by clients that run in a different environment than the tests.
"""

import functools
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = Path(__file__).with_name("interop.proto")
PACKAGE = "interop.v1"
SERVICE = f"{PACKAGE}.TestService"


def compile_descriptors(target: Path) -> Path:
    """Write the descriptor set of interop.proto for the client programs."""
    from grpc_tools import protoc  # not installed in the clients' environments

    arguments = ["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={target}", PROTO.name]
    assert protoc.main(arguments) == 0
    return target


class Messages:
    """Classes by name: ``messages.SimpleRequest``; and the methods of the service."""

    def __init__(self, descriptors: Path) -> None:
        known = descriptor_pb2.FileDescriptorSet.FromString(descriptors.read_bytes())
        self._pool = descriptor_pool.DescriptorPool()
        for each in known.file:
            self._pool.Add(each)
        self.service = self._pool.FindServiceByName(SERVICE)

    @functools.cache  # noqa: B019  there is one of these for a session
    def __getattr__(self, name: str):
        return message_factory.GetMessageClass(
            self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        )
