"""Mutated traffic of released clients: no other client is affected, nothing hangs or leaks.

The traffic was recorded by ``traffic/record.py``. While mutated connections arrive, one client
streams repeatedly over REST and one over gRPC; each of their answers must be the same as before.
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import re

import grpc.aio
import pytest

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from tests.fuzz import mutators
from tests.fuzz.guided.frames import _Written
from tests.fuzz.traffic.record import FILE
from tests.support.waiting import PATIENCE, eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(3600)]

AT_ONCE = 8
COUNT = int(os.environ.get("FUZZ_CASES", "200"))
BESIDE = 0.02
"""Seconds between the last byte sent and the client's disconnect, for gRPC."""
RECORDED = [
    (each["client"], each["door"], base64.b64decode(each["sent"]))
    for each in json.loads(FILE.read_text())
]
_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
_BAD = {b"500", b"502", b"503"}


def http_changed(rng, data):
    """Change a request's headers, its JSON, the framing of its body, or arbitrary bytes."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    at = rng.randrange(1, max(len(lines), 2))
    match rng.randrange(8):
        case 0:
            return mutators.bytes_changed(rng, data)
        case 1 if at < len(lines):
            lines[at] = rng.choice((lines[at].upper(), lines[at].swapcase(), lines[at] + b" "))
        case 2 if at < len(lines):
            lines.insert(at, lines[at])
        case 3 if at < len(lines):
            del lines[at]
        case 4:
            lines = [each for each in lines if not each.lower().startswith(b"content-length")]
            lines.append(b"transfer-encoding: chunked")
            parts = mutators.pieces(rng, body)
            body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        case 5:
            return data[: rng.randrange(len(data) + 1)]
        case _:
            body = mutators.json_changed(rng, body)
            lines = [each for each in lines if not each.lower().startswith(b"content-length")]
            lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def requests_in(data):
    """Split the data of one HTTP/1.1 connection into requests."""
    return [part for part in re.split(rb"(?=(?:GET|POST|HEAD) /\S* HTTP/1\.1\r\n)", data) if part]


def h2_changed(rng, data):
    """Change frames after the preface; rarely, arbitrary bytes."""
    if rng.random() < 0.1:
        return mutators.bytes_changed(rng, data)
    size = len(mutators.PREFACE)
    return data[:size] + mutators.frames_changed(rng, data[size:])


def cases(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        client, door, sent = rng.choice(RECORDED)
        if door == "rest":
            parts = requests_in(sent)
            at = rng.randrange(len(parts))
            parts[at] = http_changed(rng, parts[at])
            sent = b"".join(parts[max(0, at - 1) : at + 2])
        else:
            sent = h2_changed(rng, sent)
        yield client, door, sent, rng.random()


async def replay(stand, door, sent, chance):
    """Send data in random parts; return the response until the server closes."""
    port = getattr(stand.router.addresses, f"{door}_port")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(reader.read())
    rng = random.Random(chance)
    try:
        with contextlib.suppress(ConnectionError):
            for piece in mutators.pieces(rng, sent) if chance < 0.5 else (sent,):
                writer.write(piece)
                await writer.drain()
            if door == "grpc":
                await asyncio.wait([reading], timeout=BESIDE)
            if writer.can_write_eof():
                writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            return await reading
    except ConnectionError:
        return b""  # reset: the server closed before reading everything
    finally:
        reading.cancel()
        writer.close()


def problem_of(door, sent, output):
    """Return the error in a response, or None."""
    if door == "rest":
        bad = [status for status in _STATUS.findall(output) if status in _BAD]
        return f"status {bad}" if bad else None
    try:
        # The client disconnected at an arbitrary time, so the last frame may be incomplete.
        whole = b"".join(each for each in mutators.frames_in(output) if _is_whole(each))
        _Written(whole).check(len(sent))
    except AssertionError as error:
        return str(error)
    return None


def _is_whole(frame):
    return len(frame) == 9 + int.from_bytes(frame[:3])


async def beside(stand, rest, channel, over):
    """Stream over REST and gRPC until ``over``; return the number of each answer."""
    body = {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": "What is 17+25?"}],
        "max_tokens": 24,
        "seed": 5,
        "stream": True,
    }
    call = pb.ChatRequest(
        model="pocket-r1",
        messages=[pb.Message(role=pb.ROLE_USER, content="What is 17+25?")],
        sampling=pb.SamplingParams(max_tokens=24, seed=5),
    )
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    seen = []
    while True:
        answer = await rest.post("/v1/chat/completions", json=body)
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        text = "".join(
            choice["delta"].get("reasoning_content") or choice["delta"].get("content") or ""
            for event in events
            for choice in json.loads(event)["choices"]
        )
        parts = [part async for part in stub.ChatStream(call)]
        rpc_text = "".join(
            choice.reasoning_content + choice.content for part in parts for choice in part.choices
        )
        seen.append((answer.status_code, text, rpc_text))
        if over.is_set():
            return seen


def connections(stand):
    router = stand.router
    return len(router.grpc.server.connections) + len(router.rest.server_state.connections)


async def test_recordings_are_of_many_clients():
    assert {"openai", "anthropic", "grpcio", "grpclib", "grpc-js"} <= {each[0] for each in RECORDED}
    assert not [
        sent for _, _, sent in RECORDED if re.search(rb"(?i)bearer (?!none)|127\.0\.0", sent)
    ]


async def test_recorded_traffic_is_served_as_it_was(stand, watched):
    for client, door, sent in RECORDED:
        output = await replay(stand, door, sent, 0.9)
        assert problem_of(door, sent, output) is None, client
        if door == "rest":
            # 100: sent to a half-closed client while it waits.
            assert set(_STATUS.findall(output)) - {b"100"} == {b"200"}, client
    await eventually(lambda: stand.idle, "all requests to end")


async def test_changed_traffic_disturbs_nobody(stand, rest, seed):
    problems, todo, over = [], cases(seed, COUNT), asyncio.Event()

    async def work():
        for client, door, sent, chance in todo:
            output = await replay(stand, door, sent, chance)
            if problem := problem_of(door, sent, output):
                problems.append(f"{client}: {problem}\n    {sent!r:.1500}")

    async with grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel:
        over.set()
        before = await beside(stand, rest, channel, over)
        await eventually(lambda: stand.idle, "all requests to end")
        kept = connections(stand)
        over.clear()
        tasks = len(asyncio.all_tasks())
        streaming = asyncio.create_task(beside(stand, rest, channel, over))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work())
        finally:
            over.set()
            during = await streaming
        assert not problems, f"{len(problems)} of {COUNT}:\n" + "\n".join(problems[:20])
        assert set(during) == set(before)
        assert before[0][0] == 200
        assert before[0][1]
        assert before[0][2]
        assert len(during) > 3
        await eventually(lambda: stand.idle, "all requests to end")
        await eventually(lambda: connections(stand) <= kept, "all connections to end")
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks, "all tasks to end")
    (group,) = stand.router.membership.snapshot().groups
    assert group.state == "ready"
