"""Parses the form of a file upload, and writes the file to storage as it arrives."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from serving.batch.objects import PART_BYTES
from serving.edge.batch_json import filename_of
from serving.errors import Cancelled, InvalidRequest

if TYPE_CHECKING:  # import SQLAlchemy, which a router without batches does not need
    from serving.batch.files import Upload
    from serving.batch.store import BatchStore

_MAX_FIELD_BYTES = 4096
_MAX_FIELDS = 16


@dataclass(slots=True)
class UploadForm:
    """A complete form, whose file has been written but is not visible yet."""

    upload: "Upload"
    filename: str
    fields: dict[str, str]
    """Fields other than the file."""


@dataclass(slots=True)
class _Part:
    """The part of the form that is being read."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    is_file: bool = False
    data: bytearray = field(default_factory=bytearray)


class _Reader:
    """Callbacks of the parser; file data collects in ``pending`` until it is written."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.pending = bytearray()
        self.complete = False
        self._part = _Part()
        self._header = bytearray()
        self._value = bytearray()

    def begin(self) -> None:
        self._part = _Part()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._part.headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        name, filename = options.get(b"name", b""), options.get(b"filename")
        self._part.name = name.decode("utf-8", "replace")
        if self._part.name != "file":
            return
        if self.filename is not None:
            raise InvalidRequest("the form has more than one file")
        self._part.is_file = True
        self.filename = filename_of((filename or b"").decode("utf-8", "replace"))

    def data(self, data: bytes, start: int, end: int) -> None:
        if self._part.is_file:
            self.pending += data[start:end]
        elif len(self._part.data) + end - start > _MAX_FIELD_BYTES:
            raise InvalidRequest(f"a field of the form exceeds {_MAX_FIELD_BYTES} bytes")
        else:
            self._part.data += data[start:end]

    def end(self) -> None:
        part = self._part
        if part.is_file:
            return
        if len(self.fields) >= _MAX_FIELDS:
            raise InvalidRequest(f"the form has more than {_MAX_FIELDS} fields")
        self.fields[part.name] = part.data.decode("utf-8", "replace")

    def finish(self) -> None:
        self.complete = True


async def read_form(request: Request, store: "BatchStore", tenant: str) -> UploadForm:
    """Read a form with one file; if the form is invalid, the written data is discarded.

    Raises:
        InvalidRequest: The form is malformed or incomplete.
        Cancelled: The client disconnected.
        Overloaded: The tenant has too many files.
        StorageFull: The storage is full.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest(
            "send the file as multipart/form-data with the fields file and purpose"
        )
    length = request.headers.get("content-length", "")
    expected = int(length) if length.isascii() and length.isdigit() else 0
    upload = await store.begin_upload(tenant, expected=expected)
    try:
        reader = await _read(request.stream(), boundary, store, upload)
    except BaseException:
        await store.run(store.files.abort, upload)
        raise
    assert reader.filename is not None
    return UploadForm(upload, reader.filename, reader.fields)


async def _read(
    parts: AsyncIterator[bytes], boundary: bytes, store: "BatchStore", upload: "Upload"
) -> _Reader:
    reader = _Reader()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": reader.begin,
            "on_part_data": reader.data,
            "on_part_end": reader.end,
            "on_header_field": reader.header_field,
            "on_header_value": reader.header_value,
            "on_header_end": reader.header_end,
            "on_headers_finished": reader.headers_finished,
            "on_end": reader.finish,
        },
    )
    try:
        async for part in parts:
            parser.write(part)
            if len(reader.pending) >= PART_BYTES:
                await _write(reader, store, upload)
    except MultipartParseError as error:
        raise InvalidRequest(f"the form is malformed: {error}") from error
    except ClientDisconnect as error:
        raise Cancelled("the upload was cut off") from error
    if not reader.complete:
        raise InvalidRequest("the form is incomplete: its last boundary is missing")
    if reader.filename is None:
        raise InvalidRequest("the form has no field file")
    await _write(reader, store, upload)
    return reader


async def _write(reader: _Reader, store: "BatchStore", upload: "Upload") -> None:
    data, reader.pending = reader.pending, bytearray()
    if data:
        await store.run(upload.write, bytes(data))
