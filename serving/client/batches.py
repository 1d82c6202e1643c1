"""A blocking REST client for files and batches; file contents are streamed in both directions."""

import http.client
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from serving.client.errors import class_of_status, message_of
from serving.client.rest import RestClient, decoded
from serving.errors import DeadlineExceeded, InvalidRequest, NotReady

_TIMEOUT = 120.0
"""Timeout of each read and write, seconds."""
_PART = 2**20
_OK = 200

Progress = Callable[[int, int], None]
"""Called with the bytes sent so far and in total."""


class BatchClient:
    """Client for the files and batches of one router."""

    def __init__(self, rest: RestClient) -> None:
        """Use a REST client."""
        self._rest = rest

    def upload(self, path: Path, progress: Progress) -> dict[str, Any]:
        """Upload an input file; return OpenAI's file object.

        Raises:
            InvalidRequest: The file cannot be read.
            ServingError: The router rejected the request, or is not reachable.
        """
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; '
            f'filename="{path.name.replace(chr(34), "_")}"\r\n'
            "content-type: application/jsonl\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                headers = {
                    "content-type": f"multipart/form-data; boundary={boundary}",
                    "content-length": str(len(head) + size + len(tail)),
                }
                parts = _form(head, file, size, tail, progress)
                return self._call("POST", "/v1/files", parts, headers)
        except FileNotFoundError as error:
            raise InvalidRequest(f"{path} does not exist") from error

    def create(self, body: bytes) -> dict[str, Any]:
        """Create a batch from a JSON body; return OpenAI's batch object.

        Raises:
            ServingError: The router rejected the request, or is not reachable.
        """
        return self._call("POST", "/v1/batches", body)

    def get(self, batch_id: str) -> dict[str, Any]:
        """Return a batch.

        Raises:
            ServingError: There is no such batch, or the router is not reachable.
        """
        return self._call("GET", f"/v1/batches/{batch_id}")

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest batches.

        Raises:
            ServingError: The router is not reachable.
        """
        found: list[dict[str, Any]] = self._call("GET", f"/v1/batches?limit={limit}")["data"]
        return found

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Cancel a batch; return it.

        Raises:
            ServingError: The batch has ended, or the router is not reachable.
        """
        return self._call("POST", f"/v1/batches/{batch_id}/cancel", b"{}")

    def content(self, file_id: str) -> Iterator[bytes]:
        """Yield the content of a file in parts.

        Raises:
            ServingError: There is no such file, or the router is not reachable.
        """
        path = f"/v1/files/{file_id}/content"
        with _Failures(self._rest.url), self._rest.response("GET", path, _TIMEOUT) as answer:
            _check(answer)
            while part := answer.read(_PART):
                yield part

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        with (
            _Failures(self._rest.url),
            self._rest.response(method, path, _TIMEOUT, body, headers) as answer,
        ):
            _check(answer)
            found: dict[str, Any] = decoded(answer.read())
            return found


class _Failures:
    """Converts failures of the connection to ``serving.errors``."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise DeadlineExceeded(f"{self._url} did not respond in time") from error
        if isinstance(error, FileNotFoundError):
            return
        if isinstance(error, OSError | http.client.HTTPException):
            raise NotReady(f"cannot reach the router at {self._url}: {error}") from error


def _check(answer: http.client.HTTPResponse) -> None:
    if answer.status != _OK:
        text = message_of(decoded(answer.read()) or answer.reason)
        raise class_of_status(answer.status)(text)


def _form(
    head: bytes, file: BinaryIO, size: int, tail: bytes, progress: Progress
) -> Iterator[bytes]:
    yield head
    sent = 0
    while part := file.read(min(_PART, size - sent)):
        yield part
        sent += len(part)
        progress(sent, size)
    yield tail
