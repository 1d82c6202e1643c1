"""The benchmark of gRPC servers: measurements and table."""

import grpc.aio
import pytest

from loadtest.bench import grpc_servers as bench
from serving.h2grpc.server import Server
from tests.unit.h2grpc.conftest import bound_socket


@pytest.mark.parametrize("name", bench.SERVERS)
async def test_both_servers_do_the_work(monkeypatch, name):
    monkeypatch.setattr(bench, "EVERY", 0.0)
    if name == "grpc.aio":
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        start = server.start()
    else:
        server = Server()
        listening = bound_socket()
        port = listening.getsockname()[1]
        start = server.start(listening)
    server.add_generic_rpc_handlers((bench.handlers(),))
    await start
    client = bench.Client(port, 2)
    assert await client.streams(3) == 3 * bench.STREAMS
    assert await client.calls(2 * bench.STREAMS + 1) == 2 * bench.STREAMS
    cost = await client.cost(lambda: client.calls(bench.STREAMS))
    assert min(cost.values()) > 0
    await client.close()
    await server.stop(0)


def test_the_table_has_the_least_and_the_median():
    turns = [
        {"message": {"server": each, "client": 2}, "call": {"server": 10 * each, "client": 3}}
        for each in (1.0, 9.0, 2.0)
    ]
    assert bench.markdown({("ours", 8): turns}).splitlines()[-1] == (
        "| `ours` | 8 | 1.0 (2.0) | 2.0 (2.0) | 10.0 (20.0) | 3.0 (3.0) |"
    )
