"""The effect of prefix affinity: the same conversations, routed with affinity and by load alone.

    python -m loadtest.demos.affinity --trace conversation.jsonl

Starts vLLM ranks of a small random mixture-of-experts model with prefix caching, and two routers in
this process that differ only in ``routing.weights``. Slices of a trace are replayed through both in
alternating order. The two routers get different tokens, so that neither uses the other's cache.

The trace is in Mooncake's format: a JSON object on each line with ``timestamp`` (ms),
``input_length``, ``output_length`` and ``hash_ids``, one id for each 512 tokens of the prompt;
equal ids are equal tokens. Lengths and times are scaled down for a small machine. Without a trace,
conversations with shared prefixes are generated.
"""

import argparse
import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from loadtest.demos.fleet import Router, ranks, settings_for
from loadtest.demos.tiny_moe import make_tiny_moe
from loadtest.trace import Request, cacheable_share, generated_requests, read_trace, sampled
from serving.flags.parser import FlagParser
from serving.flags.paths import OutputDirectory, ReadableFile
from serving.flags.values import AMOUNT, COUNT
from serving.settings import RoutingSettings, RoutingWeights

BLOCK = 128
"""Tokens of a KV-cache block on CPU; each stands for 512 tokens of the trace."""
_FIRST_TOKEN = 8
"""Smallest token id used; lower ids may be special tokens."""
_START_TIMEOUT = 600.0
_RESAMPLES = 2000
_SETTLE = 1.0
"""Seconds between two replays; longer than the maximum age of load reports (0.5 s)."""

WAYS = {
    "affinity": RoutingSettings(),
    "load alone": RoutingSettings(
        weights=RoutingWeights(prefix=0, session=0, kv_room=0), history_trust=0
    ),
}


@dataclass(slots=True)
class Tally:
    """Measurements with one routing configuration."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_tokens: dict[int, float] = field(default_factory=dict)
    """Time to first token, seconds, by the request's position in the trace."""
    failed: int = 0

    def row(self, name: str) -> str:
        """Return the row of the table."""
        return (
            f"{name:<12} {len(self.first_tokens):>8} {self.failed:>6} "
            f"{self.cached_tokens / max(self.prompt_tokens, 1):>9.1%} "
            f"{_quantile(self._times, 0.5) * 1000:>10.0f} "
            f"{_quantile(self._times, 0.9) * 1000:>10.0f} "
            f"{mean(self._times or [0.0]) * 1000:>10.0f}"
        )

    @property
    def _times(self) -> list[float]:
        return list(self.first_tokens.values())


