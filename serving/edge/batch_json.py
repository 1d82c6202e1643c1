"""JSON representations of files and batches, with the names and limits of OpenAI's API."""

import re
from typing import Annotated, Any

import msgspec
from starlette.datastructures import QueryParams

from serving.batch.input_lines import ENDPOINTS
from serving.batch.records import BATCH_PURPOSE, Batch, NewBatch, StoredFile
from serving.errors import InvalidRequest, ResourceNotFound

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_WINDOW = re.compile(r"([1-9]\d{0,4})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_MAX_NAME = 255
MOST_FILES = 10_000
"""Maximum number of files on a page, which is also the default."""
MOST_BATCHES, SOME_BATCHES = 100, 20
"""Maximum number of batches on a page, and the default."""
_LIFETIME = (3600, 30 * 86400)
"""Minimum and maximum of ``seconds`` in ``expires_after``."""

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Value = Annotated[str, msgspec.Meta(max_length=512)]


class _Expiry(msgspec.Struct):
    anchor: str
    seconds: int


class _CreateBatch(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Annotated[dict[Key, Value], msgspec.Meta(max_length=16)] | None = None
    output_expires_after: _Expiry | None = None


def file_json(file: StoredFile) -> dict[str, Any]:
    """Return a file as OpenAI's file object."""
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_json(batch: Batch) -> dict[str, Any]:
    """Return a batch as OpenAI's batch object."""
    errors = None
    if batch.errors_json is not None:
        errors = {"object": "list", "data": msgspec.Raw(batch.errors_json.encode())}
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "in_progress_at": batch.in_progress_at,
        "expires_at": batch.expires_at,
        "finalizing_at": batch.finalizing_at,
        "completed_at": batch.completed_at,
        "failed_at": batch.failed_at,
        "expired_at": batch.expired_at,
        "cancelling_at": batch.cancelling_at,
        "cancelled_at": batch.cancelled_at,
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "metadata": msgspec.Raw(batch.metadata_json.encode()),
    }


def page_json(items: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """Return a page of a list."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": more,
    }


def new_batch(body: bytes, tenant: str, key_id: str | None, max_window: float) -> NewBatch:
    """Validate the body of a request to create a batch.

    Raises:
        InvalidRequest: A field is missing or invalid.
    """
    try:
        given = msgspec.json.decode(body, type=_CreateBatch)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is invalid: {error}") from error
    if given.endpoint not in ENDPOINTS:
        raise InvalidRequest(f"endpoint must be one of {', '.join(sorted(ENDPOINTS))}")
    expiry = given.output_expires_after
    lifetime = None if expiry is None else lifetime_of(expiry.anchor, str(expiry.seconds))
    return NewBatch(
        tenant,
        key_id,
        given.endpoint,
        checked_id(given.input_file_id),
        given.completion_window,
        _window(given.completion_window, max_window),
        msgspec.json.encode(given.metadata).decode(),
        lifetime,
    )


def lifetime_of(anchor: str | None, seconds: str | None) -> int | None:
    """Return the seconds until a file is deleted, or None if not given.

    Raises:
        InvalidRequest: The values are invalid.
    """
    if anchor is None and seconds is None:
        return None
    least, most = _LIFETIME
    valid = seconds is not None and re.fullmatch(r"\d{1,9}", seconds, re.ASCII)
    if anchor != "created_at" or not valid or not least <= int(seconds or 0) <= most:
        raise InvalidRequest(
            f"expires_after must have anchor created_at and {least} to {most} seconds"
        )
    return int(seconds or 0)


def check_purpose(purpose: str | None) -> None:
    """Check the purpose of an upload.

    Raises:
        InvalidRequest: The purpose is not ``batch``.
    """
    if purpose != BATCH_PURPOSE:
        raise InvalidRequest(f"purpose must be {BATCH_PURPOSE}, got {purpose!r}")


def filename_of(text: str) -> str:
    """Return the display name of a file."""
    return text.replace("\0", "")[:_MAX_NAME] or "upload"


def checked_id(text: str) -> str:
    """Parse the id of a file or batch.

    Raises:
        ResourceNotFound: The text is not an id, so there is no such file or batch.
    """
    if not _ID.fullmatch(text):
        raise ResourceNotFound(f"there is no file or batch {text[:64]!r}")
    return text


def limit_of(params: QueryParams, *, default: int, most: int) -> int:
    """Return the maximum number of items on a page.

    Raises:
        InvalidRequest: ``limit`` is out of range.
    """
    given = params.get("limit")
    if given is None:
        return default
    if not re.fullmatch(r"\d{1,5}", given, re.ASCII) or not 1 <= int(given) <= most:
        raise InvalidRequest(f"limit must be 1 to {most}")
    return int(given)


def _window(text: str, most: float) -> int:
    match = _WINDOW.fullmatch(text)
    seconds = 0 if match is None else int(match[1]) * _SECONDS[match[2]]
    if not 0 < seconds <= most:
        raise InvalidRequest(
            "completion_window must be a number and m, h or d, e.g. 24h, of at most "
            f"{most / 3600:g}h (batch.max_window), got {text!r}"
        )
    return seconds
