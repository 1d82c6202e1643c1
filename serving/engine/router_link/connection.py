"""Connection of a rank to one router: dial, send Hello, run requests, reconnect."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import structlog

from serving.credentials.tls import load_dial_tls
from serving.credentials.tokens import join_metadata
from serving.engine.base import Engine
from serving.engine.router_link.stream import CLOSE_TIMEOUT, RouterStream, SlowRouterError
from serving.errors import LinkRefused, SettingsError
from serving.h2grpc.client import CallError, CallOptions, ClientCall
from serving.link.v1 import link_pb2
from serving.settings import LinkSettings

_JOIN = "/serving.link.v1.RouterService/Join"

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
            except (CallError, TimeoutError, SlowRouterError) as error:
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
            CallError: The connection failed or could not be established.
            TimeoutError: The router did not answer Hello in time.
            SlowRouterError: The router does not read its stream.
            SettingsError: The credentials cannot be read.
        """
        settings = self._settings
        metadata = join_metadata(settings.token_file)
        host, _, port = self.address.rpartition(":")
        options = CallOptions(
            max_message_bytes=settings.max_frame_bytes,
            keepalive_time=settings.keepalive,
            keepalive_timeout=settings.keepalive,
            tls=load_dial_tls(settings),
            server_name=settings.tls_server_name or self._server_name,
        )
        call: ClientCall | None = None
        try:
            async with asyncio.timeout(settings.connect_timeout + settings.hello_timeout):
                call = await ClientCall.open(host.strip("[]"), int(port), _JOIN, options, metadata)
                hello = link_pb2.RankMessage(hello=self._hello)
                await call.write(hello.SerializeToString())
                first = await call.read()
            if first is None:
                raise TimeoutError("the router closed the stream without answering Hello")
            answer = link_pb2.RouterMessage.FromString(first)
            if answer.HasField("refusal"):
                code = link_pb2.Refusal.Code.Name(answer.refusal.code)
                raise LinkRefused(f"{code}: {answer.refusal.reason}")
            if not answer.HasField("welcome"):
                raise LinkRefused("the router sent an unexpected answer to Hello")
            self._sessions += 1
            self._note("connected", f"router {answer.welcome.router_id}")
            await self._run(call)
        finally:
            if call is not None:
                call.cancel()

    async def _run(self, call: ClientCall) -> None:
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
    if isinstance(error, TimeoutError):
        return str(error) or "the router did not answer in time"
    return str(error)