def saving(affinity: Tally, alone: Tally, seed: int = 1) -> str:
    """Return a sentence about the time to first token that affinity saves, paired by request."""
    both = sorted(affinity.first_tokens.keys() & alone.first_tokens.keys())
    if not both:
        return "no request succeeded with both routings"
    saved = [alone.first_tokens[number] - affinity.first_tokens[number] for number in both]
    base = mean(alone.first_tokens[number] for number in both)
    rng = random.Random(seed)  # noqa: S311  statistics
    means = sorted(mean(rng.choices(saved, k=len(saved))) for _ in range(_RESAMPLES))
    low, high = (means[int(share * _RESAMPLES)] for share in (0.025, 0.975))
    return (
        f"affinity saves {mean(saved) * 1000:.0f} ms of {base * 1000:.0f} ms to the first token "
        f"({mean(saved) / base:.0%}; 95 % of {_RESAMPLES} resamples of the {len(both)} pairs: "
        f"{low * 1000:.0f} to {high * 1000:.0f} ms); "
        f"{sum(each > 0 for each in saved)} requests were faster with it"
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive requests of the trace."""

    first: int
    """Position of the first request in the trace."""
    requests: Sequence[Request]


def prompt_of(request: Request, salt: str, vocabulary: int) -> list[int]:
    """Return the tokens of a prompt; equal block ids and salts give equal tokens."""
    tokens: list[int] = []
    for name in request.blocks:
        rng = random.Random(f"{salt}/{name}")  # noqa: S311  text, no secret
        tokens += [rng.randrange(_FIRST_TOKEN, vocabulary) for _ in range(BLOCK)]
    return tokens[: request.prompt_tokens]


async def replay(router: Router, part: Part, tally: Tally, salt: str, speed: float) -> None:
    """Send requests at their times, ``speed`` times as fast, and add them to the tally."""
    requests = part.requests
    vocabulary = router.client.model_config.get_vocab_size()
    begun = time.perf_counter()
    first = requests[0].at if requests else 0.0

    async def send(number: int, request: Request, prompt: list[int]) -> None:
        await asyncio.sleep(max((request.at - first) / speed - (time.perf_counter() - begun), 0))
        place = part.first + number
        await _measure(router, prompt, request.output_tokens, f"{salt}-{place}", tally, place)

    prompts = [prompt_of(request, salt, vocabulary) for request in requests]
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
            group.create_task(send(number, request, prompt))


async def _measure(
    router: Router, prompt: list[int], output_tokens: int, name: str, tally: Tally, place: int
) -> None:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    from serving.errors import ServingError

    params = SamplingParams(
        max_tokens=output_tokens,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    begun = time.perf_counter()
    first: float | None = None
    cached = 0
    stream = router.client.generate({"type": "token", "prompt_token_ids": prompt}, params, name)
    try:
        async for output in stream:
            if first is None:
                first = time.perf_counter() - begun
                cached = output.num_cached_tokens or 0
    except ServingError:
        tally.failed += 1
        return
    if first is not None:
        tally.first_tokens[place] = first
        tally.prompt_tokens += len(prompt)
        tally.cached_tokens += cached


async def compare(
    options: argparse.Namespace, requests: Sequence[Request], folder: Path
) -> dict[str, Tally]:
    """Replay all requests with both routing configurations; return the tally of each."""
    model = make_tiny_moe(folder / "model", layers=options.layers, context=options.context)
    settings = settings_for(options, model)
    tallies = {name: Tally() for name in WAYS}
    async with contextlib.AsyncExitStack() as stack:
        routers: dict[str, Router] = {}
        addresses = []
        for name, routing in WAYS.items():
            router = routers[name] = Router(settings.model_copy(update={"routing": routing}))
            stack.push_async_callback(router.stop)
            addresses.append(f"127.0.0.1:{await router.server.start()}")
        await stack.enter_async_context(ranks(settings, options.ranks, addresses, folder))
        async with asyncio.timeout(_START_TIMEOUT):
            while not all(  # noqa: ASYNC110  two routers at once
                _joined(router, options.ranks) for router in routers.values()
            ):
                await asyncio.sleep(0.05)
        size = -(-len(requests) // options.slices)
        slices = [
            Part(start, requests[start : start + size]) for start in range(0, len(requests), size)
        ]
        for number, part in enumerate(slices):
            # Alternate the order: the first replay runs on a colder machine.
            order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
            for name in order:
                await asyncio.sleep(_SETTLE)
                await replay(routers[name], part, tallies[name], name, options.speed)
            print(f"slice {number + 1} of {len(slices)} done", flush=True)
    return tallies


def _joined(router: Router, count: int) -> bool:
    return sum(group.state == "ready" for group in router.membership.snapshot().groups) == count


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument(
        "--trace", type=ReadableFile(), help="trace in Mooncake's format (default: generated)"
    )
    parser.add_argument(
        "--requests", type=COUNT, default=120, help="requests to replay (default: 120)"
    )
    parser.add_argument(
        "--window",
        type=COUNT,
        default=4000,
        help="first requests of the trace, from which complete conversations are sampled "
        "(default: 4000)",
    )
    parser.add_argument(
        "--slices", type=COUNT, default=2, help="slices replayed alternately (default: 2)"
    )
    parser.add_argument(
        "--ranks", type=COUNT, default=2, help="groups, of one rank each (default: 2)"
    )
    parser.add_argument(
        "--speed", type=AMOUNT, default=1.0, help="speed relative to the trace (default: 1)"
    )
    parser.add_argument(
        "--context",
        type=COUNT,
        default=8192,
        help="maximum length of prompt plus answer, tokens (default: 8192)",
    )
    parser.add_argument(
        "--max-output", type=COUNT, default=16, help="maximum answer length, tokens (default: 16)"
    )
    parser.add_argument("--layers", type=COUNT, default=4, help="layers of the model (default: 4)")
    parser.add_argument(
        "--kv-cache-gib", type=AMOUNT, default=0.25, help="KV cache of a rank, GiB (default: 0.25)"
    )
    parser.add_argument(
        "--folder",
        type=OutputDirectory(),
        help="directory for the model and the logs (default: temporary)",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Run the demonstration and print the table."""
    options = options_of()
    os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    longest = options.context - options.max_output - 1
    if options.trace:
        source = sampled(read_trace(options.trace)[: options.window], options.requests)
    else:
        source = generated_requests(options.requests)
    requests = [
        request.scaled(BLOCK, longest=longest, most_output=options.max_output) for request in source
    ]
    with tempfile.TemporaryDirectory(prefix="moe-serving-affinity-") as temporary:
        folder: Path = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        tallies = asyncio.run(compare(options, requests, folder))
    tokens = sum(request.prompt_tokens for request in requests)
    print(
        f"\n{len(requests)} requests, {tokens} prompt tokens; "
        "one cache of unlimited size would hold "
        f"{cacheable_share(requests, BLOCK):.1%} of them"
        f"\n{'routing':<12} {'requests':>8} {'failed':>6} {'hit rate':>9} "
        f"{'TTFT p50':>10} {'p90 (ms)':>10} {'mean':>10}"
    )
    for name, tally in tallies.items():
        print(tally.row(name))
    print(saving(tallies["affinity"], tallies["load alone"]))


if __name__ == "__main__":
    main()
