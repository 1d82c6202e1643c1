"""OpenAI's routes for files and batches. A tenant sees only its own files and batches."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from serving.batch.objects import PART_BYTES
from serving.batch.records import Batch, NewBatch, StoredFile
from serving.edge.auth.authenticator import principal_var
from serving.edge.batch_json import (
    MOST_BATCHES,
    MOST_FILES,
    SOME_BATCHES,
    batch_json,
    check_purpose,
    checked_id,
    file_json,
    lifetime_of,
    limit_of,
    new_batch,
    page_json,
)
from serving.edge.rest.upload_form import read_form
from serving.errors import InvalidRequest, Unsupported

if TYPE_CHECKING:  # imports SQLAlchemy, which a router without batches does not need
    from serving.batch.store import BatchStore


class BatchAccess(Protocol):
    """Operations that the pages use; implemented by ``serving.batch.service.BatchService``."""

    store: "BatchStore"
    max_window: float
    """Maximum completion window, seconds."""
    max_file_bytes: int
    """Maximum size of a file, bytes."""

    async def create(self, new: NewBatch) -> Batch:
        """Create a batch and start it."""
        ...

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Cancel a batch."""
        ...


class _Pages:
    """Handlers of the routes."""

    def __init__(self, batches: BatchAccess | None) -> None:
        self._batches = batches

    async def upload(self, request: Request) -> Response:
        """Upload a file (OpenAI)."""
        store, tenant = self._access().store, principal_var.get().tenant
        form = await read_form(request, store, tenant)
        try:
            check_purpose(form.fields.get("purpose"))
            lifetime = lifetime_of(
                form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]")
            )
        except InvalidRequest:
            await store.run(store.files.abort, form.upload)
            raise
        file = await store.run(store.files.finish, form.upload, form.filename, lifetime)
        return _json(file_json(file))

    async def list_files(self, request: Request) -> Response:
        """List the tenant's files (OpenAI)."""
        store, params = self._access().store, request.query_params
        purpose = params.get("purpose")
        order = params.get("order", "desc")
        if order not in {"asc", "desc"}:
            raise InvalidRequest("order must be asc or desc")
        files, more = await store.run(
            store.files.page,
            principal_var.get().tenant,
            after=_after(request),
            limit=limit_of(params, default=MOST_FILES, most=MOST_FILES),
            descending=order == "desc",
            purpose=None if purpose is None else checked_id(purpose),
        )
        return _json(page_json([file_json(file) for file in files], more=more))

    async def get_file(self, file_id: str) -> Response:
        """Describe a file (OpenAI)."""
        return _json(file_json(await self._file(file_id)))

    async def content(self, file_id: str) -> Response:
        """Return the content of a file (OpenAI)."""
        file = await self._file(file_id)
        return StreamingResponse(
            _parts(self._access().store, file),
            media_type="application/octet-stream",
            headers={"content-length": str(file.bytes)},
        )

    async def delete_file(self, file_id: str) -> Response:
        """Delete a file (OpenAI)."""
        store = self._access().store
        await store.run(store.files.delete, principal_var.get().tenant, checked_id(file_id))
        return _json({"id": file_id, "object": "file", "deleted": True})

    async def create(self, request: Request) -> Response:
        """Create a batch (OpenAI)."""
        access, principal = self._access(), principal_var.get()
        new = new_batch(await request.body(), principal.tenant, principal.key_id, access.max_window)
        return _json(batch_json(await access.create(new)))

    async def list_batches(self, request: Request) -> Response:
        """List the tenant's batches, newest first (OpenAI)."""
        store, params = self._access().store, request.query_params
        batches, more = await store.run(
            store.batches.page,
            principal_var.get().tenant,
            after=_after(request),
            limit=limit_of(params, default=SOME_BATCHES, most=MOST_BATCHES),
        )
        return _json(page_json([batch_json(batch) for batch in batches], more=more))

    async def get_batch(self, batch_id: str) -> Response:
        """Describe a batch (OpenAI)."""
        store = self._access().store
        found = await store.run(store.batches.get, principal_var.get().tenant, checked_id(batch_id))
        return _json(batch_json(found))

    async def cancel(self, batch_id: str) -> Response:
        """Cancel a batch (OpenAI)."""
        found = await self._access().cancel(principal_var.get().tenant, checked_id(batch_id))
        return _json(batch_json(found))

    def _access(self) -> BatchAccess:
        if self._batches is None:
            raise Unsupported("this router has no batches: set batch.directory")
        return self._batches

    async def _file(self, file_id: str) -> StoredFile:
        store = self._access().store
        return await store.run(store.files.get, principal_var.get().tenant, checked_id(file_id))


def _after(request: Request) -> str | None:
    after = request.query_params.get("after")
    return None if after is None else checked_id(after)


async def _parts(store: "BatchStore", file: StoredFile) -> AsyncIterator[bytes]:
    start = 0
    while start < file.bytes:
        part = await store.run(store.files.read, file.file_id, start, PART_BYTES)
        if not part:
            return
        start += len(part)
        yield part


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


def add_batch_pages(app: FastAPI, batches: BatchAccess | None) -> None:
    """Add the routes to the router's app. If ``batches`` is None, the router has no batches."""
    pages = _Pages(batches)
    for method, path, endpoint in (
        ("POST", "/v1/files", pages.upload),
        ("GET", "/v1/files", pages.list_files),
        ("GET", "/v1/files/{file_id}", pages.get_file),
        ("DELETE", "/v1/files/{file_id}", pages.delete_file),
        ("GET", "/v1/files/{file_id}/content", pages.content),
        ("POST", "/v1/batches", pages.create),
        ("GET", "/v1/batches", pages.list_batches),
        ("GET", "/v1/batches/{batch_id}", pages.get_batch),
        ("POST", "/v1/batches/{batch_id}/cancel", pages.cancel),
    ):
        app.add_api_route(path, endpoint, methods=[method])
