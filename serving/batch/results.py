"""Result files: one line per answer, in the order of the input file, with OpenAI's fields."""

from dataclasses import dataclass, field

from serving.batch.batches import BatchTable
from serving.batch.files import FileStore, Upload
from serving.batch.lines import LineTable, Result
from serving.batch.objects import PART_BYTES
from serving.batch.records import OUTPUT_PURPOSE, Batch, Status
from serving.batch.result_lines import content_of
from serving.batch.schema import COMPLETED, FAILED

_NOT_RUN = {
    Status.EXPIRED: ("batch_expired", "the completion window passed before this line was run"),
    Status.CANCELLED: ("batch_cancelled", "the batch was cancelled before this line was run"),
}


@dataclass(slots=True)
class _File:
    """A result file, which is created with its first line."""

    files: FileStore
    tenant: str
    upload: Upload | None = None
    pending: bytearray = field(default_factory=bytearray)

    def add(self, line: bytes) -> None:
        self.pending += line
        if len(self.pending) >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.upload is None:
            self.upload = self.files.begin(self.tenant, OUTPUT_PURPOSE)
        self.upload.write(bytes(self.pending))
        self.pending.clear()

    def finish(self, filename: str, lifetime: int | None) -> str | None:
        if self.pending:
            self.flush()
        if self.upload is None:
            return None
        upload, self.upload = self.upload, None
        return self.files.finish(upload, filename, lifetime).file_id

    def abort(self) -> None:
        if self.upload is not None:
            self.files.abort(self.upload)


def write_results(batch: Batch, batches: BatchTable, lines: LineTable, files: FileStore) -> bool:
    """Write the result files of a batch that this process owns, end it, and remove its lines.

    Blocks. If the process ends before it returns, another one starts again, and the unfinished
    files are swept.

    Returns:
        False if another process has already ended the batch.

    Raises:
        StorageFull: The storage has no room; the batch stays as it is.
        NotReady: The database fails.
    """
    output, errors = _File(files, batch.tenant), _File(files, batch.tenant)
    written: list[str] = []
    try:
        for result in lines.results(batch.batch_id):
            target = output if result.state == COMPLETED else errors
            target.add(_line(batch, result))
        names = []
        for file, kind in ((output, "output"), (errors, "errors")):
            name = file.finish(f"{batch.batch_id}_{kind}.jsonl", batch.results_lifetime)
            names.append(name)
            if name is not None:
                written.append(name)
        ended = batches.end(batch, *names)
    except BaseException:
        output.abort()
        errors.abort()
        for name in written:
            # The end may have been committed although the database failed.
            files.delete_unless_used(name)
        raise
    if ended:
        lines.clear(batch.batch_id)
    else:
        _delete(files, batch.tenant, written)
    return ended


def _delete(files: FileStore, tenant: str, names: list[str]) -> None:
    for name in names:
        files.delete(tenant, name)


def _line(batch: Batch, result: Result) -> bytes:
    content = result.answer
    if content is None or result.state not in {COMPLETED, FAILED}:
        code, message = _NOT_RUN.get(batch.outcome or Status.EXPIRED, _NOT_RUN[Status.EXPIRED])
        content = content_of(result.custom_id, error={"code": code, "message": message})
    number = f"batch_req_{batch.batch_id.removeprefix('batch-')}_{result.line}"
    return b'{"id":"' + number.encode() + b'",' + content[1:] + b"\n"
