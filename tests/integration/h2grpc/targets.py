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

PATIENCE = 100.0
"""Timeout of waits, seconds; reached only by failing tests."""
SECURITY = ("plain", "tls", "mtls")


class Targets:
    """Both servers in plain text, over TLS and over mTLS, each behind a relay."""

    def __init__(self, folder: Path) -> None:
        self.descriptors = compile_descriptors(folder / "interop.pb")
        self.messages = Messages(self.descriptors)
        self.servicers = {
            name: TestServicer(self.messages, self._carried, self._cut)
            for name in ("ours", "grpc.aio")
        }
        self.cases = cases(self.messages)
        self.specs: list[dict] = []
        self._files = issue(folder, trustme.CA())
        self._relays: list[Relay] = []
        self._stop: list = []

    def _carried(self, peer: str) -> tuple[int, int]:
        return next(found for each in self._relays if (found := each.counts(peer)))

    def _cut(self, peer: str) -> None:
        for relay in self._relays:
            relay.cut(peer)

    async def start(self) -> None:
        for security in SECURITY:
            ours = Server(max_message_bytes=LIMIT)
            ours.add_generic_rpc_handlers((self.servicers["ours"].handlers(),))
            await self._relayed(
                "ours", security, await ours.start(bound_socket(), self._context(security))
            )
            self._stop.append(ours.stop)

            theirs = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
            theirs.add_generic_rpc_handlers((self.servicers["grpc.aio"].handlers(),))
            credentials = self._credentials(security)
            if credentials is None:
                port = theirs.add_insecure_port("127.0.0.1:0")
            else:
                port = theirs.add_secure_port("127.0.0.1:0", credentials)
            await theirs.start()
            await self._relayed("grpc.aio", security, port)
            self._stop.append(theirs.stop)

    async def stop(self) -> None:
        await asyncio.gather(*(relay.stop() for relay in self._relays))
        await asyncio.gather(*(stop(0) for stop in self._stop))

    async def idle(self) -> None:
        """Wait until no handler runs."""
        await eventually(lambda: not any(each.running for each in self.servicers.values()))

    async def _relayed(self, name: str, security: str, port: int) -> None:
        relay = Relay(port)
        await relay.start()
        self._relays.append(relay)
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
