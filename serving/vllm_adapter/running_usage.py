"""Adds the number of cached prompt tokens to the usage of every chunk of a stream.

vLLM 0.32 reports it only in the final usage. Streams without
``stream_options.continuous_usage_stats`` are unchanged.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import msgspec

_DATA = "data: "
_END = "\n\n"


def with_cached_tokens(
    stream: Callable[..., AsyncGenerator[str, None]],
    request: Any,
    *args: Any,
    **kwargs: Any,
) -> AsyncGenerator[str, None]:
    """Return the events of a stream, with cached tokens in every usage.

    Args:
        stream: vLLM's stream generator, a bound method.
        request: the request, the first argument of ``stream``.
        args: further arguments of ``stream``, including the asynchronous iterator over the outputs.
        kwargs: keyword arguments of ``stream``.
    """
    options = request.stream_options
    if not (options and options.include_usage and options.continuous_usage_stats):
        return stream(request, *args, **kwargs)
    seen: dict[str, int] = {}
    noted = [_noting(arg, seen) if hasattr(arg, "__aiter__") else arg for arg in args]
    return _completed(stream(request, *noted, **kwargs), seen)


async def _noting(outputs: AsyncIterator[Any], seen: dict[str, int]) -> AsyncGenerator[Any]:
    async for item in outputs:
        # /v1/completions yields pairs of a prompt index and an output.
        output = item[1] if isinstance(item, tuple) else item
        if "cached_tokens" not in seen and output.num_cached_tokens is not None:
            seen["cached_tokens"] = output.num_cached_tokens
        yield item


async def _completed(
    events: AsyncGenerator[str, None], seen: dict[str, int]
) -> AsyncGenerator[str, None]:
    async for event in events:
        yield _with_details(event, seen) if seen and '"usage":{' in event else event


def _with_details(event: str, seen: dict[str, int]) -> str:
    chunk = msgspec.json.decode(event.removeprefix(_DATA))
    usage = chunk.get("usage") if isinstance(chunk, dict) else None
    if not isinstance(usage, dict) or usage.get("prompt_tokens_details"):
        return event
    usage["prompt_tokens_details"] = dict(seen)
    return f"{_DATA}{msgspec.json.encode(chunk).decode()}{_END}"
