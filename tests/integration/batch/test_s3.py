"""Contents of files in moto's S3 server, over HTTP, and in a folder."""

import itertools
import sys

import pytest
from moto.server import ThreadedMotoServer

from serving.batch.objects import PART_BYTES, Folder, parts_of
from serving.batch.records import Status
from serving.batch.s3 import Bucket
from serving.clock import SystemClock
from serving.errors import ResourceNotFound, SettingsError, StorageFull
from tests.support.batches import BatchRouter, line, new, open_store, put, results
from tests.support.waiting import eventually

_buckets = itertools.count()
LARGE = bytes(range(256)) * 40_000  # two parts of a multipart upload


@pytest.fixture
def environment(monkeypatch):
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",  # accepted by moto
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def server():
    made = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def bucket(server, environment):
    host, port = server.get_host_and_port()
    name = f"bucket{next(_buckets)}"
    made = Bucket(f"s3://{name}/some/prefix", f"http://{host}:{port}", 20.0)
    made.client.create_bucket(Bucket=name)
    return made


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "files")


@pytest.fixture(params=["folder", "bucket"])
def objects(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("content", [b"", b"abc", LARGE], ids=["empty", "small", "large"])
def test_a_content_is_there_once_it_is_complete(objects, content):
    writer = objects.create("file-1")
    for at in range(0, len(content), PART_BYTES):
        writer.write(content[at : at + PART_BYTES])
    with pytest.raises(ResourceNotFound):
        objects.read("file-1", 0, 1)
    writer.commit()
    writer.abort()  # has no effect any more
    assert b"".join(parts_of(objects, "file-1")) == content
    assert objects.read("file-1", 1, 5) == content[1:6]
    assert objects.read("file-1", len(content) + 5, 5) == b""


def test_an_aborted_or_forgotten_content_leaves_nothing(objects, tmp_path):
    aborted, forgotten = objects.create("file-1"), objects.create("file-2")
    for writer in (aborted, forgotten):
        writer.write(LARGE)
    aborted.abort()
    objects.delete("file-2")
    if isinstance(objects, Bucket):
        left = objects.client.list_multipart_uploads(Bucket=objects.name)
        assert "Uploads" not in left
    else:
        assert list((tmp_path / "files").iterdir()) == []
    objects.delete("file-2")


def test_a_deleted_content_is_gone(objects):
    writer = objects.create("file-1")
    writer.write(b"abc")
    writer.commit()
    objects.delete("file-1")
    with pytest.raises(ResourceNotFound):
        objects.read("file-1", 0, 1)


def test_a_service_that_does_not_answer_is_a_typed_error(environment):
    nowhere = Bucket("s3://bucket", "http://127.0.0.1:9", 0.2)
    for call in (
        lambda: nowhere.read("file-1", 0, 1),
        lambda: nowhere.delete("file-1"),
        nowhere.create("file-1").commit,
    ):
        with pytest.raises(StorageFull):
            call()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "serving.batch.s3", None)
    with pytest.raises(SettingsError, match=r"moe-serving\[s3\]"):
        open_store(tmp_path, SystemClock(), storage_url="s3://bucket")


@pytest.mark.asyncio
async def test_a_batch_waits_for_its_object_storage(bucket, tmp_path):
    store = open_store(
        tmp_path,
        SystemClock(),
        storage_url=f"s3://{bucket.name}/x",
        storage_endpoint=bucket.client.meta.endpoint_url,
        interval=0.05,
        lease=60.0,
    )
    read, failures = store.files.read, []

    def failing(file_id, start, length):
        if len(failures) < 3:
            failures.append(start)
            raise StorageFull("the object storage does not answer")
        return read(file_id, start, length)

    router = BatchRouter(store)
    try:
        content = b"\n".join(line(str(number), name=str(number)) for number in range(20))
        file = await store.run(put, store, content)
        store.files.read = failing
        batch = await store.run(store.batches.create, new(file))
        ended = await router.ended(batch)
        assert (ended.status, ended.completed) == (Status.COMPLETED, 20)
        assert len(failures) == 3
        found = await store.run(results, store, ended.output_file_id)
        assert [each["custom_id"] for each in found] == [*map(str, range(20))]
        await eventually(lambda: not router.runner._running, "the end of the lines")
    finally:
        await router.stop()
