"""TLS on all three ports: accepted clients, and certificates replaced at run time."""

import asyncio
import ssl
from dataclasses import replace

import grpc
import grpc.aio
import httpx
import pytest
import trustme
import yaml

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2_grpc
from serving.api.v1 import inference_pb2 as pb
from serving.cli.local.local_secrets import with_local_secrets
from serving.client.credentials import SETTINGS_FILE, access_from
from serving.client.grpc import open_channel
from serving.client.rest import RestClient
from serving.credentials.tokens import new_token
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.errors import NotReady, SettingsError
from serving.link.protocol import model_fingerprint
from serving.router.app import Router
from serving.settings import Settings
from tests.integration.edge.scripted_engine import ScriptedEngine
from tests.support.waiting import PATIENCE, eventually
from tests.unit.credentials.certificates import issue

pytestmark = pytest.mark.asyncio(loop_scope="session")


def settings_with(router_settings, link=None, **security) -> Settings:
    base = router_settings()
    security = {"reload_interval": 0.02} | {k: str(v) for k, v in security.items()}
    link = {"backoff_initial": 0.02, "backoff_max": 0.1} | (link or {})
    return Settings(
        router=base.router.model_dump(), engine={"kind": "fake"}, link=link, security=security
    )


def secure_channel(router: Router, files, own=None) -> grpc.aio.Channel:
    mine = (None, None) if own is None else (own.key.read_bytes(), own.cert.read_bytes())
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes(), *mine)
    return grpc.aio.secure_channel(router.addresses.grpc, credentials)


async def models_over(channel: grpc.aio.Channel) -> None:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    await stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE)


async def test_certificates_are_replaced_under_live_connections(tmp_path, router_settings):
    ca, next_ca = trustme.CA(), trustme.CA()
    files = issue(tmp_path, ca)
    old_ca = ssl.create_default_context(cafile=str(files.ca))
    settings = settings_with(router_settings, tls_cert_file=files.cert, tls_key_file=files.key)
    router = await Router.start(settings)
    assert router.addresses.rest.startswith("https://")
    async with (
        httpx.AsyncClient(base_url=router.addresses.rest, verify=old_ca, timeout=PATIENCE) as rest,
        secure_channel(router, files) as channel,
    ):
        assert (await rest.get("/livez")).status_code == 200
        await models_over(channel)

        issue(tmp_path, next_ca)
        new_ca = ssl.create_default_context(cafile=str(files.ca))

        async def new_one_is_shown() -> bool:
            try:
                async with httpx.AsyncClient(
                    base_url=router.addresses.rest, verify=new_ca, timeout=PATIENCE
                ) as new:
                    return (await new.get("/livez")).status_code == 200
            except httpx.ConnectError:
                return False

        await eventually(new_one_is_shown)
        async with secure_channel(router, files) as new_channel:
            await models_over(new_channel)
        # Earlier connections were not closed: a new one would trust the old CA.
        assert (await rest.get("/livez")).status_code == 200
        await models_over(channel)
        with pytest.raises(httpx.ConnectError):
            async with httpx.AsyncClient(
                base_url=router.addresses.rest, verify=old_ca, timeout=PATIENCE
            ) as old:
                await old.get("/livez")
    await router.stop()


