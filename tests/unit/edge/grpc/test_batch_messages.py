"""Files and batches as messages."""

import dataclasses

import pytest

from serving.api.v1 import batch_pb2 as pb
from serving.batch.records import Batch, Status, StoredFile
from serving.edge.grpc.batch_messages import batch_message, file_message

VALIDATING = dict.fromkeys(Batch.__dataclass_fields__) | {
    "batch_id": "batch-1",
    "endpoint": "/v1/completions",
    "input_file_id": "file-1",
    "completion_window": "1h",
    "metadata_json": "null",
    "status": Status.VALIDATING,
    "total": 3,
    "completed": 1,
    "failed": 2,
    "created_at": 5,
    "expires_at": 3605,
}


@pytest.mark.parametrize("status", Status)
def test_every_status_has_its_value(status):
    found = batch_message(Batch(**VALIDATING | {"status": status}))
    assert pb.BatchStatus.Name(found.status) == f"BATCH_STATUS_{status.name}"


def test_what_a_batch_does_not_have_yet_is_unset():
    found = batch_message(Batch(**VALIDATING))
    assert (found.counts.total, found.counts.completed, found.counts.failed) == (3, 1, 2)
    assert not found.metadata
    assert not found.problems
    optional = [each for each in found.DESCRIPTOR.fields if each.name.endswith(("_at", "file_id"))]
    unset = {each.name for each in optional if each.has_presence and not found.HasField(each.name)}
    assert unset == {name for name, value in VALIDATING.items() if value is None} & {
        each.name for each in optional
    }
    assert len(unset) == 9


def test_a_batch_has_its_problems_and_metadata():
    text = '[{"code":"c","message":"m","line":7,"param":null},{"code":"d","message":"n"}]'
    batch = Batch(**VALIDATING | {"errors_json": text, "metadata_json": '{"a": "b"}'})
    found = batch_message(batch)
    assert [(each.code, each.message, each.HasField("line")) for each in found.problems] == [
        ("c", "m", True),
        ("d", "n", False),
    ]
    assert dict(found.metadata) == {"a": "b"}


def test_a_file_has_all_its_fields():
    file = StoredFile("file-1", "t", "name", "batch", 9, 5, None)
    found = file_message(file)
    assert (found.file_id, found.filename, found.purpose) == ("file-1", "name", "batch")
    assert (found.bytes, found.created_at, found.HasField("expires_at")) == (9, 5, False)
    assert file_message(dataclasses.replace(file, expires_at=6)).expires_at == 6
