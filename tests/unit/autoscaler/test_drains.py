"""RouterDrainer with fake routers over real gRPC."""

import grpc
import pytest

from serving import net
from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.autoscaler.drains import RouterDrainer
from serving.errors import SettingsError
from serving.settings import AutoscalerSettings


class Router(fleet_pb2_grpc.FleetServiceServicer):
    def __init__(self, journal, name, *, finished=True):
        self.journal, self.name, self.finished = journal, name, finished
        self.keys = set()
        self.missing = False

    def _note(self, what, request, context):
        self.journal.append((what, self.name, request.group_id))
        self.keys.add(dict(context.invocation_metadata()).get("authorization"))

    async def _refuse(self, context):
        if self.missing:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such group")

    async def Cordon(self, request, context):  # noqa: N802
        await self._refuse(context)
        self._note("cordon", request, context)
        return fleet_pb2.CordonResponse()

    async def Uncordon(self, request, context):  # noqa: N802
        self._note("uncordon", request, context)
        return fleet_pb2.UncordonResponse()

    async def Drain(self, request, context):  # noqa: N802
        await self._refuse(context)
        self._note("drain", request, context)
        return fleet_pb2.DrainResponse(finished=self.finished)


@pytest.fixture
async def start():
    servers = []

    async def serve(*routers):
        net = []
        for router in routers:
            server = grpc.aio.server()
            fleet_pb2_grpc.add_FleetServiceServicer_to_server(router, server)
            net.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            servers.append(server)
        return tuple(net)

    yield serve
    for server in servers:
        await server.stop(None)


async def test_all_routers_are_told_before_any_is_drained(start, tmp_path):
    journal = []
    routers = [Router(journal, "a"), Router(journal, "b")]
    key = tmp_path / "key"
    key.write_text("sk-1\n")
    drains = RouterDrainer(
        AutoscalerSettings(drain_addresses=await start(*routers), api_key_file=str(key))
    )
    assert await drains.drain("g0", "scaled down")
    await drains.restore("g0")
    assert [what for what, _, _ in journal] == ["cordon"] * 2 + ["drain"] * 2 + ["uncordon"] * 2
    assert {group for _, _, group in journal} == {"g0"}
    assert routers[0].keys == {"Bearer sk-1"}


async def test_what_did_not_finish_is_told(start):
    found = await start(Router([], "a"), Router([], "b", finished=False))
    drains = RouterDrainer(AutoscalerSettings(drain_addresses=found))
    assert not await drains.drain("g0", "scaled down")


async def test_a_router_that_is_away_does_not_keep_the_others(start):
    journal = []
    (address,) = await start(Router(journal, "a"))
    drains = RouterDrainer(AutoscalerSettings(drain_addresses=("127.0.0.1:1", address)))
    assert not await drains.drain("g0", "scaled down")
    assert [what for what, _, _ in journal] == ["cordon", "drain"]


async def test_every_address_behind_a_name_is_told(start, monkeypatch):
    journal = []
    found = await start(Router(journal, "a"), Router(journal, "b"))
    lookups = []

    async def addresses_of(host, port):
        lookups.append((host, port))
        return set(found)

    monkeypatch.setattr(net, "addresses_of", addresses_of)
    drains = RouterDrainer(AutoscalerSettings(drain_addresses=("dns:///routers.test:50051",)))
    assert await drains.drain("g0", "scaled down")
    assert sorted(journal) == [(what, name, "g0") for what in ("cordon", "drain") for name in "ab"]
    found = found[:1]
    await drains.restore("g0")
    assert journal[4:] == [("uncordon", "a", "g0")]
    assert lookups == [("routers.test", 50051)] * 2


async def test_a_name_that_does_not_resolve_is_no_finished_drain(monkeypatch):
    async def addresses_of(host, port):
        raise OSError("no such name")

    monkeypatch.setattr(net, "addresses_of", addresses_of)
    drains = RouterDrainer(AutoscalerSettings(drain_addresses=("dns:///routers.test:50051",)))
    assert not await drains.drain("g0", "scaled down")


async def test_a_router_that_does_not_know_the_group_has_nothing_to_drain(start):
    known, new = Router([], "a"), Router([], "b")
    new.missing = True
    drains = RouterDrainer(AutoscalerSettings(drain_addresses=await start(known, new)))
    assert await drains.drain("g0", "scaled down")


def test_an_address_without_a_port_is_named():
    with pytest.raises(SettingsError, match=r"drain_addresses: 'dns:///routers' is neither"):
        RouterDrainer(AutoscalerSettings(drain_addresses=("dns:///routers",)))


def test_an_authority_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cannot read"):
        RouterDrainer(AutoscalerSettings(ca_file=str(tmp_path / "none")))
