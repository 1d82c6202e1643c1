"""A real S3-compatible server that is killed while a batch needs it."""

import asyncio

import pytest

from serving.batch.records import Status
from serving.batch.s3 import PART_BYTES, Bucket
from serving.batch.schema import COMPLETED
from serving.clock import SystemClock
from serving.errors import StorageFull
from tests.support.batches import BatchRouter, line, new, open_store, put, results
from tests.support.object_storage import CREDENTIALS, object_storage_or_skip
from tests.support.waiting import eventually

LINES = b"\n".join(line(f"id-{number}", name=str(number)) for number in range(300))


@pytest.fixture
def server(monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_storage_or_skip() as running:
        yield running


def test_contents_survive_the_server(server):
    bucket = Bucket(server.create_bucket("moe"), server.url, 20.0)
    writer = bucket.create("large")
    content = bytes(range(256)) * (2 * PART_BYTES // 256 + 1)
    writer.write(content)
    writer.commit()
    server.kill()
    with pytest.raises(StorageFull):
        bucket.read("large", 0, 1)
    server.start()
    assert bucket.read("large", 0, len(content) + 1) == content
    bucket.delete("large")


@pytest.mark.asyncio
async def test_a_killed_object_storage_only_delays(server, tmp_path):
    url = await asyncio.to_thread(server.create_bucket, "moe")
    store = open_store(
        tmp_path,
        SystemClock(),
        storage_url=url,
        storage_endpoint=server.url,
        interval=0.05,
        lease=60.0,
    )
    router = BatchRouter(store)
    try:
        router.hold.clear()
        file = await store.run(put, store, LINES)
        batch = await store.run(store.batches.create, new(file))
        await eventually(lambda: router.sent, "the first lines")
        await asyncio.to_thread(server.kill)
        router.hold.set()
        sent = len(router.sent)
        # Lines whose requests were read already are answered; the others cannot be read.
        await eventually(lambda: store.lines.counts().get(COMPLETED) == sent, "their answers")
        await asyncio.to_thread(server.start)
        ended = await router.ended(batch)
        assert (ended.status, ended.completed, ended.failed) == (Status.COMPLETED, 300, 0)
        found = await store.run(results, store, ended.output_file_id)
        assert [each["custom_id"] for each in found] == [f"id-{number}" for number in range(300)]
        names = [file.file_id, ended.output_file_id]
        rows, _ = await store.run(
            store.files.page, "t", after=None, limit=10, descending=False, purpose=None
        )
        assert [row.file_id for row in rows] == names
    finally:
        await router.stop()
