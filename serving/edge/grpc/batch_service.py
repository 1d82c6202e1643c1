"""BatchService: files and batches over gRPC, with the rules and limits of the REST routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from starlette.datastructures import QueryParams

from serving.api.v1 import batch_pb2 as pb
from serving.api.v1 import batch_pb2_grpc
from serving.batch.objects import PART_BYTES
from serving.edge.auth.authenticator import principal_var
from serving.edge.batch_json import (
    MOST_BATCHES,
    MOST_FILES,
    SOME_BATCHES,
    check_purpose,
    checked_id,
    filename_of,
    lifetime_of,
    limit_of,
    new_batch,
)
from serving.edge.batch_pages import BatchAccess
from serving.edge.gate import DrainGate
from serving.edge.grpc.batch_messages import batch_message, file_message
from serving.edge.grpc.errors import BadField, rpc_error
from serving.edge.rest.request_body import BODY_TIMEOUT
from serving.errors import DeadlineExceeded, InvalidRequest, ServingError, Unsupported

if TYPE_CHECKING:  # imports SQLAlchemy, which a router without batches does not need
    from serving.batch.files import Upload
    from serving.batch.store import BatchStore

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.edge")


class BatchService(batch_pb2_grpc.BatchServiceServicer):
    """Serves ``serving.api.v1.BatchService``."""

    def __init__(self, batches: BatchAccess | None, gate: DrainGate) -> None:
        """Create the service.

        Args:
            batches: Files and batches. If None, batches are disabled.
            gate: Rejects calls while the router drains, as over REST.
        """
        self._batches = batches
        self._gate = gate

    async def UploadFile(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadFileRequest], context: Any
    ) -> pb.UploadFileResponse:
        """Write a file to storage as it arrives."""
        async with self._answering(context) as access:
            store = access.store
            described = await _described(request_iterator)
            check_purpose(described.purpose)
            lifetime = _lifetime(described, "expires_after_seconds")
            expected = described.expected_bytes
            _check_size(expected, access.max_file_bytes)
            tenant = principal_var.get().tenant
            upload = await store.begin_upload(tenant, expected=expected)
            try:
                await _receive(request_iterator, store, upload, access.max_file_bytes)
            except BaseException:
                await store.run(store.files.abort, upload)
                raise
            name = filename_of(described.filename)
            file = await store.run(store.files.finish, upload, name, lifetime)
            return pb.UploadFileResponse(file=file_message(file))
        raise AssertionError("abort did not raise")

    async def ListFiles(  # noqa: N802
        self, request: pb.ListFilesRequest, context: Any
    ) -> pb.ListFilesResponse:
        """Return a page of the tenant's files."""
        async with self._answering(context) as access:
            files, more = await access.store.run(
                access.store.files.page,
                principal_var.get().tenant,
                after=checked_id(request.after) if request.after else None,
                limit=_limit(request, MOST_FILES, MOST_FILES),
                descending=not request.ascending,
                purpose=checked_id(request.purpose) if request.purpose else None,
            )
            return pb.ListFilesResponse(files=map(file_message, files), has_more=more)
        raise AssertionError("abort did not raise")

    async def GetFile(  # noqa: N802
        self, request: pb.GetFileRequest, context: Any
    ) -> pb.GetFileResponse:
        """Describe a file."""
        async with self._answering(context) as access:
            store = access.store
            file = await store.run(
                store.files.get, principal_var.get().tenant, checked_id(request.file_id)
            )
            return pb.GetFileResponse(file=file_message(file))
        raise AssertionError("abort did not raise")

    async def GetFileContent(  # type: ignore[override]  # noqa: N802  writes to the context itself
        self, request: pb.GetFileContentRequest, context: Any
    ) -> None:
        """Send the content of a file part by part, as fast as the client reads it."""
        async with self._answering(context) as access:
            store = access.store
            file = await store.run(
                store.files.get, principal_var.get().tenant, checked_id(request.file_id)
            )
            start = 0
            while start < file.bytes:
                part = await store.run(store.files.read, file.file_id, start, PART_BYTES)
                if not part:
                    raise ServingError(f"the content of {file.file_id} ends at byte {start}")
                start += len(part)
                await context.write(pb.GetFileContentResponse(data=part))

    async def DeleteFile(  # noqa: N802
        self, request: pb.DeleteFileRequest, context: Any
    ) -> pb.DeleteFileResponse:
        """Delete a file."""
        async with self._answering(context) as access:
            store = access.store
            await store.run(
                store.files.delete, principal_var.get().tenant, checked_id(request.file_id)
            )
        return pb.DeleteFileResponse()

    async def CreateBatch(  # noqa: N802
        self, request: pb.CreateBatchRequest, context: Any
    ) -> pb.CreateBatchResponse:
        """Create a batch."""
        async with self._answering(context) as access:
            principal = principal_var.get()
            # Reuses the validation of the REST route, so that the two cannot differ.
            body: dict[str, Any] = {
                "input_file_id": request.input_file_id,
                "endpoint": request.endpoint,
                "completion_window": request.completion_window,
                "metadata": dict(request.metadata) or None,
            }
            if request.HasField("output_expires_after_seconds"):
                seconds = request.output_expires_after_seconds
                body["output_expires_after"] = {"anchor": "created_at", "seconds": seconds}
            new = new_batch(
                msgspec.json.encode(body), principal.tenant, principal.key_id, access.max_window
            )
            return pb.CreateBatchResponse(batch=batch_message(await access.create(new)))
        raise AssertionError("abort did not raise")

    async def ListBatches(  # noqa: N802
        self, request: pb.ListBatchesRequest, context: Any
    ) -> pb.ListBatchesResponse:
        """Return a page of the tenant's batches."""
        async with self._answering(context) as access:
            batches, more = await access.store.run(
                access.store.batches.page,
                principal_var.get().tenant,
                after=checked_id(request.after) if request.after else None,
                limit=_limit(request, SOME_BATCHES, MOST_BATCHES),
            )
            return pb.ListBatchesResponse(batches=map(batch_message, batches), has_more=more)
        raise AssertionError("abort did not raise")

    async def GetBatch(  # noqa: N802
        self, request: pb.GetBatchRequest, context: Any
    ) -> pb.GetBatchResponse:
        """Describe a batch."""
        async with self._answering(context) as access:
            store = access.store
            found = await store.run(
                store.batches.get, principal_var.get().tenant, checked_id(request.batch_id)
            )
            return pb.GetBatchResponse(batch=batch_message(found))
        raise AssertionError("abort did not raise")

    async def CancelBatch(  # noqa: N802
        self, request: pb.CancelBatchRequest, context: Any
    ) -> pb.CancelBatchResponse:
        """Cancel a batch."""
        async with self._answering(context) as access:
            tenant = principal_var.get().tenant
            found = await access.cancel(tenant, checked_id(request.batch_id))
            return pb.CancelBatchResponse(batch=batch_message(found))
        raise AssertionError("abort did not raise")

    def _access(self) -> BatchAccess:
        if self._batches is None:
            raise Unsupported("this router has no batches: set batch.directory")
        return self._batches

    @asynccontextmanager
    async def _answering(self, context: Any) -> AsyncIterator[BatchAccess]:
        """Yield the batches; exceptions end the call with the matching status."""
        try:
            self._gate.check()
            with self._gate.track():
                yield self._access()
        except Exception as error:
            failure = rpc_error(error)
            if not isinstance(error, ServingError):
                log.exception("unhandled exception")
            await context.abort(failure.code, failure.status.message, failure.trailers)


