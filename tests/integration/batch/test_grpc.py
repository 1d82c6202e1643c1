"""BatchService of a whole router: the same files and batches as over REST."""

import json
import os

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving.api.v1 import batch_pb2 as pb
from serving.api.v1 import batch_pb2_grpc
from serving.batch.objects import PART_BYTES
from serving.edge.auth.keys import digest_of
from tests.integration.edge.stand import stand_settings, standing
from tests.support.batches import CHATS, line
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALICE, BOB = (f"moe-key-of-{name}-over-grpc" for name in ("alice", "bob"))
KEYS = f"""
keys:
  - {{id: alice-1, tenant: alice, hash: "{digest_of(ALICE)}"}}
  - {{id: bob-1, tenant: bob, hash: "{digest_of(BOB)}"}}
"""
MAX_FILE = 3 * 2**20
SERVICE = pb.DESCRIPTOR.services_by_name["BatchService"]


def metadata(key):
    return (("authorization", f"Bearer {key}"),)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    (folder / "keys.yaml").write_text(KEYS)
    settings = stand_settings(
        security={"keys_file": str(folder / "keys.yaml")},
        batch={
            "directory": str(folder / "batches"),
            "interval": 0.05,
            "max_file_bytes": MAX_FILE,
        },
    )
    async with standing(settings) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(stand):
    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        yield batch_pb2_grpc.BatchServiceStub(channel)


def described(**fields):
    description = pb.FileDescription(**{"purpose": "batch", "filename": "lines.jsonl"} | fields)
    return pb.UploadFileRequest(description=description)


def parts(content, size=PART_BYTES):
    for start in range(0, len(content), size):
        yield pb.UploadFileRequest(data=content[start : start + size])


async def upload(stub, content, key=ALICE, **fields):
    """Upload a file; retry if grpc.aio's client does not report how the server ended the call.

    A message that the client writes at that time fails, and its status replaces the server's.
    """
    while True:
        messages = iter([described(**fields), *parts(content)])
        call = stub.UploadFile(messages, metadata=metadata(key), timeout=PATIENCE)
        try:
            return (await call).file
        except grpc.aio.AioRpcError as error:
            if "execute_batch" not in (error.debug_error_string() or ""):
                raise


async def content_of(stub, file_id, key=ALICE):
    request = pb.GetFileContentRequest(file_id=file_id)
    return [part.data async for part in stub.GetFileContent(request, metadata=metadata(key))]


async def create(stub, file, **fields):
    request = pb.CreateBatchRequest(
        **{"input_file_id": file.file_id, "endpoint": CHATS, "completion_window": "1h"} | fields
    )
    return (await stub.CreateBatch(request, metadata=metadata(ALICE))).batch


async def ended(stub, batch):
    async def done():
        request = pb.GetBatchRequest(batch_id=batch.batch_id)
        found = (await stub.GetBatch(request, metadata=metadata(ALICE))).batch
        final = {pb.BATCH_STATUS_COMPLETED, pb.BATCH_STATUS_FAILED, pb.BATCH_STATUS_CANCELLED}
        return found if found.status in final else None

    return await eventually(done, f"the end of {batch.batch_id}", interval=0.02)


