"""A server with a test's methods, and its clients."""

import contextlib
import socket

import grpc
import grpc.aio
import pytest

from serving.h2grpc.server import Server
from tests.support.waiting import eventually
from tests.unit.h2grpc.raw_client import RawClient


class Stand:
    """One server under test."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.target = f"127.0.0.1:{port}"
        self.clients: list[RawClient] = []

    @property
    def connection(self):
        """The only connection."""
        (connection,) = self.server.connections
        return connection

    async def raw(self, settings=None, **kwargs) -> RawClient:
        client = await RawClient.connect(self.port, settings, **kwargs)
        self.clients.append(client)
        return client

    @contextlib.asynccontextmanager
    async def channel(self, *options, **kwargs):
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        async with grpc.aio.insecure_channel(self.target, options=options, **kwargs) as channel:
            yield channel

    async def idle(self) -> None:
        """Wait until there are no calls and no state of calls."""
        await eventually(lambda: not self.server.tasks)
        await eventually(lambda: not any(each.calls for each in self.server.connections))
        assert not any(each.output.waiting for each in self.server.connections)

    async def deserted(self) -> None:
        """Wait until there are no calls and no connections."""
        await self.idle()
        await eventually(lambda: not self.server.connections)


KINDS = {
    "uu": grpc.unary_unary_rpc_method_handler,
    "us": grpc.unary_stream_rpc_method_handler,
    "su": grpc.stream_unary_rpc_method_handler,
    "ss": grpc.stream_stream_rpc_method_handler,
}


def methods(**behaviours):
    """Return a generic handler for ``/t.T/NAME``; a method ``uu_name`` has the kind ``uu``."""
    handlers = {
        name: KINDS[name.split("_")[0]](behaviour) if callable(behaviour) else behaviour
        for name, behaviour in behaviours.items()
    }
    return grpc.method_handlers_generic_handler("t.T", handlers)


def bound_socket(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.bind((host, 0))
    except OSError:
        listening.close()
        raise
    return listening


@pytest.fixture
async def serve():
    """Start servers from options and handlers by name; checks that nothing is left at the end."""
    stands: list[Stand] = []

    async def started(options=None, *, tls=None, **behaviours) -> Stand:
        server = Server(**(options or {}))
        server.add_generic_rpc_handlers((methods(**behaviours),))
        stands.append(Stand(server, await server.start(bound_socket(), tls)))
        return stands[-1]

    yield started
    for stand in stands:
        for client in stand.clients:
            await client.close()
        await stand.server.stop(0)
        await stand.deserted()
