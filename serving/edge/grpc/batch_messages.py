"""Files and batches as messages of ``serving.api.v1``."""

import msgspec

from serving.api.v1 import batch_pb2 as pb
from serving.batch.records import Batch, Problem, StoredFile

_metadata = msgspec.json.Decoder(dict[str, str] | None)
_problems = msgspec.json.Decoder(list[Problem])


def file_message(file: StoredFile) -> pb.File:
    """Return the message of a file."""
    return pb.File(
        file_id=file.file_id,
        filename=file.filename,
        purpose=file.purpose,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
    )


def batch_message(batch: Batch) -> pb.Batch:
    """Return the message of a batch."""
    problems = [] if batch.errors_json is None else _problems.decode(batch.errors_json)
    return pb.Batch(
        batch_id=batch.batch_id,
        status=f"BATCH_STATUS_{batch.status.name}",
        endpoint=batch.endpoint,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        metadata=_metadata.decode(batch.metadata_json),
        counts=pb.LineCounts(total=batch.total, completed=batch.completed, failed=batch.failed),
        problems=[
            pb.BatchProblem(code=each.code, message=each.message, line=each.line)
            for each in problems
        ],
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        in_progress_at=batch.in_progress_at,
        finalizing_at=batch.finalizing_at,
        completed_at=batch.completed_at,
        failed_at=batch.failed_at,
        expired_at=batch.expired_at,
        cancelling_at=batch.cancelling_at,
        cancelled_at=batch.cancelled_at,
    )
