"""The engine's own metrics over HTTP, in a way that a scrape cannot hold up the engine.

vLLM counts in this process after each step, whether anybody asks or not
(``vllm.v1.metrics.loggers.PrometheusStatLogger``; its stat-logger manager adds one as soon as any
logger is given). Asking it costs rendering alone. That happens in a thread of its own, at most
once a second however many ask, and touches neither the event loop nor the engine's process.
"""

import threading
from collections.abc import Callable
from errno import EADDRINUSE
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from typing_extensions import override

from serving.clock import Clock, SystemClock
from serving.errors import SettingsError
from serving.settings import TelemetrySettings

TRIES = 64
"""Ports that are tried, the one asked for first: as many ranks as that can share a node."""
_FRESH = 1.0
"""Seconds for which a rendered page is given out again."""
_SOCKET_TIMEOUT = 5.0
"""Seconds that a client may take for its request."""


class RenderedPage:
    """A text that is made anew at most once in ``_FRESH`` seconds."""

    def __init__(self, render: Callable[[], bytes], clock: Clock) -> None:
        """Render nothing yet."""
        self._render = render
        self._clock = clock
        self._lock = threading.Lock()
        self._text = b""
        self._made_at: float | None = None

    def text(self) -> bytes:
        """Return the page; many threads may ask at once, one of them renders."""
        with self._lock:
            now = self._clock.monotonic()
            if self._made_at is None or now - self._made_at >= _FRESH:
                self._text, self._made_at = self._render(), now
            return self._text


class MetricsPage:
    """Serves /metrics of this process on one address, from threads, until closed."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        render: Callable[[], bytes] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Listen, on the first free port from ``port`` on.

        Args:
            host: this node's address.
            port: where to begin to look; several ranks of one node are given the same.
            render: makes the page; default: Prometheus' text of this process' metrics.
            clock: source of time.

        Raises:
            SettingsError: no port is free there, or the address is not this node's.
        """
        page = RenderedPage(render or _own_metrics, clock or SystemClock())
        self._server = _listen(host, port, _handler(page))
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_port}"
        """host:port."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics-page", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; waits for the listening thread, at most half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def open_page(settings: TelemetrySettings, address: str) -> MetricsPage | None:
    """Show the engine's own metrics on this node's address, if the settings ask for that.

    Raises:
        SettingsError: there is no free port.
    """
    port = settings.rank_metrics_port
    return MetricsPage(address, port) if port else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Another rank's port must look taken, also while its last connections fade.
    allow_reuse_address = False

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a scraper went away."""


def _listen(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> _Server:
    for candidate in range(port, min(port + TRIES, 2**16)):
        try:
            return _Server((host, candidate), handler)
        except OSError as error:
            if error.errno != EADDRINUSE:
                raise SettingsError(
                    f"telemetry.rank_metrics_port: cannot listen on {host}:{candidate}: {error}"
                ) from error
    raise SettingsError(
        f"telemetry.rank_metrics_port: no port is free on {host} from {port} to "
        f"{min(port + TRIES, 2**16) - 1}"
    )


def _handler(page: RenderedPage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SOCKET_TIMEOUT

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            text = page.text()
            self.send_response(HTTPStatus.OK)
            self.send_header("content-type", CONTENT_TYPE_PLAIN_0_0_4)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Log no scrapes."""

    return Handler


def _own_metrics() -> bytes:
    return generate_latest(REGISTRY)
