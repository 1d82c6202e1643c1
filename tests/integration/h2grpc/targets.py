"""Both servers, in plain text and over TLS, each behind a relay."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import trustme

from serving.credentials.tls import Alpn, TlsFiles, following_context, watch_tls
from serving.h2grpc.server import Server
from tests.integration.h2grpc.cases import LIMIT, WITH_TLS, cases
from tests.integration.h2grpc.messages import Messages, compile_descriptors
from tests.integration.h2grpc.relay import Relay
from tests.integration.h2grpc.servicer import TestServicer
from tests.support.waiting import eventually
from tests.unit.credentials.certificates import issue
from tests.unit.h2grpc.conftest import bound_socket

SECURITY = ("plain", "tls", "mtls")


class Targets:
    """Both servers in plain text, over TLS and over mTLS, each behind a relay."""

    def __init__(self, folder: Path) -> None:
        self.descriptors = compile_descriptors(folder / "interop.pb")
        self.messages = Messages(self.descriptors)
        self.servicers: list[TestServicer] = []
        self.cases = cases(self.messages)
        self.specs: list[dict] = []
        self._files = issue(folder, trustme.CA())
        self._relays: list[Relay] = []
        self._stop: list = []

    async def start(self) -> None:
        for security in SECURITY:
            ours = Server(max_message_bytes=LIMIT)
            relay = self._serve(ours)
            relay.upstream = await ours.start(bound_socket(), self._context(security))
            await self._relayed(relay, "ours", security)
            self._stop.append(ours.stop)

            theirs = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
            relay = self._serve(theirs)
            credentials = self._credentials(security)
            if credentials is None:
                relay.upstream = theirs.add_insecure_port("127.0.0.1:0")
            else:
                relay.upstream = theirs.add_secure_port("127.0.0.1:0", credentials)
            await theirs.start()
            await self._relayed(relay, "grpc.aio", security)
            self._stop.append(theirs.stop)

    async def stop(self) -> None:
        await asyncio.gather(*(relay.stop() for relay in self._relays))
        await asyncio.gather(*(stop(0) for stop in self._stop))

    async def idle(self) -> None:
        """Wait until no handler runs."""
        await eventually(lambda: not any(each.running for each in self.servicers))

    def _serve(self, server) -> Relay:
        """Add a servicer to a server; return its relay, which has no upstream port yet.

        Each server has a separate relay: connections to different ports can have the same client
        port, so the peer's name is only unique within one server.
        """
        relay = Relay()
        self._relays.append(relay)
        self.servicers.append(TestServicer(self.messages, relay.counts, relay.cut))
        server.add_generic_rpc_handlers((self.servicers[-1].handlers(),))
        return relay

    async def _relayed(self, relay: Relay, name: str, security: str) -> None:
        await relay.start()
        tls = {}
        if security != "plain":
            tls["ca"] = str(self._files.ca)
        if security == "mtls":
            tls |= {"cert": str(self._files.cert), "key": str(self._files.key)}
        self.specs.append(
            {
                "name": f"{name} {security}",
                "address": f"127.0.0.1:{relay.port}",
                "tls": tls or None,
                "cases": list(self.cases if security == "plain" else WITH_TLS),
            }
        )

    def _context(self, security: str):
        if security == "plain":
            return None
        ca = str(self._files.ca) if security == "mtls" else None
        files = TlsFiles(str(self._files.cert), str(self._files.key), ca)
        return following_context(watch_tls("test", files), Alpn.H2)

    def _credentials(self, security: str):
        if security == "plain":
            return None
        pair = (self._files.key.read_bytes(), self._files.cert.read_bytes())
        ca = self._files.ca.read_bytes() if security == "mtls" else None
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)
