"""Requests that ask for another protocol are answered over HTTP/1.1, with their bodies.

Java's HTTP client offers HTTP/2 with each first request (``Upgrade: h2c``), and langchain4j and
Spring AI use it. A server may ignore the offer (RFC 9110, 7.8), and uvicorn does; but its parser
takes what follows the head for the other protocol, so that the request loses its body.
"""

import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_WEBSOCKET = b"websocket"
_BODY_HEADERS = (b"content-length", b"transfer-encoding")


class _AfterHead:
    """Passes a parser's calls on, but for those about the head that it is started with."""

    def __init__(self, protocol: "IgnoresUpgrades") -> None:
        self._protocol = protocol
        self.started = False

    def on_message_begin(self) -> None:
        if self.started:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.started:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.started:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.started:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()


class IgnoresUpgrades(HttpToolsProtocol):
    """One connection, whose requests go on in HTTP/1.1 whatever they offer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fed = b""
        """What the parser was given last."""
        self._body_follows = False
        """The parser takes the body for another protocol."""

    def data_received(self, data: bytes) -> None:
        """Parse; go on behind the head of a request that offers another protocol."""
        self._fed = data
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Note whether a body follows that the parser does not see."""
        super().on_headers_complete()
        self._body_follows = self.parser.should_upgrade() and bool(self._body_head())

    def on_message_complete(self) -> None:
        """End the request, unless its body is still to come."""
        if not self._body_follows:
            super().on_message_complete()

    def forget_rest(self) -> None:
        """Drop what came behind a request whose client goes on in another protocol."""

    def _unsupported_upgrade_warning(self) -> None:
        # Called while the parser's exception is handled, which says where it stopped.
        error = sys.exception()
        if self._get_upgrade() == _WEBSOCKET or not isinstance(error, httptools.HttpParserUpgrade):
            # The middleware answers, and nothing that follows is HTTP.
            self.forget_rest()
            return
        if self._body_follows:
            self._body_follows = False
            head = _AfterHead(self)
            self.parser = httptools.HttpRequestParser(head)
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % self._body_head())
            head.started = True
        if rest := self._fed[error.args[0] :]:
            self.data_received(rest)

    def _body_head(self) -> bytes:
        """Return the headers that say how long the request's body is; empty: it has none."""
        found = [(name, value) for name, value in self.headers if name in _BODY_HEADERS]
        if all(name == b"content-length" and value.strip() == b"0" for name, value in found):
            return b""
        return b"".join(b"%b: %b\r\n" % pair for pair in found)
