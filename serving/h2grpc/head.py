"""What a call's headers say: method, metadata, time-out, compression; or why it is not served."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import grpc

from serving.h2grpc.compression import ACCEPTED, ENCODINGS, accepts, is_codec
from serving.h2grpc.wire import Headers, Metadata, WireError, metadata_of, timeout_seconds

CONTENT_TYPE = b"application/grpc"
_OVERHEAD = 32
"""Bytes that a header counts for beside its name and value (RFC 9113, section 6.5.2)."""
_Code = grpc.StatusCode
_BY_NUMBER: dict[int, grpc.StatusCode] = {each.value[0]: each for each in _Code}


class Refusal(NamedTuple):
    """How a call ends that is not served."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata = ()


class Refused(Exception):
    """The headers ask for what is not served."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.refusal = Refusal(code, details)


class NotGrpc(Exception):
    """Somebody speaks HTTP/2 and not gRPC."""

    def __init__(self, status: bytes) -> None:
        super().__init__()
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A call's headers, read."""

    method: str
    metadata: Metadata
    timeout: float | None
    """Seconds that the client gives; none: no end."""
    encoding: str
    """How its messages may be compressed."""
    accept_encoding: bytes
    """How ours may be."""

    @classmethod
    def of(cls, headers: Headers, max_bytes: int) -> Self:
        """Read the headers, which may have ``max_bytes`` by HTTP/2's way of counting.

        Raises:
            NotGrpc: they are of another protocol.
            Refused: they are malformed, too large, or ask for what is not known.
        """
        fields = dict(headers)
        if fields.get(b":method") != b"POST":
            raise NotGrpc(b"405")
        if not _is_grpc(fields.get(b"content-type", b"")):
            raise NotGrpc(b"415")
        size = sum(len(name) + len(value) + _OVERHEAD for name, value in headers)
        if size > max_bytes:
            raise Refused(
                _Code.RESOURCE_EXHAUSTED,
                f"the metadata has {size} bytes, at most {max_bytes} may come",
            )
        given = fields.get(b"grpc-timeout")
        try:
            metadata = metadata_of(headers)
            timeout = None if given is None else timeout_seconds(given)
        except WireError as error:
            raise Refused(_Code.INTERNAL, str(error)) from error
        if timeout is not None and timeout <= 0:
            raise Refused(_Code.DEADLINE_EXCEEDED, "the deadline had passed when the call came")
        encoding = fields.get(b"grpc-encoding", b"identity").decode("latin-1")
        if encoding not in ENCODINGS:
            raise Refused(
                _Code.UNIMPLEMENTED,
                f"messages compressed as {encoding!r} are not read; known: {ACCEPTED}",
            )
        method = fields.get(b":path", b"").decode("latin-1")
        accepted = fields.get(b"grpc-accept-encoding", b"")
        return cls(method, metadata, timeout, encoding, accepted)

    def answers_as(self, said: str | None) -> str | None:
        """Return how answers are compressed; None: not at all.

        Args:
            said: by the handler or the server; if neither says anything, the client's own way.
        """
        encoding = self.encoding if said is None else said
        if is_codec(encoding) and accepts(self.accept_encoding, encoding):
            return encoding
        return None


NO_HEAD = RequestHead("", (), None, "identity", b"")
"""Of a call whose headers cannot be read."""


def status_code(code: grpc.StatusCode | int) -> grpc.StatusCode:
    """Return the status that a number stands for; UNKNOWN if there is none, as in grpc.aio."""
    return code if isinstance(code, grpc.StatusCode) else _BY_NUMBER.get(code, _Code.UNKNOWN)


def _is_grpc(content_type: bytes) -> bool:
    # With a format (+proto) or parameters behind it; application/grpc-web is another protocol.
    return content_type.startswith(CONTENT_TYPE) and (
        content_type[len(CONTENT_TYPE) :][:1] in {b"", b"+", b";"}
    )
