"""The autoscaler's HTTP pages: /metrics, and /livez for the kubelet's liveness probe.

The pages are served by a thread, so they respond even while the event loop is stuck. The loop sets
a heartbeat every second, and /livez fails once the heartbeat is too old. A process that hangs is
therefore restarted; one that waits for the lease or an unreachable API server is not.
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
from serving.telemetry import autoscaler_metrics as metrics

_EVERY = 1.0
"""Interval of the heartbeat, seconds."""
STUCK = 30.0
"""Age of the heartbeat above which the event loop counts as stuck, seconds."""


class Heartbeat:
    """Records when the event loop last ran."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()

    def silence(self) -> float:
        """Return the seconds since the last heartbeat; callable from any thread."""
        return self._clock() - self._at

    async def beat(self, pause: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Set the heartbeat every second until cancelled."""
        while True:
            self._at = self._clock()
            await pause(_EVERY)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Log nothing, because probes arrive every few seconds."""


def serve_pages(settings: AutoscalerSettings, heartbeat: Heartbeat) -> Callable[[], None]:
    """Serve /livez, and the metrics at any other path, in a thread.

    Returns:
        A function that stops the server.

    Raises:
        SettingsError: The port cannot be bound.
    """
    metrics_page = make_wsgi_app(metrics.AUTOSCALER_REGISTRY)

    def page(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/livez":
            content: Iterable[bytes] = metrics_page(environ, start)
            return content
        silence = heartbeat.silence()
        stuck = silence > STUCK
        start("503 Service Unavailable" if stuck else "200 OK", [("content-type", "text/plain")])
        return [f"the event loop last ran {silence:.0f} s ago\n".encode()]

    try:
        server = make_server(
            settings.metrics_host,
            settings.metrics_port,
            page,
            server_class=_Server,
            handler_class=_Silent,
        )
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.metrics_host}:{settings.metrics_port} "
            f"(autoscaler.metrics_port): {error.strerror}"
        ) from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    return stop