async def refused(call, code, reason):
    """Assert that a call is rejected with a status, and return the message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(caught.value).details[0].Unpack(info)
    assert info.reason == reason
    return caught.value.details()


def lines(*names):
    return b"\n".join(line(name, model="pocket-r1", max_tokens=4) for name in names)


async def test_a_batch_runs_from_upload_to_results(stub):
    content = lines("a", "b") + b"\nno JSON"
    file = await upload(stub, content)
    assert (file.purpose, file.bytes, file.filename) == ("batch", len(content), "lines.jsonl")
    batch = await create(stub, file, metadata={"a": "b"}, output_expires_after_seconds=3600)
    assert batch.status == pb.BATCH_STATUS_VALIDATING
    assert not batch.HasField("completed_at")
    found = await ended(stub, batch)
    assert found.status == pb.BATCH_STATUS_COMPLETED
    assert (found.counts.total, found.counts.completed, found.counts.failed) == (3, 2, 1)
    assert dict(found.metadata) == {"a": "b"}
    assert [(each.code, each.line) for each in found.problems] == [("invalid_json_line", 3)]
    assert found.created_at <= found.in_progress_at <= found.completed_at <= found.expires_at
    answers = b"".join(await content_of(stub, found.output_file_id)).splitlines()
    assert [json.loads(each)["custom_id"] for each in answers] == ["a", "b"]
    assert len(b"".join(await content_of(stub, found.error_file_id)).splitlines()) == 1
    request = pb.GetFileRequest(file_id=found.output_file_id)
    output = (await stub.GetFile(request, metadata=metadata(ALICE))).file
    assert output.expires_at - output.created_at == 3600


async def test_rest_and_grpc_have_the_same_files_and_batches(stand, stub):
    file = await upload(stub, lines("a"))
    batch = await ended(stub, await create(stub, file))
    async with httpx.AsyncClient(
        base_url=stand.router.addresses.rest, headers=dict(metadata(ALICE)), timeout=PATIENCE
    ) as rest:
        shown = (await rest.get(f"/v1/batches/{batch.batch_id}")).json()
        files = (await rest.get("/v1/files")).json()
    assert shown["status"] == "completed"
    for name in ("created_at", "in_progress_at", "finalizing_at", "completed_at", "expires_at"):
        assert shown[name] == getattr(batch, name)
    assert shown["output_file_id"] == batch.output_file_id
    listed = await stub.ListFiles(pb.ListFilesRequest(), metadata=metadata(ALICE))
    assert [each["id"] for each in files["data"]] == [each.file_id for each in listed.files]


async def test_lists_have_pages_in_both_orders(stub):
    made = [(await upload(stub, lines("a"))).file_id for _ in range(3)]

    async def page(**fields):
        request = pb.ListFilesRequest(limit=2, purpose="batch", **fields)
        answer = await stub.ListFiles(request, metadata=metadata(ALICE))
        return [each.file_id for each in answer.files], answer.has_more

    assert (await page())[0] == made[:0:-1]
    assert (await page(after=made[0], ascending=True)) == (made[1:], False)
    batches = [(await create(stub, await upload(stub, lines("a")))).batch_id for _ in range(2)]
    request = pb.ListBatchesRequest(limit=1, after=batches[1])
    answer = await stub.ListBatches(request, metadata=metadata(ALICE))
    assert [each.batch_id for each in answer.batches] == batches[:1]
    assert answer.has_more


async def test_a_large_content_comes_in_parts_and_can_be_deleted(stub):
    content = bytes(range(256)) * (MAX_FILE // 256)
    file = await upload(stub, content, expected_bytes=MAX_FILE)
    found = await content_of(stub, file.file_id)
    assert b"".join(found) == content
    assert max(map(len, found)) == PART_BYTES
    request = pb.DeleteFileRequest(file_id=file.file_id)
    await stub.DeleteFile(request, metadata=metadata(ALICE))
    call = stub.DeleteFile(request, metadata=metadata(ALICE))
    await refused(call, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_batch_is_cancelled_once_and_its_file_is_kept_until_then(stand, stub):
    await stand.leave()
    file = await upload(stub, lines("a", "b"))
    batch = await create(stub, file)
    await eventually(lambda: stand.router.batches.scheduler.waiting == 2, "the lines")
    delete = stub.DeleteFile(pb.DeleteFileRequest(file_id=file.file_id), metadata=metadata(ALICE))
    said = await refused(delete, grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT")
    assert batch.batch_id in said
    request = pb.CancelBatchRequest(batch_id=batch.batch_id)
    cancelled = (await stub.CancelBatch(request, metadata=metadata(ALICE))).batch
    assert cancelled.status == pb.BATCH_STATUS_CANCELLING
    assert (await ended(stub, batch)).status == pb.BATCH_STATUS_CANCELLED
    call = stub.CancelBatch(request, metadata=metadata(ALICE))
    await refused(call, grpc.StatusCode.FAILED_PRECONDITION, "CONFLICT")
    await stand.join("g9", step=2)


DESCRIBED, DATA = described(), pb.UploadFileRequest(data=b"x")
LARGE = [described(), *parts(bytes(MAX_FILE)), DATA]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        pytest.param([], "first message", id="nothing"),
        pytest.param([DATA], "first message", id="no description"),
        pytest.param([pb.UploadFileRequest()], "first message", id="empty message"),
        pytest.param([DESCRIBED, DESCRIBED], "data", id="two descriptions"),
        pytest.param([described(purpose="fine-tune")], "purpose must be", id="purpose"),
        pytest.param([described(expires_after_seconds=9)], "expires_after", id="expiry"),
        pytest.param(LARGE, "batch.max_file_bytes", id="large"),
        pytest.param([described(expected_bytes=2**63)], "batch.max_file_bytes", id="announced"),
    ],
)
async def test_an_invalid_upload_leaves_nothing(stand, stub, messages, words):
    before = stand.router.batches.store.files.sizes()
    call = stub.UploadFile(iter(messages), metadata=metadata(ALICE), timeout=PATIENCE)
    said = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert words in said
    assert stand.router.batches.store.files.sizes() == before


@pytest.mark.parametrize("end", ["cancelled", "connection lost"])
async def test_an_upload_that_is_cut_off_leaves_nothing(stand, end):
    sizes = stand.router.batches.store.files.sizes
    before = sizes()
    channel = grpc.aio.insecure_channel(stand.router.addresses.grpc)
    call = batch_pb2_grpc.BatchServiceStub(channel).UploadFile(metadata=metadata(ALICE))
    for message in (DESCRIBED, DATA):
        await call.write(message)
    await eventually(lambda: sizes() != before, "the beginning")
    if end == "cancelled":
        call.cancel()
    await channel.close()
    await eventually(lambda: sizes() == before, "the end of the upload")


async def test_a_full_disk_refuses_an_upload_and_leaves_nothing(stand, stub, monkeypatch):
    files = stand.router.batches.store.files
    before, begin = files.sizes(), files.begin

    def on_a_full_disk(*args, **fields):
        upload = begin(*args, **fields)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, upload.writer._file.fileno())
        os.close(full)
        return upload

    monkeypatch.setattr(files, "begin", on_a_full_disk)
    for content in (b"x", bytes(MAX_FILE)):  # at the end, and on the way
        call = upload(stub, content)
        said = await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "STORAGE_FULL")
        assert "No space left" in said
        assert files.sizes() == before


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint must be"),
        ({"completion_window": "8d"}, "completion_window must be"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"output_expires_after_seconds": 1}, "expires_after"),
    ],
)
async def test_an_invalid_batch_is_refused(stub, fields, words):
    call = create(stub, pb.File(file_id="file-1"), **fields)
    said = await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert words in said


@pytest.mark.parametrize("limit", [0, 101])
async def test_a_limit_out_of_range_is_refused(stub, limit):
    call = stub.ListBatches(pb.ListBatchesRequest(limit=limit), metadata=metadata(ALICE))
    await refused(call, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_another_tenant_sees_nothing(stub, stand):
    batch = await ended(stub, await create(stub, await upload(stub, lines("a"))))
    ids = {"batch_id": batch.batch_id, "file_id": batch.output_file_id}
    body = {
        "input_file_id": batch.input_file_id,
        "endpoint": CHATS,
        "completion_window": "1h",
    }
    walked = []
    for method in SERVICE.methods:
        if method.client_streaming:
            continue  # an upload names no object
        walked.append(method.name)
        message = GetMessageClass(method.input_type)
        known = message.DESCRIPTOR.fields_by_name
        request = message(**{k: v for k, v in (ids | body).items() if k in known})
        call = getattr(stub, method.name)(request, metadata=metadata(BOB))
        if method.name.startswith("List"):
            answer = await call
            assert not (answer.files if method.name == "ListFiles" else answer.batches)
            continue
        if method.server_streaming:
            call = anext(aiter(call))
        await refused(call, grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert len(walked) == 8
    request = pb.GetBatchRequest(batch_id=batch.batch_id)
    found = await stub.GetBatch(request, metadata=metadata(ALICE))
    assert found.batch == batch


async def test_without_batches_and_while_draining_calls_are_refused():
    async with (
        standing(stand_settings(), groups=0) as other,
        grpc.aio.insecure_channel(other.router.addresses.grpc) as channel,
    ):
        stub = batch_pb2_grpc.BatchServiceStub(channel)
        call = stub.GetBatch(pb.GetBatchRequest(batch_id="b"))
        await refused(call, grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
        other.router.gate.close("a test")
        call = stub.GetBatch(pb.GetBatchRequest(batch_id="b"))
        await refused(call, grpc.StatusCode.UNAVAILABLE, "NOT_READY")
