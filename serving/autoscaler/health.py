"""The autoscaler's own pages: /metrics, and /livez for a kubelet's probes.

They are served by a thread, which answers while the event loop is stuck. So the loop leaves a mark
every second, and /livez fails when the last one is old: a process that does nothing any more is
restarted, and one that only waits for the lease, or for an API server that is away, is not.
"""

import asyncio
import socketserver
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from serving.errors import SettingsError
from serving.settings import AutoscalerSettings
from serving.telemetry import metrics

_EVERY = 1.0
"""Seconds between two marks."""
STUCK = 30.0
"""Seconds without a mark after which the event loop counts as stuck."""


class Heartbeat:
    """When the event loop ran last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()

    def silence(self) -> float:
        """Return the seconds since the last mark; from any thread."""
        return self._clock() - self._at

    async def beat(self, pause: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Mark every second, for ever."""
        while True:
            self._at = self._clock()
            await pause(_EVERY)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Log nothing: probes come every few seconds."""


def serve_pages(law: AutoscalerSettings, heartbeat: Heartbeat) -> Callable[[], None]:
    """Serve /livez, and /metrics at any other path, in a thread; return what stops it.

    Raises:
        SettingsError: the port cannot be had.
    """
    shown = make_wsgi_app(metrics.AUTOSCALER_REGISTRY)

    def page(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/livez":
            content: Iterable[bytes] = shown(environ, start)
            return content
        silence = heartbeat.silence()
        stuck = silence > STUCK
        start("503 Service Unavailable" if stuck else "200 OK", [("content-type", "text/plain")])
        return [f"the event loop ran {silence:.0f} s ago\n".encode()]

    try:
        server = make_server(
            law.metrics_host, law.metrics_port, page, server_class=_Server, handler_class=_Silent
        )
    except OSError as error:
        raise SettingsError(
            f"cannot listen at {law.metrics_host}:{law.metrics_port} "
            f"(autoscaler.metrics_port): {error.strerror}"
        ) from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return stop