async def _next(requests: AsyncIterator[pb.UploadFileRequest]) -> pb.UploadFileRequest | None:
    """Return the next message of an upload; None when it is complete.

    Raises:
        DeadlineExceeded: The client pauses for too long.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await anext(requests, None)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"no part of the upload arrived within {BODY_TIMEOUT:.0f} seconds"
        ) from error


async def _described(requests: AsyncIterator[pb.UploadFileRequest]) -> pb.FileDescription:
    """Return the first message of an upload.

    Raises:
        InvalidRequest: The message does not contain a description.
    """
    first = await _next(requests)
    if first is None or first.WhichOneof("part") != "description":
        raise BadField("description", "the first message of an upload must have it")
    return first.description


async def _receive(
    requests: AsyncIterator[pb.UploadFileRequest],
    store: "BatchStore",
    upload: "Upload",
    most: int,
) -> None:
    """Write the content of an upload to storage.

    Raises:
        InvalidRequest: A message has no data, or the file is too large.
        StorageFull: The storage is full or cannot be written.
    """
    while (message := await _next(requests)) is not None:
        if message.WhichOneof("part") != "data":
            raise BadField("data", "all messages of an upload but the first must have it")
        _check_size(upload.size + len(message.data), most)
        if message.data:
            await store.run(upload.write, message.data)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise InvalidRequest(f"the file exceeds {most} bytes (batch.max_file_bytes)")


def _lifetime(message: Any, field: str) -> int | None:
    given = message.HasField(field)
    return lifetime_of("created_at", str(getattr(message, field))) if given else None


def _limit(message: Any, default: int, most: int) -> int:
    given = {"limit": str(message.limit)} if message.HasField("limit") else {}
    return limit_of(QueryParams(given), default=default, most=most)
