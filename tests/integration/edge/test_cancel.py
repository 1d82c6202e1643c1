"""A client that disconnects leaves nothing behind in router or engine after 1 s."""

import asyncio
import contextlib
import json
import socket

import grpc
import grpc.aio
import httpx
import pytest
import pytest_asyncio

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from tests.integration.edge.stand import Stand, stand_settings, standing
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = 400
SLOTS = 2
WAYS = ("REST stream", "REST", "gRPC stream", "gRPC")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="shared")
async def _shared():
    settings = stand_settings(engine={"max_num_seqs": SLOTS})
    async with standing(settings, token_delay=0.02) as stand:
        yield stand


@pytest_asyncio.fixture(loop_scope="module")
async def stand(shared):
    yield shared
    await shared.idle_soon()


class Client:
    """A client that requests a long answer in one of several ways, in its own task."""

    def __init__(self, stand: Stand, way: str, *, timeout: float | None = None) -> None:
        self.began = asyncio.Event()
        """Wait for the first part of a streamed answer."""
        self._stand = stand
        self._timeout = timeout
        self.task = asyncio.create_task(self._rest(way) if "REST" in way else self._grpc(way))

    async def _rest(self, way: str) -> str:
        body = {
            "model": "pocket-r1",
            "prompt": "x",
            "max_tokens": TOKENS,
            "stream": "stream" in way,
        }
        headers = {} if self._timeout is None else {"x-request-timeout-ms": f"{self._timeout:.0f}"}
        url = f"{self._stand.router.addresses.rest}/v1/completions"
        async with (
            httpx.AsyncClient(timeout=PATIENCE) as client,
            client.stream("POST", url, json=body, headers=headers) as answer,
        ):
            text = ""
            async for part in answer.aiter_text():
                text += part
                self.began.set()
        return "DEADLINE_EXCEEDED" if '"DEADLINE_EXCEEDED"' in text else str(answer.status_code)

    async def _grpc(self, way: str) -> str:
        timeout = None if self._timeout is None else self._timeout / 1000
        request = pb.CompleteRequest(
            model="pocket-r1", text="x", sampling=pb.SamplingParams(max_tokens=TOKENS)
        )
        async with grpc.aio.insecure_channel(self._stand.router.addresses.grpc) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            try:
                if "stream" not in way:
                    await stub.Complete(request, timeout=timeout)
                    return "200"
                async for _ in stub.CompleteStream(request, timeout=timeout):
                    self.began.set()
            except grpc.aio.AioRpcError as error:
                return error.code().name
        return "200"

    async def leave(self) -> None:
        """Disconnect in the middle of the answer."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
            await self.task


async def running(stand: Stand, client: Client, way: str) -> None:
    """Wait until the request runs in the engine."""
    await eventually(lambda: stand.running >= 1, "the start in the engine")
    if "stream" in way:
        async with asyncio.timeout(PATIENCE):
            await client.began.wait()


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_while_it_runs(stand, way):
    client = Client(stand, way)
    await running(stand, client, way)
    await client.leave()
    await stand.idle_soon()


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_while_it_is_queued(stand, way):
    others = [Client(stand, "REST") for _ in range(SLOTS)]
    await eventually(lambda: stand.running == SLOTS, "full slots")
    clients = [Client(stand, way) for _ in range(3)]
    # In the router's queue or the engine's: both must drop the request.
    await eventually(lambda: stand.router.gate.inflight == SLOTS + 3, "the queue")
    for client in clients:
        await client.leave()
    await stand.soon(lambda: stand.router.client.inflight_requests == SLOTS, "the queue's end")
    await stand.soon(lambda: stand.engine_requests == SLOTS, "the engine's queue's end")
    assert not any(other.task.done() for other in others)
    for other in others:
        await other.leave()


@pytest.mark.parametrize("way", WAYS)
async def test_a_deadline_while_it_runs(stand, way):
    client = Client(stand, way, timeout=300)
    assert await client.task == "DEADLINE_EXCEEDED"
    await stand.idle_soon()


@pytest.mark.parametrize("way", WAYS)
async def test_a_deadline_in_the_queue(stand, way):
    others = [Client(stand, "REST") for _ in range(SLOTS)]
    await eventually(lambda: stand.running == SLOTS, "full slots")
    client = Client(stand, way, timeout=300)
    # Admission may also reject it at once, because it cannot be served in time.
    assert await client.task in {"DEADLINE_EXCEEDED", "429", "RESOURCE_EXHAUSTED"}
    await stand.soon(lambda: stand.router.client.inflight_requests == SLOTS, "the queue's end")
    assert not any(other.task.done() for other in others)
    for other in others:
        await other.leave()


@pytest.mark.parametrize("timeout", [None, 300.0], ids=["leaves", "deadline"])
@pytest.mark.parametrize("way", WAYS)
async def test_parked(shared, way, timeout):
    """Without a group a request waits for one; if its client disconnects, it never runs."""
    await shared.leave()
    client = Client(shared, way, timeout=timeout)
    if timeout is None:
        await eventually(lambda: shared.router.client.inflight_requests == 1, "the parking")
        await client.leave()
    else:
        assert await client.task == "DEADLINE_EXCEEDED"
    await shared.idle_soon()
    await shared.join("g0", token_delay=0.02)
    served = Client(shared, way)
    await running(shared, served, way)
    # The parked request has not run.
    assert shared.engine_requests == 1
    await served.leave()
    await shared.idle_soon()


async def test_a_parked_stream_hears_comments_and_goes_on():
    settings = stand_settings(router={"keepalive_interval": 0.05})
    async with standing(settings, groups=0) as stand, httpx.AsyncClient(timeout=PATIENCE) as client:
        url = f"{stand.router.addresses.rest}/v1/chat/completions"
        body = {
            "model": "pocket-r1",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 8,
            "stream": True,
        }
        why = {"x-explain-routing": "1"}
        async with client.stream("POST", url, json=body, headers=why) as answer:
            lines = answer.aiter_lines()
            assert answer.status_code == 200
            assert await anext(lines) == ": waiting"
            await stand.join()
            rest = [line async for line in lines]
        assert rest[-2:] == ["data: [DONE]", ""]
        assert any('"finish_reason":"length"' in line for line in rest)
        # The response started before a rank was chosen, so the explanation is not a header.
        assert "x-explain-routing" not in answer.headers
        (explained,) = [line for line in rest if line.startswith(": x-explain-routing ")]
        assert len(json.loads(explained.removeprefix(": x-explain-routing "))) == 1
        first = next(line for line in rest if line.startswith("data:"))
        assert rest.index(explained) < rest.index(first)


@pytest.mark.parametrize("way", ["rest", "grpc"])
async def test_a_client_that_does_not_read_is_cut_off_and_holds_nothing(way):
    """A client that does not read is kept for ``write_timeout``; its buffers do not grow."""
    settings = stand_settings(
        router={"write_timeout": 0.5}, engine={"max_model_len": 2048, "max_num_seqs": 64}
    )
    async with standing(settings, token_delay=0.002) as stand, not_reading(stand, way):
        await eventually(lambda: stand.router.gate.inflight == 1, "its request")
        url = f"{stand.router.addresses.rest}/v1/completions"
        async with httpx.AsyncClient(timeout=PATIENCE) as other:
            body = {"model": "pocket-r1", "prompt": "x", "max_tokens": 4}
            assert (await other.post(url, json=body)).status_code == 200
        await eventually(lambda: stand.idle, "the end of what nobody takes")


LONG = {"max_tokens": 1900, "logprobs": 5}
"""Size of an answer that exceeds all buffers on the way."""


@contextlib.asynccontextmanager
async def not_reading(stand, way):
    """Request a long answer, and do not read it."""
    if way == "rest":
        host, _, port = stand.router.addresses.rest.removeprefix("http://").rpartition(":")
        body = json.dumps({"model": "pocket-r1", "prompt": "x", "stream": True, "n": 8} | LONG)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            kind = "content-type: application/json\r\n\r\n"
            client.sendall(f"{head}{kind}{body}".encode())
            yield
        return
    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        sampling = pb.SamplingParams(max_tokens=1900, n=8)
        call = stub.CompleteStream(
            pb.CompleteRequest(model="pocket-r1", text="x", sampling=sampling, logprobs=5)
        )
        await call.read()
        yield
        call.cancel()


@pytest.mark.parametrize("way", WAYS)
async def test_a_stopped_router_leaves_nothing_in_the_engines(way):
    settings = stand_settings(engine={"max_num_seqs": 8})
    async with standing(settings, token_delay=0.02) as stand:
        clients = [Client(stand, way) for _ in range(3)]
        await eventually(lambda: stand.running == 3, "the start in the engine")
        await stand.router.stop()
        await stand.soon(lambda: stand.engine_requests == 0, "the end of all requests")
        for client in clients:
            await client.leave()
