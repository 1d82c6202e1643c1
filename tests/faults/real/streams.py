"""Streaming greedy requests over REST and gRPC, and what they saw of a fault."""

import asyncio
import json
import time
from dataclasses import dataclass, field

import grpc
import grpc.aio
import httpx

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from tests.faults.real.deployment import Deployment

PATIENCE = 600.0
"""Seconds until a stream is given up; the router's own time-out is as long."""
_TOPICS = (
    "the capital of France", "17+25", "a prime number", "the word abc reversed", "3*4",
    "the colour of the sky", "how many legs a spider has", "the largest planet",
)  # fmt: skip


@dataclass(slots=True)
class Stream:
    """One request and what came."""

    number: int
    over: str
    """REST or gRPC."""
    text: str = ""
    finish: str = ""
    error: str = ""
    chunks: list[float] = field(default_factory=list)
    """When each came, on this process's clock."""
    ended_at: float = 0.0

    def longest_gap(self, since: float) -> float:
        """Return the longest wait for a chunk that ended after ``since``, in seconds."""
        pairs = zip(self.chunks, self.chunks[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > since), default=0.0)


@dataclass(slots=True)
class Run:
    """All streams of one round."""

    streams: list[Stream]
    struck_at: float = 0.0

    def begun(self, chunks: int) -> int:
        """Count the streams that have got at least so many chunks."""
        return sum(len(stream.chunks) >= chunks for stream in self.streams)


async def ask_all(running: Deployment, run: Run, max_tokens: int) -> None:
    """Send all requests at once and take their streams to the end."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=running.rest, timeout=PATIENCE, limits=limits) as rest,
        grpc.aio.insecure_channel(running.grpc) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await asyncio.gather(
            *(
                _rest(rest, running.model, stream, max_tokens)
                if stream.over == "REST"
                else _grpc(stub, running.model, stream, max_tokens)
                for stream in run.streams
            )
        )


def new_run(count: int) -> Run:
    """Return ``count`` requests, half over each protocol."""
    return Run([Stream(number, "REST" if number % 2 else "gRPC") for number in range(count)])


def prompt_of(number: int) -> str:
    """Return a prompt of its own for each number."""
    return f"Question {number}: tell me about {_TOPICS[number % len(_TOPICS)]}.\nAnswer:"


async def _rest(client: httpx.AsyncClient, model: str, stream: Stream, max_tokens: int) -> None:
    body = {
        "model": model,
        "prompt": prompt_of(stream.number),
        "temperature": 0.0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    try:
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                stream.error = f"HTTP {answer.status_code}: {(await answer.aread())[:200]!r}"
                return
            async for line in answer.aiter_lines():
                _take_line(stream, line)
    except httpx.HTTPError as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        stream.ended_at = time.monotonic()


def _take_line(stream: Stream, line: str) -> None:
    data = line.removeprefix("data: ")
    if data in {line, "[DONE]"}:
        return  # an empty line, a comment that keeps the connection, or the end
    event = json.loads(data)
    if "error" in event:
        stream.error = str(event["error"])
        return
    for choice in event["choices"]:
        stream.chunks.append(time.monotonic())
        stream.text += choice["text"]
        stream.finish = choice["finish_reason"] or stream.finish


async def _grpc(
    stub: inference_pb2_grpc.InferenceServiceStub, model: str, stream: Stream, max_tokens: int
) -> None:
    request = pb.CompleteRequest(
        model=model,
        text=prompt_of(stream.number),
        sampling=pb.SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
    )
    try:
        async for message in stub.CompleteStream(request, timeout=PATIENCE):
            for choice in message.choices:
                stream.chunks.append(time.monotonic())
                stream.text += choice.text
                if choice.finish_reason:
                    name = pb.FinishReason.Name(choice.finish_reason)
                    stream.finish = name.removeprefix("FINISH_REASON_").lower()
    except grpc.aio.AioRpcError as error:
        stream.error = f"{error.code().name}: {error.details()}"
    finally:
        stream.ended_at = time.monotonic()
