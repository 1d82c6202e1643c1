"""The start and exit of a router: the order is the same if a step fails or the router stops."""

import socket

import pytest

from serving.admission.controller import AdmissionController
from serving.edge.gate import DrainGate
from serving.edge.grpc.server import GrpcEdge
from serving.edge.rest.server import RestServer
from serving.errors import LinkRefused, SettingsError
from serving.fleet.canary import Canary
from serving.fleet.join_server import LinkServer
from serving.requests.client import FleetClient
from serving.router.app import Router
from serving.settings import Settings
from serving.telemetry.tracing import Tracing

EXITS = {
    "gate": (DrainGate, "close"),
    "queue": (AdmissionController, "close"),
    "grpc": (GrpcEdge, "stop"),
    "rest": (RestServer, "stop"),
    "ranks": (LinkServer, "stop"),
    "client": (FleetClient, "shutdown"),
    "admission": (AdmissionController, "stop"),
    "canary": (Canary, "stop"),
    "tracing": (Tracing, "close"),
}
"""The function that ends each part of a router, in the order of the exit."""
ORDER = list(EXITS)


class Failed(Exception):
    """Raised by the step that a test makes fail."""


@pytest.fixture
def settings():
    return Settings(
        router={"rest_port": 0, "grpc_port": 0, "join_port": 0},
        engine={"kind": "fake"},
        # Without an endpoint there is no tracing to close. Nothing is sent without requests.
        telemetry={"otlp_endpoint": "http://127.0.0.1:1"},
    )


@pytest.fixture
def exits(monkeypatch):
    """The parts that were ended, in order; each is really ended too."""
    ended = []

    def record(name, function):
        def recorded(*arguments, **keywords):
            if name not in ended:  # AdmissionController.stop closes it too
                ended.append(name)
            return function(*arguments, **keywords)

        return recorded

    for name, (cls, method) in EXITS.items():
        monkeypatch.setattr(cls, method, record(name, getattr(cls, method)))
    return ended


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def test_stop_undoes_the_start_in_reverse_order(settings, exits):
    router = await Router.start(settings)
    addresses = router.addresses
    ports = [addresses.rest_port, addresses.grpc_port, addresses.join_port]
    assert exits == []
    assert all(map(listens, ports))
    await router.stop()
    assert exits == ORDER
    assert not any(map(listens, ports))
    await router.stop()
    assert exits == ORDER


@pytest.mark.parametrize(
    ("step", "first"),
    [
        pytest.param("serving.edge.auth.security.Security.load", "tracing", id="credentials"),
        pytest.param("serving.fleet.membership.FleetMembership.__init__", "canary", id="fleet"),
        pytest.param("serving.requests.client.FleetClient.__init__", "admission", id="client"),
        pytest.param("serving.fleet.join_server.LinkServer.__init__", "client", id="join server"),
        pytest.param("serving.edge.rest.app.build_rest_app", "ranks", id="REST app"),
        pytest.param("serving.edge.rest.server.RestServer.start", "rest", id="REST"),
        pytest.param("serving.edge.grpc.server.GrpcEdge.start", "grpc", id="gRPC"),
        pytest.param("serving.fleet.join_server.LinkServer.start", "grpc", id="join port"),
    ],
)
async def test_a_failed_step_undoes_exactly_what_was_built(
    settings, exits, step, first, monkeypatch
):
    def fail(*_arguments, **_keywords):
        raise Failed

    ports = []
    listen = RestServer.start

    async def start_rest(server):
        ports.append(server.port)
        await listen(server)

    monkeypatch.setattr(RestServer, "start", start_rest)
    monkeypatch.setattr(step, fail)
    with pytest.raises(Failed):
        await Router.start(settings)
    expected = ORDER[ORDER.index(first) :]
    if "admission" in expected:
        # Stopping admission closes its queue: there is no separate step for it yet.
        expected.insert(expected.index("admission") + 1, "queue")
    assert exits == expected
    assert not any(map(listens, ports))


@pytest.mark.parametrize(
    ("port", "error"), [("rest_port", SettingsError), ("join_port", LinkRefused)]
)
async def test_a_taken_port_leaves_nothing_behind(settings, exits, port, error):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        router = settings.router.model_copy(update={port: taken.getsockname()[1]})
        with pytest.raises(error):
            await Router.start(settings.model_copy(update={"router": router}))
    assert exits == ([] if port == "rest_port" else [*ORDER[2:7], "queue", *ORDER[7:]])
