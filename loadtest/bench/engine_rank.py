"""One vLLM rank of a group without a router, controlled over standard input and output.

    python -m loadtest.bench.engine_rank SETTINGS.yaml RANK PORT

Each line of input is a JSON object with the fields of :class:`Round`. The answer, once all streams
of the round have ended, is the line ``TOKENS N DIGEST`` with the number of tokens and a digest of
them. The process ends at the end of its input.
"""

import asyncio
import hashlib
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from serving.clock import SystemClock
from serving.engine.environment import engine_environment
from serving.engine.rank import DataParallelAddress, make_engine
from serving.link.v1 import link_pb2
from serving.settings import load_settings

if TYPE_CHECKING:
    from serving.engine.base import Engine

READY, TOKENS = "READY", "TOKENS"
_VOCABULARY = 256
_PROMPT = 32
"""Number of tokens per prompt."""


@dataclass(frozen=True, slots=True)
class Round:
    """Load of one rank: concurrent streams."""

    streams: int
    tokens: int
    """Tokens to generate in each stream."""
    seed: int = 0


async def serve(file: Path, rank: int, port: int) -> None:
    """Start the engine and run rounds until the input ends."""
    settings = load_settings(file)
    os.environ.update(engine_environment(settings))
    engine = make_engine(settings, rank, DataParallelAddress("127.0.0.1", port), SystemClock())
    try:
        await engine.start()
        print(READY, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            streams = await run(engine, Round(**json.loads(line)))
            digest = hashlib.sha256(repr(streams).encode()).hexdigest()
            print(TOKENS, sum(map(len, streams)), digest, flush=True)
    finally:
        await engine.shutdown()


async def run(engine: "Engine", load: Round) -> list[list[int]]:
    """Run the streams of one round; return the token ids of each."""
    # A map of the fields of vLLM's SamplingParams, as on the link.
    params = msgspec.msgpack.encode(
        {"max_tokens": load.tokens, "temperature": 0.0, "ignore_eos": True}
    )
    source = random.Random(load.seed)  # noqa: S311  prompts, not secrets

    async def stream(number: int) -> list[int]:
        prompt = [source.randrange(1, _VOCABULARY) for _ in range(_PROMPT)]
        submit = link_pb2.Submit(
            request_id=f"{load.seed}-{number}", prompt_token_ids=prompt, sampling_params=params
        )
        tokens: list[int] = []
        ended = asyncio.get_running_loop().create_future()

        def deliver(delta: link_pb2.Delta) -> None:
            for choice in delta.choices:
                tokens.extend(choice.token_ids)
            if delta.finished:
                ended.set_result(None)

        engine.submit(submit, deliver)
        await ended
        return tokens

    return await asyncio.gather(*(stream(number) for number in range(load.streams)))


def main() -> None:
    """Run the command line."""
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))


if __name__ == "__main__":
    main()
