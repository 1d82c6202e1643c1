"""drain, cordon and uncordon on fake routers, over gRPC."""

import threading
from concurrent import futures

import grpc
import pytest

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.cli.main import main
from serving.cli.ops import operate
from tests.support.waiting import PATIENCE


class FakeRouter(fleet_pb2_grpc.FleetServiceServicer):
    """A router with one group, g0, with some requests."""

    def __init__(self, *, needs_key: str | None = None) -> None:
        self.calls: list[tuple[str, object]] = []
        self.inflight = 0
        self.finished = True
        self.needs_key = needs_key
        self.drained = threading.Event()
        self.drained.set()

    def _enter(self, name, request, context) -> None:
        metadata = dict(context.invocation_metadata())
        if self.needs_key and metadata.get("authorization") != f"Bearer {self.needs_key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "an API key is needed")
        self.calls.append((name, request))
        if getattr(request, "group_id", "g0") != "g0":
            context.abort(grpc.StatusCode.NOT_FOUND, f"there is no group {request.group_id}")

    def GetFleet(self, request, context):  # noqa: N802
        self._enter("GetFleet", request, context)
        rank = fleet_pb2.Rank(inflight_requests=self.inflight)
        if self.inflight:
            self.inflight -= 1
        else:
            self.drained.set()
        return fleet_pb2.GetFleetResponse(groups=[fleet_pb2.Group(group_id="g0", ranks=[rank])])

    def Cordon(self, request, context):  # noqa: N802
        self._enter("Cordon", request, context)
        return fleet_pb2.CordonResponse()

    def Uncordon(self, request, context):  # noqa: N802
        self._enter("Uncordon", request, context)
        return fleet_pb2.UncordonResponse()

    def Drain(self, request, context):  # noqa: N802
        self._enter("Drain", request, context)
        assert self.drained.wait(PATIENCE)
        return fleet_pb2.DrainResponse(finished=self.finished)


@pytest.fixture
def start(monkeypatch):
    """Return a function that starts a fake router and returns its address."""
    monkeypatch.setattr(operate, "POLL_SECONDS", 0.01)
    servers = []

    def serve(router: FakeRouter) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(router, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield serve
    for server in servers:
        server.stop(0).wait()


def names(router: FakeRouter) -> list[str]:
    return [name for name, _ in router.calls if name != "GetFleet"]


def test_cordon_and_uncordon_tell_every_router(start, capsys):
    first, second = FakeRouter(), FakeRouter()
    where = [word for router in (first, second) for word in ("--grpc-address", start(router))]
    assert main(["cordon", "g0", "--reason", "new cable", *where]) == 0
    assert main(["uncordon", "g0", *where]) == 0
    for router in (first, second):
        assert names(router) == ["Cordon", "Uncordon"]
        assert router.calls[0][1].reason == "new cable"
    assert capsys.readouterr().out.count(": cordoned at") == 2


def test_drain_cordons_everywhere_first_and_tells_what_is_left(start, capsys):
    first, second = FakeRouter(), FakeRouter()
    first.inflight = 2
    first.drained.clear()
    where = [word for router in (first, second) for word in ("--grpc-address", start(router))]
    assert main(["drain", "g0", "--drain-timeout", "30", *where]) == 0
    assert names(first) == names(second) == ["Cordon", "Drain"]
    out = capsys.readouterr().out
    assert "2 requests left" in out
    assert out.count("drained at") == 2


def test_a_drain_that_runs_out_of_time_says_so(start, capsys):
    router = FakeRouter()
    router.finished = False
    assert main(["drain", "g0", "--drain-timeout", "5", "--grpc-address", start(router)]) == 1
    assert "not drained after 5 s" in capsys.readouterr().out
    (request,) = [request for name, request in router.calls if name == "Drain"]
    assert 0 < request.timeout_seconds <= 5


def test_a_name_stands_for_every_router_behind_it(start, monkeypatch):
    routers = [FakeRouter(), FakeRouter()]
    found = {start(router) for router in routers}

    async def addresses_of(host, port):
        assert (host, port) == ("routers.test", 50051)
        return found

    monkeypatch.setattr("serving.net.addresses_of", addresses_of)
    assert main(["drain", "g0", "--grpc-address", "dns:///routers.test:50051"]) == 0
    assert [names(router) for router in routers] == [["Cordon", "Drain"]] * 2


def test_a_name_that_does_not_resolve_is_one_clear_line(monkeypatch, capsys):
    async def addresses_of(host, port):
        raise OSError("no such name")

    monkeypatch.setattr("serving.net.addresses_of", addresses_of)
    assert main(["cordon", "g0", "--grpc-address", "dns:///routers.test:50051"]) == 1
    assert "cannot resolve dns:///routers.test:50051: no such name" in capsys.readouterr().err


def test_what_is_no_address_is_named(capsys):
    assert main(["cordon", "g0", "--grpc-address", "routers"]) == 1
    assert (
        "--grpc-address: 'routers' is neither host:port nor dns:///name:port"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", ["drain", "cordon", "uncordon"])
def test_an_unknown_group_is_one_clear_line(start, capsys, command):
    assert main([command, "g7", "--grpc-address", start(FakeRouter())]) == 1
    err = capsys.readouterr().err
    assert "there is no group g7" in err
    assert "moe-serving status" in err


def test_the_key_comes_from_flag_or_environment(start, capsys, monkeypatch):
    where = ["--grpc-address", start(FakeRouter(needs_key="secret"))]
    assert main(["cordon", "g0", *where]) == 1
    assert "--api-key" in capsys.readouterr().err
    assert main(["cordon", "g0", *where, "--api-key", "secret"]) == 0
    monkeypatch.setenv("MOE_SERVING_API_KEY", "secret")
    assert main(["cordon", "g0", *where]) == 0
    assert main(["cordon", "g0", *where, "--api-key", "wrong"]) == 1
    assert "wrong" not in capsys.readouterr().err


def test_a_router_that_is_not_there_keeps_the_others_untold(start, capsys, monkeypatch):
    monkeypatch.setattr("serving.client.grpc.CONNECT_TIMEOUT", 0.2)
    router = FakeRouter()
    where = ["--grpc-address", start(router), "--grpc-address", "127.0.0.1:1"]
    assert main(["cordon", "g0", *where]) == 1
    assert "cannot connect to 127.0.0.1:1 over gRPC" in capsys.readouterr().err
    assert not router.calls


def test_without_a_run_and_a_router_there_is_nothing_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    assert main(["drain", "g0"]) == 1
    assert "--grpc-address" in capsys.readouterr().err
