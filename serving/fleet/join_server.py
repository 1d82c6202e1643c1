"""The server that ranks connect to: validates each rank and serves its link while it is joined."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from typing_extensions import override

from serving import __version__
from serving.clock import Clock, SystemClock
from serving.credentials.tls import Alpn, TlsMaterial, following_context
from serving.credentials.tokens import JoinTokens, bearer_of
from serving.credentials.watched import Watched
from serving.errors import LinkRefused, SettingsError
from serving.fleet.membership import JoinRefused
from serving.fleet.models import FleetModel, FleetModels
from serving.fleet.rank_link import RankLink
from serving.h2grpc.context import EOF
from serving.h2grpc.server import Server
from serving.link.protocol import SERVED_VERSIONS
from serving.link.v1 import link_pb2, link_pb2_grpc
from serving.net import bind
from serving.routing.snapshot import RankId
from serving.settings import LinkSettings, RouterSettings
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Refusal = link_pb2.Refusal
_JOIN_SETTING = "router.join_host and router.join_port"
_REJECTED_LINGER = 1.0
"""Time that the call of a rank without credentials stays open so that the rank can read the
refusal, seconds."""
_STOP_GRACE = 1.0
"""Time for calls to return after their links have been closed, seconds."""


@dataclass(frozen=True, slots=True)
class JoinGuard:
    """Credentials that protect the join port, because a joined rank receives requests."""

    tokens: Watched[JoinTokens] | None = None
    """Accepted join tokens. None if no token is required."""
    tls: Watched[TlsMaterial] | None = None
    """The server's certificate. None means plain text. If client CAs are set, ranks without a
    client certificate are rejected during the handshake."""

    def check(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> None:
        """Check the credentials in a call's metadata.

        Raises:
            JoinRefused: Credentials are missing or wrong; the message never contains a valid token.
        """
        if self.tokens is None:
            return
        headers = {key: value for key, value in metadata or () if isinstance(value, str)}
        token = bearer_of(headers)
        if self.tokens.value.accept(token):
            return
        raise JoinRefused(
            link_pb2.Refusal.CREDENTIALS,
            "the rank sent no join token: set link.token_file of the rank to the router's token"
            if token is None
            else "the rank's join token is not valid for this router: link.token_file of the rank "
            "and security.join_token_file of the router must contain the same token",
        )


class LinkServer(link_pb2_grpc.RouterServiceServicer):
    """Serves ``RouterService.Join``, with one ``RankLink`` per joined rank."""

    def __init__(
        self,
        models: FleetModels,
        link: LinkSettings,
        router: RouterSettings,
        *,
        clock: Clock | None = None,
        guard: JoinGuard | None = None,
    ) -> None:
        """Serve the ranks of all models.

        Args:
            models: The models; they receive joined ranks and their reports.
            link: Limits and timeouts of the links.
            router: Settings with the address to listen on.
            clock: Source of time; the system clock by default.
            guard: Required credentials. By default, every rank can join, in plain text.
        """
        self._models = models
        self._link = link
        self._router = router
        self._clock = clock or SystemClock()
        self._guard = guard or JoinGuard()
        self._links: set[RankLink] = set()
        self._stopping = False
        self._server: Server | None = None
        self.port = 0
        """Port that ranks connect to; 0 until ``start`` is called."""

    async def start(self) -> int:
        """Listen on the join address.

        Returns:
            The port.

        Raises:
            LinkRefused: The address cannot be bound.
        """
        router = self._router
        server: Any = Server(  # Any, because the generated stubs accept only grpc's server
            max_message_bytes=self._link.max_frame_bytes,
            keepalive_time=self._link.keepalive,
            keepalive_timeout=self._link.keepalive,
        )
        link_pb2_grpc.add_RouterServiceServicer_to_server(self, server)
        try:
            listening = bind("ranks", router.join_host, router.join_port, _JOIN_SETTING)
        except SettingsError as error:
            raise LinkRefused(f"{error}; is another router running there?") from error
        tls = None if self._guard.tls is None else following_context(self._guard.tls, Alpn.H2)
        self.port = await server.start(listening, tls)
        self._server = server
        log.info(
            "listening for ranks",
            address=f"{self._router.join_host}:{self.port}",
            tls=self._guard.tls is not None,
            token=self._guard.tokens is not None,
        )
        return self.port

    async def stop(self) -> None:
        """Close all links and stop listening. Safe to call twice."""
        self._stopping = True
        for link in tuple(self._links):
            link.close("the router is stopping")
        server, self._server = self._server, None
        if server is not None:
            await server.stop(_STOP_GRACE)

    @override
    async def Join(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Serve one rank until its link ends."""
        del request_iterator  # context.read and context.write are used instead
        peer = context.peer()
        try:
            # Before reading any frame from the peer.
            self._guard.check(context.invocation_metadata())
            hello, model = await self._hello(context)
            membership = model.membership
            link = RankLink(
                RankId(hello.group_id, hello.epoch, hello.rank),
                membership,
                self._clock,
                send_limit=self._link.outbox_limit,
                max_frame_bytes=self._link.max_frame_bytes,
                silence_limit=self._link.keepalive * 2,
            )
            self._models.join(hello, link)
        except JoinRefused as refusal:
            code = _Refusal.Code.Name(refusal.code)
            metrics.LINK_REFUSALS.labels(code).inc()
            log.warning("refused a rank", peer=peer, code=code, reason=str(refusal))
            await context.write(
                link_pb2.RouterMessage(
                    refusal=_Refusal(code=refusal.code, reason=str(refusal)),
                ),
            )
            if refusal.code == _Refusal.CREDENTIALS:
                # The rank's Hello may still be in flight: if the call ended first, the rank would
                # see a failed call instead of the refusal. A real rank disconnects immediately.
                await asyncio.sleep(_REJECTED_LINGER)
            return
        log.info(
            "rank joined",
            rank=str(link.rank_id),
            model=hello.model,
            pool=hello.pool,
            node=hello.node,
            pid=hello.pid,
            peer=peer,
        )
        self._links.add(link)
        reason = "its connection ended"
        try:
            await context.write(
                link_pb2.RouterMessage(
                    welcome=link_pb2.Welcome(
                        router_id=self._models.router_id,
                        serving_version=__version__,
                    ),
                ),
            )
            reason = await self._serve(link, context)
        finally:
            # No await before this point, because the call may be being cancelled.
            self._links.discard(link)
            link.close(reason)
            membership.leave(link.rank_id, link, link.close_reason)
            log.info("rank left", rank=str(link.rank_id), reason=link.close_reason)

    async def _serve(self, link: RankLink, context: Any) -> str:
        """Run the link until one side ends it; return the reason."""
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(_receive(link, context)),
            asyncio.create_task(link.send(context.write)),
            asyncio.create_task(link.watch()),
            asyncio.create_task(link.closed.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and (error := task.exception()) is not None:
                    return f"its connection failed: {error!r}"
            return link.close_reason or "it closed its connection"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _hello(self, context: Any) -> tuple[link_pb2.Hello, FleetModel]:
        if self._stopping:
            raise JoinRefused(_Refusal.CODE_UNSPECIFIED, "this router is stopping")
        try:
            first = await asyncio.wait_for(context.read(), self._link.hello_timeout)
        except TimeoutError as error:
            raise JoinRefused(
                _Refusal.BAD_HELLO,
                f"no Hello received within link.hello_timeout ({self._link.hello_timeout:g} s)",
            ) from error
        if first is EOF or not first.HasField("hello"):
            raise JoinRefused(_Refusal.BAD_HELLO, "the first frame is not a Hello")
        hello: link_pb2.Hello = first.hello
        model = check_hello(hello, self._models)
        await _check_files(hello, model)
        hello.pool = hello.pool or model.pools[0]
        return hello, model


async def _receive(link: RankLink, context: Any) -> None:
    while (message := await context.read()) is not EOF:
        if message.HasField("hello"):
            link.close("it sent a second Hello")
            return
        link.receive(message)


def check_hello(hello: link_pb2.Hello, models: FleetModels) -> FleetModel:
    """Check the Hello itself, without comparing it with other ranks or the model's files.

    Returns:
        The rank's model.

    Raises:
        JoinRefused: The Hello does not match; the message states the difference and the remedy.
    """
    if hello.protocol_version not in SERVED_VERSIONS:
        served = " and ".join(map(str, SERVED_VERSIONS))
        raise JoinRefused(
            _Refusal.PROTOCOL_VERSION,
            f"the rank (moe-serving {hello.serving_version or 'unknown'}) uses link protocol "
            f"{hello.protocol_version}, this router (moe-serving {__version__}) serves "
            f"{served}: run the same version on both, and upgrade routers before ranks",
        )
    model = models.by_name.get(hello.model)
    if model is None:
        served = ", ".join(map(repr, models.by_name))
        raise JoinRefused(
            _Refusal.MODEL,
            f"the rank serves model {hello.model!r}, this router serves {served}: "
            "set the same model.name on both",
        )
    if hello.pool and hello.pool not in model.pools:
        raise JoinRefused(
            _Refusal.MODEL,
            f"the rank belongs to pool {hello.pool!r} of model {hello.model!r}, this router has "
            f"the pools {', '.join(map(repr, model.pools))}: set group.pool of the rank to one of "
            "them, or add the pool to the model's pools on the router",
        )
    if not hello.group_id or not hello.epoch:
        raise JoinRefused(_Refusal.BAD_HELLO, "group_id and epoch must not be empty")
    if hello.rank >= hello.world_size:
        raise JoinRefused(
            _Refusal.BAD_HELLO,
            f"rank {hello.rank} is out of range for world size {hello.world_size}: "
            "must be 0 <= rank < world_size",
        )
    return model


async def _check_files(hello: link_pb2.Hello, model: FleetModel) -> None:
    """Check that the rank has the same model files as the router.

    Raises:
        JoinRefused: The files differ, or the router cannot read its own.
    """
    try:
        fingerprint = await model.fingerprint()
    except (OSError, ValueError) as error:
        raise JoinRefused(
            _Refusal.MODEL, f"this router cannot read the files of model {model.name!r}: {error}"
        ) from error
    if hello.model_fingerprint != fingerprint:
        raise JoinRefused(
            _Refusal.MODEL,
            f"the files of model {model.name!r} have fingerprint {hello.model_fingerprint!r} on "
            f"the rank and {fingerprint!r} on this router: config.json or the tokenizer differs, "
            "use the same model files on both",
        )