async def test_clients_without_a_certificate_stay_outside(tmp_path, router_settings):
    ca = trustme.CA()
    files, client = issue(tmp_path, ca), issue(tmp_path, ca, "client", "someone")
    stranger = issue(tmp_path, trustme.CA(), "stranger", "someone")
    settings = settings_with(
        router_settings,
        tls_cert_file=files.cert,
        tls_key_file=files.key,
        tls_client_ca_file=client.ca,
    )
    router = await Router.start(settings)
    for own, let_in in ((client, True), (None, False), (stranger, False)):
        context = ssl.create_default_context(cafile=str(files.ca))
        if own is not None:
            context.load_cert_chain(own.cert, own.key)
        async with (
            httpx.AsyncClient(
                base_url=router.addresses.rest, verify=context, timeout=PATIENCE
            ) as rest,
            secure_channel(router, files, own) as channel,
        ):
            if let_in:
                assert (await rest.get("/livez")).status_code == 200
                await models_over(channel)
                continue
            with pytest.raises(httpx.TransportError):
                await rest.get("/livez")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await models_over(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await router.stop()


async def test_commands_show_the_operators_certificate(tmp_path, router_settings):
    """``up``, ``status``, ``chat`` and ``drain`` work with a router that requires certificates."""
    ca = trustme.CA()
    files, client = issue(tmp_path, ca), issue(tmp_path, ca, "client", "someone")
    settings = settings_with(
        router_settings,
        tls_cert_file=files.cert,
        tls_key_file=files.key,
        tls_client_ca_file=client.ca,
        operator_tls_cert_file=client.cert,
        operator_tls_key_file=client.key,
    )
    folder = tmp_path / "state"
    folder.mkdir()
    settings = with_local_secrets(settings, folder)
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    both = tmp_path / "both.pem"
    both.write_bytes(client.cert.read_bytes() + client.key.read_bytes())
    router = await Router.start(settings)
    local = access_from(None, None, None, folder)
    assert local.pinned
    for access in (local, access_from(None, str(files.ca), str(both), None)):
        assert (await asyncio.to_thread(get_fleet, router, access))[0] == 200
        await asyncio.to_thread(get_fleet_over_grpc, router, access)
    stranger = replace(local, cert_file=None, key_file=None)
    with pytest.raises(NotReady):
        await asyncio.to_thread(get_fleet, router, stranger)
    await router.stop()


def get_fleet(router, access):
    return RestClient(router.addresses.rest, access).get_json("/fleet", PATIENCE)


def get_fleet_over_grpc(router, access):
    with open_channel(router.addresses.grpc, access) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        stub.GetFleet(fleet_pb2.GetFleetRequest(), timeout=PATIENCE, wait_for_ready=True)


async def test_plain_text_is_not_understood(tmp_path, router_settings):
    files = issue(tmp_path, trustme.CA())
    settings = settings_with(router_settings, tls_cert_file=files.cert, tls_key_file=files.key)
    router = await Router.start(settings)
    plain = router.addresses.rest.replace("https", "http")
    async with (
        httpx.AsyncClient(base_url=plain, timeout=PATIENCE) as rest,
        grpc.aio.insecure_channel(router.addresses.grpc) as channel,
    ):
        with pytest.raises(httpx.TransportError):
            await rest.get("/livez")
        with pytest.raises(grpc.aio.AioRpcError):
            await models_over(channel)
    await router.stop()


# -- ranks ------------------------------------------------------------------------------


async def joined(router: Router, settings: Settings, group: str = "g0", **link) -> RankServer:
    """Start a rank that dials with ``link``."""
    identity = RankIdentity(group, "e1", 0, 1, "127.0.0.1")
    engine = ScriptedEngine(settings, model_fingerprint(settings.model.path))
    changes = {key: None if value is None else str(value) for key, value in link.items()}
    dialled = settings.link.model_copy(update={"routers": (router.addresses.join,), **changes})
    rank = RankServer(engine, dialled, identity)
    await rank.start()
    return rank


def state_of(rank: RankServer) -> dict:
    (state,) = rank.status()["routers"].values()
    return state


async def settle(rank: RankServer) -> dict:
    """Wait until the router has accepted or rejected the rank."""

    async def answered() -> bool:
        return state_of(rank)["state"] != "connecting"

    await eventually(answered)
    return state_of(rank)


@pytest.mark.parametrize("secret", ["none", "wrong"])
async def test_a_rank_without_the_join_token_cannot_join(tmp_path, router_settings, secret):
    tokens, other = tmp_path / "tokens", tmp_path / "other"
    tokens.write_text(new_token())
    other.write_text(new_token())
    settings = settings_with(router_settings, join_token_file=tokens)
    router = await Router.start(settings)
    rank = await joined(router, settings, token_file=other if secret == "wrong" else None)
    state = await settle(rank)
    assert state["state"] == "refused"
    assert "CREDENTIALS" in state["reason"]
    assert "link.token_file" in state["reason"]
    assert tokens.read_text() not in state["reason"]
    assert not router.membership.snapshot().groups

    # The correct token, written to the rank's file, is used without a restart.
    if secret == "wrong":
        other.write_text(tokens.read_text())

        async def connected() -> bool:
            return state_of(rank)["state"] == "connected"

        await eventually(connected)
    await rank.stop()
    await router.stop()


async def test_a_token_is_replaced_without_losing_ranks(tmp_path, router_settings):
    tokens, mine = tmp_path / "tokens", tmp_path / "mine"
    old, new = new_token(), new_token()
    tokens.write_text(old)
    mine.write_text(old)
    settings = settings_with(router_settings, join_token_file=tokens)
    router = await Router.start(settings)
    rank = await joined(router, settings, token_file=mine)
    assert (await settle(rank))["state"] == "connected"
    tokens.write_text(f"{new}\n{old}\n")
    mine.write_text(new)

    async def lets_in() -> bool:
        second = await joined(router, settings, "g1", token_file=mine)
        state = await settle(second)
        await second.stop()
        return state["state"] == "connected"

    await eventually(lets_in)
    assert state_of(rank)["sessions"] == 1
    await rank.stop()
    await router.stop()


async def test_a_token_file_that_is_missing_is_said_and_waited_for(tmp_path, router_settings):
    settings = settings_with(router_settings)
    router = await Router.start(settings)
    rank = await joined(router, settings, token_file=tmp_path / "later")
    state = await settle(rank)
    assert (state["state"], "later" in state["reason"]) == ("refused", True)
    (tmp_path / "later").write_text(new_token())

    async def connected() -> bool:
        return state_of(rank)["state"] == "connected"

    await eventually(connected)
    await rank.stop()
    await router.stop()


async def test_ranks_and_routers_know_each_other_by_certificate(tmp_path, router_settings):
    ca, client_ca = trustme.CA(), trustme.CA()
    files = issue(tmp_path, ca, "router", "router.example")
    mine = issue(tmp_path, client_ca, "rank", "rank")
    stranger = issue(tmp_path, trustme.CA(), "stranger", "rank")
    settings = settings_with(
        router_settings,
        join_tls_cert_file=files.cert,
        join_tls_key_file=files.key,
        join_tls_client_ca_file=mine.ca,
    )
    router = await Router.start(settings)
    right = {
        "tls_ca_file": files.ca,
        "tls_cert_file": mine.cert,
        "tls_key_file": mine.key,
        "tls_server_name": "router.example",
    }
    wrong = {
        "plain text": dict.fromkeys(right),
        "no certificate": right | {"tls_cert_file": None, "tls_key_file": None},
        "another authority's": right
        | {"tls_cert_file": stranger.cert, "tls_key_file": stranger.key},
        "another router": right | {"tls_server_name": "elsewhere.example"},
        "untrusted router": right | {"tls_ca_file": stranger.ca},
    }
    for name, link in wrong.items():
        rank = await joined(router, settings, **link)
        state = await settle(rank)
        assert state["state"] == "retrying", (name, state)
        assert not router.membership.snapshot().groups, name
        await rank.stop()
    rank = await joined(router, settings, **right)
    assert (await settle(rank))["state"] == "connected"
    await rank.stop()
    await router.stop()


# -- start-up ---------------------------------------------------------------------------


async def test_an_open_door_is_refused_before_anything_is_built(router_settings):
    settings = settings_with(router_settings)
    exposed = settings.model_copy(
        update={"router": settings.router.model_copy(update={"host": "0.0.0.0"})}
    )
    with pytest.raises(SettingsError, match="--insecure"):
        await Router.start(exposed)


async def test_files_that_cannot_be_used_stop_the_start(tmp_path, router_settings):
    settings = settings_with(
        router_settings, tls_cert_file=tmp_path / "none.pem", tls_key_file=tmp_path / "none.key"
    )
    with pytest.raises(SettingsError, match=r"none\.pem"):
        await Router.start(settings)
