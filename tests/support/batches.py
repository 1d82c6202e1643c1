"""A storage of batches for tests, and input files."""

import asyncio
import json
from pathlib import Path
from typing import Any

from serving.batch.line_requests import LineResponse
from serving.batch.records import ENDED, Batch, NewBatch, Status, StoredFile
from serving.batch.runner import BatchRunner
from serving.batch.scheduler import LineScheduler, ModelSource
from serving.batch.store import BatchStore
from serving.clock import Clock, SystemClock
from serving.settings import BatchSettings
from serving.telemetry.model_counters import ModelCounters
from tests.support.fleets import fleet
from tests.support.waiting import eventually

CHATS = "/v1/chat/completions"


def line(custom_id: str = "a", *, url: str = CHATS, **body: Any) -> bytes:
    """Return a valid line without its line break."""
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | body
    return json.dumps(
        {"custom_id": custom_id, "method": "POST", "url": url, "body": request}
    ).encode()


def open_store(folder: Path, clock: Clock, *, max_line_bytes: int = 4096, **fields: Any):
    """Return a storage in a folder."""
    settings = BatchSettings(directory=str(folder), **fields)
    return BatchStore(settings, clock, max_line_bytes=max_line_bytes)


def put(store: BatchStore, content: bytes, tenant: str = "t") -> StoredFile:
    """Upload a file."""
    upload = store.files.begin(tenant)
    upload.write(content)
    return store.files.finish(upload, "lines.jsonl")


def new(file: StoredFile, tenant: str = "t", **fields: Any) -> NewBatch:
    """Return a request to create a batch with a window of an hour."""
    values: dict[str, Any] = {
        "tenant": tenant,
        "key_id": None,
        "endpoint": CHATS,
        "input_file_id": file.file_id,
        "completion_window": "1h",
        "window": 3600,
        "metadata_json": "null",
        "results_lifetime": None,
    }
    return NewBatch(**(values | fields))


def running(store: BatchStore, content: bytes, tenant: str = "t") -> Batch:
    """Return a validated batch of the lines in ``content``."""
    batch = store.batches.create(new(put(store, content, tenant), tenant))
    assert store.batches.own(batch.batch_id, Status.VALIDATING)
    store.validate(batch)
    return store.batches.get(tenant, batch.batch_id)


def results(store: BatchStore, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of a result file."""
    if file_id is None:
        return []
    return [json.loads(each) for each in b"".join(store.files.parts(file_id)).splitlines()]


OK = LineResponse(200, b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}')


class ShiftedClock(SystemClock):
    """The system's clock, whose Unix time a test can move."""

    ahead = 0.0
    """Seconds by which the clock is ahead."""

    def time(self) -> float:
        return super().time() + self.ahead


class BatchRouter:
    """The runner of a router without ranks; lines get ``responses``, then ``OK``."""

    def __init__(self, store):
        self.store = store
        self.sent = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.responses = {}
        settings = store._settings
        scheduler = LineScheduler(ModelSource(fleet, settings, ModelCounters()), lambda _: 1.0)
        self.clock = ShiftedClock()
        self.runner = BatchRunner(store, scheduler, self.send, settings, self.clock)
        self.task = asyncio.create_task(self.runner.run())

    async def send(self, request):
        self.sent.append(request)
        await self.hold.wait()
        name = json.loads(request.body).get("name")
        given = self.responses.get(name)
        return given.pop(0) if given else OK

    async def submit(self, *names, tenant="t", **fields):
        content = b"\n".join(line(name, name=name) for name in names)
        file = await self.store.run(put, self.store, content, tenant)
        batch = await self.store.run(self.store.batches.create, new(file, tenant, **fields))
        self.runner.look_soon()
        return batch

    async def ended(self, batch):
        async def done():
            found = await self.store.run(self.store.batches.get, batch.tenant, batch.batch_id)
            return found if found.status in ENDED else None

        return await eventually(done, f"the end of {batch.batch_id}")

    async def stop(self):
        await self.runner.stop()
        self.task.cancel()
        await asyncio.wait({self.task})
        await self.store.close()
