"""Parses the request headers of a call: method, metadata, timeout, compression."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import grpc

from serving.h2grpc.compression import ACCEPTED, ENCODINGS, accepts, is_codec
from serving.h2grpc.wire import Headers, Metadata, WireError, metadata_of, timeout_seconds

CONTENT_TYPE = b"application/grpc"
_OVERHEAD = 32
"""Overhead per header in the size of a header list, bytes (RFC 9113, section 6.5.2)."""
_Code = grpc.StatusCode
_CODES: dict[int, grpc.StatusCode] = {each.value[0]: each for each in _Code}


class Refusal(NamedTuple):
    """The status of a refused call."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata = ()


class Refused(Exception):
    """The call is refused with a gRPC status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.refusal = Refusal(code, details)


class NotGrpc(Exception):
    """The request is HTTP/2 but not gRPC; answered with an HTTP status."""

    def __init__(self, status: bytes) -> None:
        super().__init__()
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The parsed headers of a call."""

    method: str
    metadata: Metadata
    timeout: float | None
    """Timeout set by the client, seconds. None means no timeout."""
    encoding: str
    """Compression of the client's messages."""
    accept_encoding: bytes
    """Compressions that the client accepts: the raw value of ``grpc-accept-encoding``."""

    @classmethod
    def of(cls, headers: Headers, max_bytes: int) -> Self:
        """Parse headers of at most ``max_bytes``, counted as in HTTP/2.

        Raises:
            NotGrpc: The request is not gRPC.
            Refused: The headers are malformed or too large, or name an unknown compression, or the
                timeout is zero.
        """
        fields = dict(headers)
        if fields.get(b":method") != b"POST":
            raise NotGrpc(b"405")
        if not _is_grpc(fields.get(b"content-type", b"")):
            raise NotGrpc(b"415")
        size = 0
        for name, value in headers:
            size += len(name) + len(value) + _OVERHEAD
        if size > max_bytes:
            raise Refused(
                _Code.RESOURCE_EXHAUSTED,
                f"the metadata has {size} bytes, above the limit of {max_bytes}",
            )
        raw_timeout = fields.get(b"grpc-timeout")
        try:
            metadata = metadata_of(headers)
            timeout = None if raw_timeout is None else timeout_seconds(raw_timeout)
        except WireError as error:
            raise Refused(_Code.INTERNAL, str(error)) from error
        if timeout is not None and timeout <= 0:
            raise Refused(
                _Code.DEADLINE_EXCEEDED, "the deadline had already passed when the call arrived"
            )
        encoding = fields.get(b"grpc-encoding", b"identity").decode("latin-1")
        if encoding not in ENCODINGS:
            raise Refused(
                _Code.UNIMPLEMENTED,
                f"unsupported grpc-encoding {encoding!r}; supported: {ACCEPTED}",
            )
        method = fields.get(b":path", b"").decode("latin-1")
        accepted = fields.get(b"grpc-accept-encoding", b"")
        return cls(method, metadata, timeout, encoding, accepted)

    def response_encoding(self, requested: str | None) -> str | None:
        """Return the compression of responses, or None if they are uncompressed.

        Args:
            requested: Compression set by the handler or the server. None means the same as the
                client's messages.
        """
        encoding = self.encoding if requested is None else requested
        if is_codec(encoding) and accepts(self.accept_encoding, encoding):
            return encoding
        return None


NO_HEAD = RequestHead("", (), None, "identity", b"")
"""Placeholder for a call whose headers are refused."""


def status_code(code: grpc.StatusCode | int) -> grpc.StatusCode:
    """Return the status code with this number; UNKNOWN for other numbers, as in grpc.aio."""
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code, _Code.UNKNOWN)


def _is_grpc(content_type: bytes) -> bool:
    # A format (+proto) or parameters may follow; application/grpc-web is a different protocol.
    content_type = content_type.lower()  # RFC 9110, section 8.3.1
    return content_type.startswith(CONTENT_TYPE) and (
        content_type[len(CONTENT_TYPE) :][:1] in {b"", b"+", b";"}
    )
