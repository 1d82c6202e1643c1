"""One router as a rank sees it: dial, say Hello, run its requests, dial again when it is lost."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import structlog

from serving.clock import Clock
from serving.credentials.grpc_tls import channel_credentials
from serving.credentials.tls import load_dial_tls
from serving.credentials.tokens import join_metadata
from serving.engine.base import Engine
from serving.engine.router_link.request_runner import RequestRunner
from serving.engine.router_link.send_queue import Outbox
from serving.errors import LinkRefused, SettingsError
from serving.link.v1 import link_pb2, link_pb2_grpc
from serving.settings import LinkSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  missing in grpc's type stubs
_CLOSE_DEADLINE = 1.0
"""Seconds that a lost router's requests get to end, and a stream to close."""


class RouterDialer:
    """Keeps a stream to one router, for ever, until stopped."""

    def __init__(
        self,
        address: str,
        engine: Engine,
        settings: LinkSettings,
        *,
        hello: link_pb2.Hello,
        clock: Clock,
        rng: random.Random,
        trouble: Callable[[], None],
        server_name: str | None = None,
    ) -> None:
        """Dial ``address``; ``server_name`` is the name it was resolved from, if it was."""
        self.address = address
        self._server_name = server_name
        self._engine = engine
        self._settings = settings
        self._hello = hello
        self._clock = clock
        self._rng = rng
        self._trouble = trouble
        self._task: asyncio.Task[None] | None = None
        self._outbox: Outbox | None = None
        self._runner: RequestRunner | None = None
        self._load: link_pb2.LoadSnapshot | None = None
        self._drain_reason: str | None = None
        self._sessions = 0
        self._closing = asyncio.Event()
        self._state = "connecting"
        self._reason = ""

    def start(self) -> None:
        """Begin to dial."""
        self._task = asyncio.create_task(self._dial_for_ever())

    async def stop(self) -> None:
        """Abort what runs, send what is finished, hang up. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            self._closing.set()
            if self._runner is None:
                task.cancel()
            await asyncio.wait([task], timeout=_CLOSE_DEADLINE * 3)
            task.cancel()
            await asyncio.wait([task])

    @property
    def connected(self) -> bool:
        """Whether the router has welcomed this rank and the stream lives."""
        return self._state == "connected"

    @property
    def running_requests(self) -> int:
        """Requests of this router."""
        return self._runner.running if self._runner is not None else 0

    def status(self) -> dict[str, Any]:
        """Return state (connecting, connected, refused, retrying) and why."""
        return {
            "state": self._state,
            "reason": self._reason,
            "running_requests": self.running_requests,
            "sessions": self._sessions,
        }

    def report(self, load: link_pb2.LoadSnapshot) -> None:
        """Send the load with the next frame; replaces one that is not sent yet."""
        self._load = load
        if self._outbox is not None:
            self._outbox.load(load)

    def drain(self, reason: str) -> None:
        """Tell the router to send nothing new, and refuse what comes all the same."""
        self._drain_reason = reason
        if self._outbox is not None and self._runner is not None:
            self._outbox.drain(reason)
            self._runner.drain(reason)

    async def idle(self) -> None:
        """Wait until none of the router's requests runs and all deltas are on their way."""
        if self._runner is not None:
            await self._runner.idle()
        if self._outbox is not None:
            await self._outbox.empty()

    # -- dialling -----------------------------------------------------------------------

    async def _dial_for_ever(self) -> None:
        backoff = self._settings.backoff_initial
        while not self._closing.is_set():
            welcomed = self._sessions
            wait = None
            try:
                await self._session()
                gone = self._closing.is_set()
                self._note(
                    "stopped" if gone else "retrying",
                    "this rank hung up" if gone else "the router closed the stream",
                )
            except LinkRefused as refusal:
                # The router may be upgraded, or the other rank may go: ask again, slowly.
                self._note("refused", str(refusal))
                wait = self._settings.backoff_max
            except SettingsError as error:
                # Credentials that cannot be read; whoever repairs them does not restart us.
                self._note("refused", str(error))
                wait = self._settings.backoff_max
            except (grpc.aio.AioRpcError, TimeoutError, _SlowRouterError) as error:
                self._note("retrying", _words(error))
            except Exception as error:
                log.exception("link failed", router=self.address)
                self._note("retrying", f"{type(error).__name__}: {error}")
            if self._closing.is_set():
                break
            if self._sessions > welcomed:
                backoff = self._settings.backoff_initial
            if wait is None:
                # Full jitter over the upper half: ranks of a group must not come in lockstep.
                wait = backoff * self._rng.uniform(0.5, 1.0)
                backoff = min(backoff * 2, self._settings.backoff_max)
            await asyncio.sleep(wait)

    def _note(self, state: str, reason: str) -> None:
        if (state, reason) != (self._state, self._reason):
            emit = log.warning if state == "refused" else log.info
            emit(f"router {state}", router=self.address, reason=reason)
        self._state, self._reason = state, reason

    async def _session(self) -> None:
        """Run one stream from Hello to its end.

        Raises:
            LinkRefused: the router does not take this rank.
            AioRpcError: the connection failed or could not be made.
            TimeoutError: no answer to Hello.
            SettingsError: the credentials cannot be read.
        """
        keepalive_ms = int(self._settings.keepalive * 1000)
        options = [
            ("grpc.max_receive_message_length", self._settings.max_frame_bytes),
            ("grpc.max_send_message_length", self._settings.max_frame_bytes),
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", keepalive_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # Our own backoff alone decides when to dial; gRPC's would come on top of it.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.min_reconnect_backoff_ms", int(self._settings.connect_timeout * 1000)),
            ("grpc.enable_http_proxy", 0),
        ]
        metadata = join_metadata(self._settings.token_file)
        async with self._channel(options) as channel:
            # Fails at once when nobody listens; the connection is made by the first write.
            join: Any = link_pb2_grpc.RouterServiceStub(channel).Join
            call = join(wait_for_ready=False, metadata=metadata)
            patience = self._settings.connect_timeout + self._settings.hello_timeout
            try:
                async with asyncio.timeout(patience):
                    await call.write(link_pb2.RankMessage(hello=self._hello))
                    answer = await call.read()
                if answer is _EOF:
                    raise TimeoutError("the router closed the stream without an answer to Hello")
                if answer.HasField("refusal"):
                    code = link_pb2.Refusal.Code.Name(answer.refusal.code)
                    raise LinkRefused(f"{code}: {answer.refusal.reason}")
                if not answer.HasField("welcome"):
                    raise LinkRefused("the router answered Hello with something else")
                self._sessions += 1
                self._note("connected", f"router {answer.welcome.router_id}")
                await self._run(call)
            finally:
                call.cancel()

    def _channel(self, options: list[tuple[str, Any]]) -> Any:
        """Return a channel that is not connected yet; certificates are read now.

        Raises:
            SettingsError: they cannot be.
        """
        tls = load_dial_tls(self._settings)
        if tls is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        name = self._settings.tls_server_name or self._server_name
        if name:
            options = [*options, ("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(self.address, channel_credentials(tls), options=options)

    async def _run(self, call: Any) -> None:
        outbox = Outbox(self._settings.outbox_limit, self._settings.max_frame_bytes)
        runner = RequestRunner(
            self._engine,
            outbox,
            # Ids of two routers, or of this one before and after a lost link, never collide.
            prefix=f"{self.address}#{self._sessions}/",
            trouble=self._trouble,
        )
        self._outbox, self._runner = outbox, runner
        outbox.follow(self._engine.kv_mirror)
        if self._load is not None:
            outbox.load(self._load)
        if self._drain_reason is not None:
            self.drain(self._drain_reason)
        receiver = asyncio.create_task(_receive(call, runner, outbox))
        sender = asyncio.create_task(_send(call, outbox))
        tasks: list[asyncio.Task[Any]] = [
            receiver,
            sender,
            asyncio.create_task(outbox.overflowed.wait()),
            asyncio.create_task(self._closing.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._closing.is_set():
                await _close(call, runner, outbox, receiver)
                return
            if outbox.overflowed.is_set():
                raise _SlowRouterError(
                    f"the router left more than {self._settings.outbox_limit} deltas waiting "
                    "(link.outbox_limit); its requests were aborted",
                )
            for task in (receiver, sender):
                if task.done():
                    task.result()
        finally:
            self._outbox = self._runner = None
            outbox.close()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # read, so that asyncio does not report it as lost
            await runner.abort_all(_CLOSE_DEADLINE)


async def _close(
    call: Any, runner: RequestRunner, outbox: Outbox, receiver: "asyncio.Task[None]"
) -> None:
    """End the stream so that what was finished still reaches the router."""
    await runner.abort_all(_CLOSE_DEADLINE)
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
        async with asyncio.timeout(_CLOSE_DEADLINE):
            await outbox.empty()
            await call.done_writing()
            await asyncio.wait([receiver])


class _SlowRouterError(Exception):
    """A router does not read its stream."""


def _words(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, TimeoutError):
        return str(error) or "the router did not answer in time"
    return str(error)


async def _receive(call: Any, runner: RequestRunner, outbox: Outbox) -> None:
    while (message := await call.read()) is not _EOF:
        for work in message.submits:
            runner.submit(work)
        for request_id in message.abort_request_ids:
            runner.abort(request_id)
        if message.HasField("ping"):
            outbox.pong(message.ping.number)


async def _send(call: Any, outbox: Outbox) -> None:
    while True:
        for frame in await outbox.frames():
            await call.write(frame)
        outbox.sent()
