"""The rules of RFC 9112 for the head of a request.

This server and a proxy in front of it must agree on the end and the host of every request. Heads
that servers interpret differently are therefore rejected.
"""

import re
from collections.abc import Iterable

_VERSIONS = ("1.0", "1.1")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(:[0-9]*)?")
"""``uri-host [ ":" port ]`` (RFC 9110, section 7.2); the host may be empty."""


def head_refusal(version: str, method: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the response to a head that must not be served, or empty bytes.

    Args:
        version: HTTP version of the request line.
        method: Method of the request; a response to HEAD has no content.
        headers: The request's headers, with names in lower case.
    """
    hosts, codings = [], []
    for name, value in headers:
        if name == b"host":
            hosts.append(value.strip(b" \t"))
        elif name == b"transfer-encoding":
            codings.append(value.strip(b" \t").lower())
    if version not in _VERSIONS:
        # Section 2.3 of RFC 9112. The parser also accepts HTTP/0.9, which has no headers.
        return _answer(b"505 HTTP Version Not Supported", b"only HTTP/1.0 and 1.1", method)
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return _answer(b"400 Bad Request", b"exactly one host header is required", method)
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        return _answer(b"400 Bad Request", b"the host header is invalid", method)
    if codings and version == "1.0":
        # Section 6.1: the framing is faulty.
        return _answer(b"400 Bad Request", b"HTTP/1.0 has no transfer-encoding", method)
    if codings and codings != [b"chunked"]:
        text = b"the only supported transfer-encoding is chunked"
        return _answer(b"501 Not Implemented", text, method)
    return b""


def origin_form(target: bytes) -> bytes:
    """Return a request target with the path that an absolute one may omit (section 3.2.1)."""
    scheme, mark, rest = target.partition(b"://")
    if not mark or not scheme.isalpha():
        return target
    end = next((at for at, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    return target if rest[end : end + 1] == b"/" else b"/" + rest[end:]


def _answer(status: bytes, text: bytes, method: bytes) -> bytes:
    content = b"" if method == b"HEAD" else text
    return (
        b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(content), content)
    )
