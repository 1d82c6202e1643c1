"""Sums in a batch and one by one: `python -m tests.batch.arithmetic --lines 5000`.

Uses a running router with pocket-r1 through OpenAI's SDK: upload, create, poll, download. Then asks
some of the same questions as interactive requests. Prints the accuracy of both; the exit code is 1
if a line has no answer, or if the two accuracies over the same questions differ by more than two
percentage points.
"""

import asyncio
import io
import json
import random
import re
import sys
import time
from collections.abc import Iterable, Sequence

import openai

from serving.flags.parser import FlagParser
from tests.support.batches import CHATS
from tests.support.waiting import eventually

_TOKENS = 400
_CONCURRENCY = 16
_TIMEOUT = 3600.0
_DIFFERENCE = 0.02


def questions(count: int, seed: int) -> list[tuple[int, int]]:
    """Return sums of numbers below 100."""
    chance = random.Random(seed)
    return [(chance.randrange(100), chance.randrange(100)) for _ in range(count)]


def body(question: tuple[int, int]) -> dict:
    """Return the request for a sum."""
    text = f"What is {question[0]}+{question[1]}?"
    return {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": _TOKENS,
    }


def right(question: tuple[int, int], content: str | None) -> bool:
    """Return whether the last number in an answer is the sum."""
    numbers = re.findall(r"\d+", content or "")
    return bool(numbers) and int(numbers[-1]) == sum(question)


def share(found: Iterable[bool]) -> float:
    """Return the fraction of true values."""
    found = list(found)
    return sum(found) / len(found)


async def in_a_batch(sdk: openai.AsyncOpenAI, asked: Sequence[tuple[int, int]]) -> list[bool]:
    """Return which sums of a batch are right."""
    content = "\n".join(
        json.dumps({"custom_id": str(number), "method": "POST", "url": CHATS, "body": body(each)})
        for number, each in enumerate(asked)
    )
    begun = time.monotonic()
    file = await sdk.files.create(file=io.BytesIO(content.encode()), purpose="batch")
    batch = await sdk.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")

    async def ended():
        found = await sdk.batches.retrieve(batch.id)
        return found if found.status in {"completed", "failed", "expired"} else None

    done = await eventually(ended, "the end of the batch", timeout=_TIMEOUT, interval=1.0)
    print(f"{done.status}, {done.request_counts}, {time.monotonic() - begun:.0f} s", flush=True)
    found = {}
    for line in (await sdk.files.content(done.output_file_id)).text.splitlines():
        answer = json.loads(line)
        assert answer["custom_id"] not in found, "a line is answered twice"
        message = answer["response"]["body"]["choices"][0]["message"]
        found[answer["custom_id"]] = message["content"]
    assert len(found) == len(asked), "a line has no answer"
    return [right(each, found[str(number)]) for number, each in enumerate(asked)]


async def one_by_one(sdk: openai.AsyncOpenAI, asked: Sequence[tuple[int, int]]) -> list[bool]:
    """Return which sums of interactive requests are right."""
    slots = asyncio.Semaphore(_CONCURRENCY)

    async def ask(question):
        async with slots:
            answer = await sdk.chat.completions.create(**body(question))
        return right(question, answer.choices[0].message.content)

    return await asyncio.gather(*map(ask, asked))


async def compare(url: str, lines: int, sample: int, seed: int) -> bool:
    """Run both and print the accuracies."""
    asked = questions(lines, seed)
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0
    ) as sdk:
        batch = await in_a_batch(sdk, asked)
        interactive = await one_by_one(sdk, asked[:sample])
    here, there = share(batch[:sample]), share(interactive)
    print(f"accuracy of the batch {share(batch):.2%} of {lines} lines")
    print(f"of the first {sample} questions: batch {here:.2%}, interactive {there:.2%}")
    return abs(here - there) <= _DIFFERENCE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = FlagParser(prog="python -m tests.batch.arithmetic", description=__doc__)
    parser.add_argument("--rest-url", default="http://127.0.0.1:8000", help="Router.")
    parser.add_argument("--lines", type=int, default=5000, help="Lines of the batch.")
    parser.add_argument("--sample", type=int, default=1000, help="Interactive requests.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the questions.")
    flags = parser.parse_args(argv)
    kept = asyncio.run(compare(flags.rest_url, flags.lines, flags.sample, flags.seed))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
