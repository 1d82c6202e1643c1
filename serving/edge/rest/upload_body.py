"""The body of a file upload: larger than other bodies, and streamed part by part."""

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import Message

from serving.edge.rest.request_body import BODY_TIMEOUT, BadBody, RequestBody, TooSlow

UPLOADS = "/v1/files"
_FRAME_BYTES = 2**16
"""Allowance for the form around the file, bytes."""


class FileTooLarge(BadBody):
    """The upload exceeds the size limit for files."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the file exceeds {limit} bytes (batch.max_file_bytes)")


class UploadBody(RequestBody):
    """Limits the size of an upload and the time between its parts.

    The parts are not JSON, and are written to storage as they arrive, so neither their values nor
    their memory is counted.
    """

    max_file_bytes = 0
    """Maximum size of the file, bytes; set by the middleware."""

    def check_length(self) -> None:
        """Reject an upload whose content-length exceeds the limit.

        Raises:
            FileTooLarge: The content-length exceeds the limit.
        """
        length = Headers(scope=self._scope).get("content-length", "")
        if length.isdigit():
            self._check(int(length))

    def decode(self) -> None:
        """Reject compressed uploads, which could expand to a thousand times their size.

        Raises:
            BadBody: The upload has a content-encoding.
        """
        if Headers(scope=self._scope).get("content-encoding", "identity") != "identity":
            raise BadBody(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "uploads with a content-encoding are not supported: send the file uncompressed",
            )

    async def receive(self) -> Message:
        """Return the next ASGI message of the request.

        Raises:
            BadBody: The upload is too large, or pauses for too long.
        """
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                message = await self._receive()
        except TimeoutError as error:
            self.error = TooSlow()
            raise self.error from error
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            self._check(self._received)
        return message

    def _check(self, size: int) -> None:
        if size > self.max_file_bytes + _FRAME_BYTES:
            self.error = FileTooLarge(self.max_file_bytes)
            raise self.error
