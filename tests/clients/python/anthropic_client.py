"""Anthropic's SDK for Python."""

import contextlib
import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
from cases import (
    ABOUT,
    ENOUGH,
    LARGE,
    PARAMETERS,
    PIXEL,
    SYSTEM,
    TURNS,
    USER,
    WAIT,
    WEATHER_QUESTION,
    Refusals,
    admitted,
    check_arguments,
    raises,
    retried,
)
from frame import KEY, LONG, MODEL, QUESTION, URL, feature, main, narrow_key, some_key

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=WAIT * 2)
# This API has no ignore_eos: use a tool call that the grammar makes long enough.
ENDLESS: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": LONG}],
    "max_tokens": 1500,
    "tools": [
        {
            "name": "write",
            "input_schema": {
                "type": "object",
                "properties": {"text": {"type": "string", "minLength": 1200}},
                "required": ["text"],
            },
        }
    ],
    "tool_choice": {"type": "tool", "name": "write"},
}
TOOL: Any = {
    "name": "weather",
    "description": ABOUT,
    "input_schema": PARAMETERS,
    "strict": True,
}


def ask(**options: Any) -> Any:
    """Send a greedy request."""
    return client.messages.create(**asking(**options))


def asking(**options: Any) -> dict[str, Any]:
    """Return a greedy request."""
    # The SDK no longer has sampling parameters; the API has them.
    greedy = {"temperature": 0, **options.pop("extra_body", {})}
    return {"model": MODEL, "messages": USER, "max_tokens": ENOUGH, "extra_body": greedy, **options}


def blocks(message: Any) -> list[tuple[str, Any]]:
    """Return a message's blocks without fields that differ between messages."""
    found: list[tuple[str, Any]] = []
    for block in message.content:
        if block.type == "tool_use":
            found.append((block.name, block.input))
        else:
            found.append((block.type, getattr(block, block.type)))
    return found


def kinds(message: Any) -> list[str]:
    """Return the types of a message's blocks."""
    return [block.type for block in message.content]


def streamed(**options: Any) -> Any:
    """Return the message that the SDK assembles from a stream; check that its events agree."""
    parts: dict[int, str] = {}
    with client.messages.stream(**asking(**options)) as stream:
        for event in stream:
            if event.type == "content_block_delta":
                delta = event.delta
                text = {
                    "text_delta": lambda d=delta: d.text,
                    "thinking_delta": lambda d=delta: d.thinking,
                    "input_json_delta": lambda d=delta: d.partial_json,
                }.get(delta.type, lambda: "")()
                parts[event.index] = parts.get(event.index, "") + text
        message = stream.get_final_message()
    for index, (kind, value) in enumerate(blocks(message)):
        if kind in {"text", "thinking"}:
            assert parts[index] == value
        else:
            assert json.loads(parts[index]) == value
    return message


# -- every client ---------------------------------------------------------------------------------


@feature("client.models")
def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with raises(anthropic.NotFoundError):
        client.models.retrieve("claude-9")


def refused(error: type[anthropic.APIStatusError], kind: str, words: str, **options: Any) -> None:
    """Check that a request is rejected with the SDK's error type, our message and its id."""
    request_id = f"refused-{uuid.uuid4()}"
    with raises(error) as caught:
        ask(extra_headers={"x-request-id": request_id}, **options)
    assert words in caught[0].message, caught[0].message
    body = caught[0].body
    assert (body["type"], body["error"]["type"]) == ("error", kind), body
    assert body["error"]["message"]
    assert caught[0].request_id == request_id, caught[0].request_id


@feature("client.key")
def wrong_key() -> None:
    some_key()
    with raises(anthropic.AuthenticationError) as caught:
        client.with_options(api_key="moe-wrong").messages.create(**asking(max_tokens=1))
    assert caught[0].body["error"]["type"] == "authentication_error"
    assert caught[0].request_id
    bearer = anthropic.Anthropic(base_url=URL, auth_token=KEY, api_key=None, max_retries=0)
    assert bearer.messages.create(**asking(max_tokens=1)).content is not None


@feature("client.model")
def unknown_model() -> None:
    refused(anthropic.NotFoundError, "not_found_error", "gpt-9", model="gpt-9")


@feature("client.parameter")
def bad_parameter() -> None:
    error = anthropic.BadRequestError
    refused(error, "invalid_request_error", "temperature", extra_body={"temperature": -1})
    refused(error, "invalid_request_error", "max_tokens", max_tokens=-1)


@feature("client.large")
def too_large() -> None:
    error = anthropic.RequestTooLargeError
    refused(error, "request_too_large", "", messages=[{"role": "user", "content": LARGE}])


@feature("client.unsupported")
def unsupported() -> None:
    for call in (
        client.messages.batches.list,
        client.beta.files.list,
    ):
        with raises(anthropic.APIStatusError) as caught:
            call()
        assert caught[0].status_code in {404, 405, 501}, caught[0]
    content = [
        {
            "type": "image",
            "source": {
                "type": "base64",
                "media_type": "image/png",
                "data": PIXEL.partition(",")[2],
            },
        },
        {"type": "text", "text": QUESTION},
    ]
    refused(
        anthropic.BadRequestError,
        "invalid_request_error",
        "",
        messages=[{"role": "user", "content": content}],
    )


@feature("client.headers")
def headers() -> None:
    request_id = f"mine-{uuid.uuid4()}"
    message = ask(
        max_tokens=1,
        extra_headers={"x-request-id": request_id, "anthropic-beta": "a-2025-01-01"},
        metadata={"user_id": "me"},
    )
    assert message._request_id == request_id


