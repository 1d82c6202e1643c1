"""vLLM's metrics over HTTP; a scrape does not delay the engine.

vLLM updates its Prometheus metrics in this process after each step
(``vllm.v1.metrics.loggers.PrometheusStatLogger``, which the stat-logger manager adds when any
custom logger is passed). A scrape only renders them, in a separate thread and at most once per
second for any number of scrapers. It uses neither the event loop nor the engine's process.
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
"""Number of ports to try, from the configured one upwards; also the maximum number of ranks per
node."""
_FRESH = 1.0
"""Time for which a rendered page is reused, seconds."""
_SOCKET_TIMEOUT = 5.0
"""Maximum time for a client to send its request, seconds."""


class RenderedPage:
    """A page that is rendered at most once per ``_FRESH`` seconds."""

    def __init__(self, render: Callable[[], bytes], clock: Clock) -> None:
        """Create the page; :meth:`text` renders it."""
        self._render = render
        self._clock = clock
        self._lock = threading.Lock()
        self._text = b""
        self._made_at: float | None = None

    def text(self) -> bytes:
        """Return the page. Thread-safe; concurrent callers share one rendering."""
        with self._lock:
            now = self._clock.monotonic()
            if self._made_at is None or now - self._made_at >= _FRESH:
                self._text, self._made_at = self._render(), now
            return self._text


class MetricsPage:
    """HTTP server for ``/metrics`` of this process; runs in threads until closed."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        render: Callable[[], bytes] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Listen on the first free port, starting at ``port``.

        Args:
            host: This node's address.
            port: First port to try; the same for all ranks of a node.
            render: Function that returns the page; by default this process's metrics in the
                Prometheus text format.
            clock: Source of time.

        Raises:
            SettingsError: No port is free, or the address does not belong to this node.
        """
        page = RenderedPage(render or _own_metrics, clock or SystemClock())
        self._server = _listen(host, port, _handler(page))
        self.address = f"{f'[{host}]' if ':' in host else host}:{self._server.server_port}"
        """``host:port`` that the server listens on."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics-page", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; blocks for up to half a second until the server thread ends."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def open_page(settings: TelemetrySettings, address: str) -> MetricsPage | None:
    """Serve the metrics on this node's address; return ``None`` if ``rank_metrics_port`` is 0.

    Raises:
        SettingsError: No port is free.
    """
    port = settings.rank_metrics_port
    return MetricsPage(address, port) if port else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A port of another rank must count as in use, even while its last connections close.
    allow_reuse_address = False

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore the error: a scraper disconnected."""


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
            """Log nothing, because scrapes are frequent."""

    return Handler


def _own_metrics() -> bytes:
    return generate_latest(REGISTRY)
