"""FleetService with a fake operator."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.api.v1 import fleet_pb2 as pb
from serving.edge.auth.authenticator import Principal, authenticated_as
from serving.edge.grpc import fleet_service
from serving.edge.grpc.fleet_service import FleetService
from serving.errors import GroupNotFound


class Aborted(Exception):
    """Raised by ``abort``, as by a real context."""


class Context:
    """The part of gRPC's servicer context that the service needs."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailers: tuple = ()

    async def abort(self, code, details, trailers):
        self.code, self.details, self.trailers = code, details, trailers
        raise Aborted

    @property
    def reason(self) -> str:
        status = error_details_pb2.ErrorInfo()
        rpc = rpc_status.from_call(_Call(self))
        assert rpc.details[0].Unpack(status)
        return status.reason


class _Call:
    def __init__(self, context: Context) -> None:
        self._context = context

    def code(self):
        return self._context.code

    def details(self):
        return self._context.details

    def trailing_metadata(self):
        return self._context.trailers


class FakeOperator:
    """An operator that knows group g0."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.finished = True
        self.error: Exception | None = None

    def _note(self, *call) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        if call[1] != "g0":
            raise GroupNotFound(f"there is no group {call[1]}")

    def cordon(self, group_id, reason):
        self._note("cordon", group_id, reason)

    def uncordon(self, group_id):
        self._note("uncordon", group_id)

    async def drain(self, group_id, timeout):
        self._note("drain", group_id, timeout)
        await asyncio.sleep(0)
        return self.finished


@pytest.fixture
def operator():
    return FakeOperator()


@pytest.fixture
def service(operator):
    return FleetService(lambda: None, operator, drain_timeout=7.0)


async def test_cordon_and_uncordon(service, operator):
    await service.Cordon(pb.CordonRequest(group_id="g0", reason="  new\n cable "), Context())
    await service.Cordon(pb.CordonRequest(group_id="g0"), Context())
    await service.Uncordon(pb.UncordonRequest(group_id="g0"), Context())
    assert operator.calls == [
        ("cordon", "g0", "new cable"),
        ("cordon", "g0", "cordoned by an operator"),
        ("uncordon", "g0"),
    ]


@pytest.mark.parametrize(
    ("given", "timeout"),
    [
        pytest.param({}, 7.0, id="the-routers-own"),
        pytest.param({"timeout_seconds": 2.5}, 2.5, id="given"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
async def test_drain(service, operator, given, timeout, finished):
    operator.finished = finished
    answer = await service.Drain(pb.DrainRequest(group_id="g0", **given), Context())
    assert answer.finished is finished
    assert operator.calls == [("drain", "g0", timeout)]


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        pytest.param(
            "Cordon", pb.CordonRequest(group_id="g7"), "NOT_FOUND", "GROUP_NOT_FOUND", id="cordon"
        ),
        pytest.param(
            "Uncordon", pb.UncordonRequest(group_id="g7"), "NOT_FOUND", "GROUP_NOT_FOUND",
            id="uncordon",
        ),
        pytest.param(
            "Drain", pb.DrainRequest(group_id="g7"), "NOT_FOUND", "GROUP_NOT_FOUND", id="drain"
        ),
        pytest.param(
            "Drain", pb.DrainRequest(), "INVALID_ARGUMENT", "INVALID_REQUEST", id="no-group"
        ),
        *(
            pytest.param(
                "Drain", pb.DrainRequest(group_id="g0", timeout_seconds=seconds),
                "INVALID_ARGUMENT", "INVALID_REQUEST", id=f"timeout {seconds}",
            )
            for seconds in (0, -1, 90_000, float("inf"), float("nan"))
        ),
        pytest.param(
            "Cordon", pb.CordonRequest(group_id="g0", reason="x" * 201),
            "INVALID_ARGUMENT", "INVALID_REQUEST", id="long-reason",
        ),
        pytest.param(
            "Cordon", pb.CordonRequest(group_id="g0", reason="a\x1b[2J"),
            "INVALID_ARGUMENT", "INVALID_REQUEST", id="terminal-control-in-reason",
        ),
    ],
)  # fmt: skip
async def test_what_is_wrong_has_its_status(service, method, request_, code, reason):
    context = Context()
    with pytest.raises(Aborted):
        await getattr(service, method)(request_, context)
    assert (context.code.name, context.reason) == (code, reason)


async def test_a_fault_of_ours_says_nothing_of_itself(service, operator):
    operator.error = RuntimeError("secret path")
    context = Context()
    with pytest.raises(Aborted):
        await service.Uncordon(pb.UncordonRequest(group_id="g0"), context)
    assert (context.code, context.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in context.details


async def test_who_did_what_is_noted(service, monkeypatch):
    noted = []

    class Log:
        def bind(self, **fields):
            noted.append(fields)
            return self

        def info(self, *_, **__):
            pass

    monkeypatch.setattr(fleet_service, "log", Log())
    with authenticated_as(Principal(tenant="ops")):
        await service.Uncordon(pb.UncordonRequest(group_id="g0"), Context())
    assert noted == [{"operation": "uncordon", "group": "g0", "tenant": "ops"}]