@feature("client.timeout")
def time_out() -> None:
    narrow = client.with_options(api_key=narrow_key())
    with raises(anthropic.APITimeoutError):
        narrow.with_options(timeout=0.5).messages.create(**ENDLESS)
    admitted(lambda: short(narrow), anthropic.RateLimitError)


def short(asked: anthropic.Anthropic) -> Any:
    return asked.messages.create(**asking(max_tokens=1))


@feature("client.cancel")
def cancelled() -> None:
    narrow = client.with_options(api_key=narrow_key())
    with narrow.messages.create(**ENDLESS, stream=True) as stream:
        next(iter(stream))
        with raises(anthropic.RateLimitError) as caught:
            short(narrow)
        assert caught[0].body["error"]["type"] == "rate_limit_error"
    admitted(lambda: short(narrow), anthropic.RateLimitError)


@feature("client.retry")
def retry() -> None:
    refusals = Refusals()
    narrow = anthropic.Anthropic(
        base_url=URL,
        api_key=narrow_key(),
        max_retries=9,
        http_client=anthropic.DefaultHttpxClient(event_hooks={"response": [refusals]}),
    )

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        with narrow.messages.create(**ENDLESS, stream=True) as stream:
            next(iter(stream))
            yield

    assert retried(hold, lambda: short(narrow), refusals).content is not None


@feature("client.async")
async def asynchronous() -> None:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0) as sdk:
        async with sdk.messages.stream(**asking(max_tokens=24)) as stream:
            async for _ in stream:
                pass
            joined = await stream.get_final_message()
        assert blocks(joined) == blocks(await sdk.messages.create(**asking(max_tokens=24)))


@feature("client.parallel")
def parallel() -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: blocks(ask(max_tokens=16)), range(8)))
    assert all(answer == answers[0] for answer in answers)


# -- messages -------------------------------------------------------------------------------------


@feature("messages.whole", "messages.stream", "messages.thinking")
def streamed_is_whole() -> None:
    message = ask()
    assert kinds(message) == ["thinking", "text"]
    assert all(value.strip() for _, value in blocks(message))
    assert (message.stop_reason, message.role, message.type) == ("end_turn", "assistant", "message")
    joined = streamed()
    assert blocks(joined) == blocks(message)
    assert joined.stop_reason == message.stop_reason
    assert joined.usage.output_tokens == message.usage.output_tokens
    assert joined.usage.input_tokens == message.usage.input_tokens
    options = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1100}
    assert kinds(ask(**options))[0] == "thinking"
    cut = ask(max_tokens=4)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 4)


@feature("messages.thinking_off")
def thinking_off() -> None:
    message = ask(thinking={"type": "disabled"})
    assert kinds(message) == ["text"]
    assert message.content[0].text.strip()
    assert blocks(streamed(thinking={"type": "disabled"})) == blocks(message)


@feature("messages.thinking_back")
def thinking_back() -> None:
    first = ask()
    for content in (first.content, [block.model_dump() for block in first.content]):
        turns = [*USER, {"role": "assistant", "content": content}, *USER]
        assert ask(messages=turns, max_tokens=8).content is not None


@feature("messages.system")
def system() -> None:
    plain = ask(max_tokens=1).usage.input_tokens
    for given in (
        SYSTEM,
        [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}],
    ):
        assert ask(system=given, max_tokens=1).usage.input_tokens > plain
    assert ask(messages=TURNS[1:], max_tokens=1).usage.input_tokens > plain
    parts = [{"type": "text", "text": QUESTION}]
    assert (
        ask(messages=[{"role": "user", "content": parts}], max_tokens=1).usage.input_tokens == plain
    )


@feature("messages.stop")
def stop() -> None:
    text = ask().content[-1].text
    word = text.strip()[-1]
    message = ask(stop_sequences=[word])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    joined = streamed(stop_sequences=[word])
    assert (blocks(joined), joined.stop_sequence) == (blocks(message), word)


ASKING: Any = {
    "messages": [{"role": "user", "content": WEATHER_QUESTION}],
    "tools": [TOOL],
    "max_tokens": 400,
}


def calls(message: Any) -> list[Any]:
    """Return the calls of a message."""
    return [block for block in message.content if block.type == "tool_use"]


@feature("messages.tools", "messages.tools_stream")
def tools() -> None:
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        message = ask(**ASKING, tool_choice=choice)
        assert message.stop_reason == "tool_use"
        assert calls(message), message
        for call in calls(message):
            check_arguments(call.input)
        assert blocks(streamed(**ASKING, tool_choice=choice)) == blocks(message)
    free = {**ASKING, "max_tokens": 120}
    assert blocks(streamed(**free)) == blocks(ask(**free))


@feature("messages.tools_back")
def tools_back() -> None:
    message = ask(**ASKING, tool_choice={"type": "any"})
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        for call in calls(message)
    ]
    turns = [
        *ASKING["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results},
    ]
    assert ask(messages=turns, tools=[TOOL], max_tokens=8).content is not None


@feature("messages.count_tokens")
def count_tokens() -> None:
    for options in ({}, {"system": SYSTEM}, {"tools": [TOOL]}):
        counted = client.messages.count_tokens(model=MODEL, messages=USER, **options)
        assert counted.input_tokens == ask(**options, max_tokens=1).usage.input_tokens


OTHER = "supports only Anthropic's API"
main(
    packages=("anthropic",),
    cannot={"chat.*": OTHER, "completions.*": OTHER, "responses.*": OTHER},
)
