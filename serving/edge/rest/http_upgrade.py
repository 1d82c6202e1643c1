"""Serves requests that offer another protocol (``Upgrade: h2c``) over HTTP/1.1.

Java's HTTP client, which langchain4j and Spring AI use, sends the offer with the first request of
each connection. A server may ignore it (RFC 9110, section 7.8). uvicorn does, but its parser treats
the data after the head as data of the other protocol, and the request would lose its body.
"""

from collections.abc import Iterable
from typing import Any

import httptools

_BODY_HEADERS = (b"content-length", b"transfer-encoding")


def body_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the header lines that announce a request body, or empty bytes without a body.

    Args:
        headers: The request's headers, with names in lower case.
    """
    found = [(name, value) for name, value in headers if name in _BODY_HEADERS]
    if all(name == b"content-length" and value.strip() == b"0" for name, value in found):
        return b""
    return b"".join(b"%b: %b\r\n" % pair for pair in found)


def parser_of_body(protocol: Any, headers: bytes) -> httptools.HttpRequestParser:
    """Return a parser in the state after a request head, for the body and later requests.

    Args:
        protocol: Receives the parser's events.
        headers: ``body_headers`` of the request.
    """
    events = _EventsBehindHead(protocol)
    parser = httptools.HttpRequestParser(events)
    parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % headers)
    events.started = True
    return parser


class _EventsBehindHead:
    """Forwards a parser's events, except those of the head used to set its state."""

    def __init__(self, protocol: Any) -> None:
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
