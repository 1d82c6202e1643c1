"""Streaming requests over REST and gRPC, and the effect of a fault on them."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import httpx

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from tests.faults.real.system import System

PATIENCE = 600.0
"""Timeout of a stream, seconds; equal to the router's."""
_TOPICS = (
    "the capital of France", "17+25", "a prime number", "the word abc reversed", "3*4",
    "the colour of the sky", "how many legs a spider has", "the largest planet",
)  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seed": {"temperature": 0.9, "seed": 7},
    "penalties": {"frequency_penalty": 0.4, "presence_penalty": 0.2},
    "stop": {"stop": ["<not there>"]},
    "choices": {"temperature": 0.7, "seed": 11, "n": 2},
}
"""Sampling parameters by kind: greedy requests are continued after a fault, the others replayed."""


@dataclass(slots=True)
class Stream:
    """One request and its answer."""

    number: int
    over: str
    """REST or gRPC."""
    kind: str = "greedy"
    """Key of :data:`KINDS`."""
    texts: dict[int, str] = field(default_factory=dict)
    """Text of each choice."""
    finishes: dict[int, str] = field(default_factory=dict)
    """Finish reason of each choice."""
    error: str = ""
    chunks: list[float] = field(default_factory=list)
    """Arrival times, monotonic, seconds."""
    ended_at: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every choice ended without an error."""
        return not self.error and len(self.finishes) == KINDS[self.kind].get("n", 1)

    def take(self, choice: int, text: str, finish: str) -> None:
        """Add a piece of text to a choice."""
        self.chunks.append(time.monotonic())
        self.texts[choice] = self.texts.get(choice, "") + text
        if finish:
            self.finishes[choice] = finish

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
        """Return the number of streams with at least ``chunks`` chunks."""
        return sum(len(stream.chunks) >= chunks for stream in self.streams)


async def ask_all(running: System, run: Run, max_tokens: int) -> None:
    """Send all requests at once and read their streams to the end."""
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=running.rest, timeout=PATIENCE, limits=limits) as rest,
        grpc.aio.insecure_channel(running.grpc) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await asyncio.gather(
            *(
                ask_over_rest(rest, running.model, stream, max_tokens)
                if stream.over == "REST"
                else ask_over_grpc(stub, running.model, stream, max_tokens)
                for stream in run.streams
            )
        )


def new_run(count: int, kinds: tuple[str, ...] = ("greedy",)) -> Run:
    """Return ``count`` requests, half over each protocol, the kinds in turn."""
    return Run(
        [
            Stream(number, "REST" if number % 2 else "gRPC", kinds[number // 2 % len(kinds)])
            for number in range(count)
        ]
    )


def again(reference: Run) -> Run:
    """Return the same requests, not yet sent."""
    return Run([Stream(each.number, each.over, each.kind) for each in reference.streams])


def prompt_of(number: int) -> str:
    """Return a distinct prompt for each number."""
    return f"Question {number}: tell me about {_TOPICS[number % len(_TOPICS)]}.\nAnswer:"


async def ask_over_rest(
    client: httpx.AsyncClient, model: str, stream: Stream, max_tokens: int
) -> None:
    """Read one stream to its end, over REST."""
    body = {
        "model": model,
        "prompt": prompt_of(stream.number),
        "temperature": 0.0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        **KINDS[stream.kind],
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
        stream.take(choice["index"], choice["text"], choice["finish_reason"] or "")


async def ask_over_grpc(
    stub: inference_pb2_grpc.InferenceServiceStub, model: str, stream: Stream, max_tokens: int
) -> None:
    """Read one stream to its end, over gRPC."""
    sampling = {"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True}
    request = pb.CompleteRequest(
        model=model,
        text=prompt_of(stream.number),
        sampling=pb.SamplingParams(**sampling | KINDS[stream.kind]),
    )
    try:
        async for message in stub.CompleteStream(request, timeout=PATIENCE):
            for choice in message.choices:
                stream.take(choice.index, choice.text, _finish(choice.finish_reason))
    except grpc.aio.AioRpcError as error:
        stream.error = f"{error.code().name}: {error.details()}"
    finally:
        stream.ended_at = time.monotonic()


def _finish(reason: int) -> str:
    """Return a gRPC finish reason in REST's form; empty while the choice continues."""
    name = pb.FinishReason.Name(reason) if reason else ""
    return name.removeprefix("FINISH_REASON_").lower()
