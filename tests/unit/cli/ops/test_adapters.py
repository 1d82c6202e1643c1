"""adapters on fake routers, over gRPC."""

from concurrent import futures

import grpc
import pytest

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.cli.main import main


class FakeRouter(fleet_pb2_grpc.FleetServiceServicer):
    """A router with one adapter from its settings."""

    def __init__(self):
        self.adapters = {"kept": fleet_pb2.Adapter(name="kept", model="m", path="/k")}

    def GetFleet(self, request, context):  # noqa: N802
        del request, context
        return fleet_pb2.GetFleetResponse()

    def ListAdapters(self, request, context):  # noqa: N802
        del request, context
        return fleet_pb2.ListAdaptersResponse(adapters=self.adapters.values())

    def LoadAdapter(self, request, context):  # noqa: N802
        if request.name in self.adapters and not request.replace:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{request.name} is already loaded")
        adapter = self.adapters[request.name] = fleet_pb2.Adapter(
            name=request.name, model=request.model or "m", path=request.path, resident_ranks=2
        )
        adapter.loaded_at_run_time = True
        return fleet_pb2.LoadAdapterResponse(adapter=adapter)

    def UnloadAdapter(self, request, context):  # noqa: N802
        if self.adapters.pop(request.name, None) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no adapter {request.name}")
        return fleet_pb2.UnloadAdapterResponse()


@pytest.fixture
def routers():
    """Two routers, and their addresses."""
    servers, found = [], []
    for _ in range(2):
        router = FakeRouter()
        server = grpc.server(futures.ThreadPoolExecutor(2))
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(router, server)
        found.append((router, f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"))
        server.start()
        servers.append(server)
    yield found
    for server in servers:
        server.stop(None)


def run(routers, *words):
    flags = [flag for _, address in routers for flag in ("--grpc-address", address)]
    return main(["adapters", *words, *flags])


def test_an_adapter_is_loaded_listed_and_unloaded_at_every_router(routers, capsys):
    assert run(routers, "load", "new", "/a/new", "--model", "n") == 0
    assert all(router.adapters["new"].model == "n" for router, _ in routers)
    assert run(routers, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        f"{routers[0][1]}:",
        "  kept of m: /k, from the settings, on 0 ranks",
        "  new of n: /a/new, loaded at run time, on 2 ranks",
    ]
    assert run(routers, "load", "new", "/a/other") == 1
    assert "new is already loaded" in capsys.readouterr().err
    assert run(routers, "load", "new", "/a/other", "--replace") == 0
    assert all(router.adapters["new"].path == "/a/other" for router, _ in routers)
    assert run(routers, "unload", "new") == 0
    assert [list(router.adapters) for router, _ in routers] == [["kept"], ["kept"]]
    assert run(routers, "unload", "new") != 0
    assert "no adapter new" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        pytest.param(["load"], "adapters load needs the name", id="no-name"),
        pytest.param(["load", "x"], "needs the adapter's folder", id="no-folder"),
        pytest.param(["unload"], "adapters unload needs the name", id="unload"),
    ],
)
def test_missing_arguments_are_named(routers, capsys, words, error):
    assert run(routers, *words) == 1
    assert error in capsys.readouterr().err
