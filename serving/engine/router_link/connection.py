"""Connection of a rank to one router: dial, send Hello, run requests, reconnect."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import structlog

from serving.credentials.tls import load_dial_tls
from serving.credentials.tokens import join_metadata
from serving.engine.base import Engine
from serving.engine.router_link.stream import CLOSE_TIMEOUT, EOF, RouterStream, SlowRouterError
from serving.errors import LinkRefused, SettingsError
from serving.link.v1 import link_pb2, link_pb2_grpc
from serving.settings import LinkSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RouterConnection:
    """Maintains a stream to one router until stopped."""

    def __init__(
        self,
        address: str,
        engine: Engine,
        settings: LinkSettings,
        *,
        hello: link_pb2.Hello,
        rng: random.Random,
        report_trouble: Callable[[], None],
        server_name: str | None = None,
    ) -> None:
        """Create the connection without dialing; see :meth:`start`.

        Args:
            address: ``host:port`` of the router.
            engine: Engine that runs the router's requests.
            settings: Timeouts and limits of the link.
            hello: Message that identifies this rank to the router.
            rng: Source of jitter.
            report_trouble: Called when the engine fails on a request.
            server_name: DNS name that resolved to the address, for TLS; None for a literal address.
        """
        self.address = address
        self._server_name = server_name
        self._engine = engine
        self._settings = settings
        self._hello = hello
        self._rng = rng
        self._report_trouble = report_trouble
        self._task: asyncio.Task[None] | None = None
        self._stream: RouterStream | None = None
        self._load: link_pb2.LoadSnapshot | None = None
        self._drain_reason: str | None = None
        self._sessions = 0
        self._closing = asyncio.Event()
        self._state = "connecting"
        self._reason = ""

    def start(self) -> None:
        """Start dialing in the background."""
        self._task = asyncio.create_task(self._keep_connected())

    async def stop(self) -> None:
        """Abort running requests, send finished output, disconnect. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            self._closing.set()
            if self._stream is None:
                task.cancel()
            await asyncio.wait([task], timeout=CLOSE_TIMEOUT * 3)
            task.cancel()
            await asyncio.wait([task])

    @property
    def connected(self) -> bool:
        """Whether the router has accepted this rank and the stream is open."""
        return self._state == "connected"

    @property
    def running_requests(self) -> int:
        """Number of running requests of this router."""
        return self._stream.runner.running if self._stream is not None else 0

    def status(self) -> dict[str, Any]:
        """Return the state (connecting, connected, refused, retrying) and its reason."""
        return {
            "state": self._state,
            "reason": self._reason,
            "running_requests": self.running_requests,
            "sessions": self._sessions,
        }

    def report(self, load: link_pb2.LoadSnapshot) -> None:
        """Send the load with the next frame; replaces an unsent load."""
        self._load = load
        if self._stream is not None:
            self._stream.queue.load(load)

    def drain(self, reason: str) -> None:
        """Announce to the router that new requests are rejected, now and after each reconnect."""
        self._drain_reason = reason
        if self._stream is not None:
            self._stream.drain(reason)

    async def idle(self) -> None:
        """Wait until no request of the router runs and all deltas are passed to the transport."""
        if self._stream is not None:
            await self._stream.idle()

    async def _keep_connected(self) -> None:
        backoff = self._settings.backoff_initial
        while not self._closing.is_set():
            welcomed = self._sessions
            wait = None
            try:
                await self._join()
                gone = self._closing.is_set()
                self._note(
                    "stopped" if gone else "retrying",
                    "this rank disconnected" if gone else "the router closed the stream",
                )
            except LinkRefused as refusal:
                # Retried at the maximum interval: the router may be upgraded, or the conflicting
                # rank may disconnect.
                self._note("refused", str(refusal))
                wait = self._settings.backoff_max
            except SettingsError as error:
                # Unreadable credentials; the files can be fixed without restarting the rank.
                self._note("refused", str(error))
                wait = self._settings.backoff_max
            except (grpc.aio.AioRpcError, TimeoutError, SlowRouterError) as error:
                self._note("retrying", _reason_of(error))
            except Exception as error:
                log.exception("link failed", router=self.address)
                self._note("retrying", f"{type(error).__name__}: {error}")
            if self._closing.is_set():
                break
            if self._sessions > welcomed:
                backoff = self._settings.backoff_initial
            if wait is None:
                # Jitter prevents the ranks of a group from dialing simultaneously.
                wait = backoff * self._rng.uniform(0.5, 1.0)
                backoff = min(backoff * 2, self._settings.backoff_max)
            await asyncio.sleep(wait)

    def _note(self, state: str, reason: str) -> None:
        if (state, reason) != (self._state, self._reason):
            emit = log.warning if state == "refused" else log.info
            emit(f"router {state}", router=self.address, reason=reason)
        self._state, self._reason = state, reason

    async def _join(self) -> None:
        """Run one stream from Hello to its end.

        Raises:
            LinkRefused: The router rejects this rank.
            AioRpcError: The connection failed or could not be established.
            TimeoutError: The router did not answer Hello in time.
            SlowRouterError: The router does not read its stream.
            SettingsError: The credentials cannot be read.
        """
        keepalive_ms = int(self._settings.keepalive * 1000)
        options = [
            ("grpc.max_receive_message_length", self._settings.max_frame_bytes),
            ("grpc.max_send_message_length", self._settings.max_frame_bytes),
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", keepalive_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # Disables gRPC's backoff, which would add to the backoff of ``_keep_connected``.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.min_reconnect_backoff_ms", int(self._settings.connect_timeout * 1000)),
            ("grpc.enable_http_proxy", 0),
        ]
        metadata = join_metadata(self._settings.token_file)
        async with self._channel(options) as channel:
            # Fails immediately if the port is closed; the first write connects.
            join: Any = link_pb2_grpc.RouterServiceStub(channel).Join
            call = join(wait_for_ready=False, metadata=metadata)
            limit = self._settings.connect_timeout + self._settings.hello_timeout
            try:
                async with asyncio.timeout(limit):
                    await call.write(link_pb2.RankMessage(hello=self._hello))
                    answer = await call.read()
                if answer is EOF:
                    raise TimeoutError("the router closed the stream without answering Hello")
                if answer.HasField("refusal"):
                    code = link_pb2.Refusal.Code.Name(answer.refusal.code)
                    raise LinkRefused(f"{code}: {answer.refusal.reason}")
                if not answer.HasField("welcome"):
                    raise LinkRefused("the router sent an unexpected answer to Hello")
                self._sessions += 1
                self._note("connected", f"router {answer.welcome.router_id}")
                await self._run(call)
            finally:
                call.cancel()

    def _channel(self, options: list[tuple[str, Any]]) -> Any:
        """Read the certificates and return a channel that is not connected yet.

        Raises:
            SettingsError: The certificates cannot be read.
        """
        tls = load_dial_tls(self._settings)
        if tls is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        name = self._settings.tls_server_name or self._server_name
        if name:
            options = [*options, ("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(self.address, tls.channel_credentials(), options=options)

    async def _run(self, call: Any) -> None:
        stream = RouterStream(
            call,
            self._engine,
            self._settings,
            prefix=f"{self.address}#{self._sessions}/",
            report_trouble=self._report_trouble,
        )
        if self._load is not None:
            stream.queue.load(self._load)
        if self._drain_reason is not None:
            stream.drain(self._drain_reason)
        self._stream = stream
        try:
            await stream.run(self._closing)
        finally:
            self._stream = None


def _reason_of(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, TimeoutError):
        return str(error) or "the router did not answer in time"
    return str(error)
