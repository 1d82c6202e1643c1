"""OpenAI's SDK for Python."""

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
from cases import (
    ABOUT,
    ENOUGH,
    LARGE,
    PARAMETERS,
    PIXEL,
    SCHEMA,
    SYSTEM,
    TURNS,
    USER,
    WAIT,
    WEATHER,
    WEATHER_QUESTION,
    Refusals,
    admitted,
    check_arguments,
    check_schema,
    raises,
    retried,
)
from frame import KEY, LONG, MODEL, QUESTION, URL, feature, main, narrow_key, some_key
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=WAIT * 2)
ENDLESS: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": LONG}],
    "max_tokens": 1500,
    "extra_body": {"ignore_eos": True},
}


class Answer(BaseModel):
    """Type of structured answers."""

    answer: int = Field(ge=0, le=999)


def ask(**options: Any) -> Any:
    """Send a greedy request."""
    defaults = {"model": MODEL, "messages": USER, "temperature": 0, "max_tokens": ENOUGH}
    return client.chat.completions.create(**{**defaults, **options})


def joined(stream: Any) -> dict[int, dict[str, Any]]:
    """Return the assembled content of each choice of a stream."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for choice in chunk.choices:
            so_far = found.setdefault(
                choice.index,
                {"content": "", "reasoning": "", "calls": {}, "finish": None, "logprobs": []},
            )
            so_far["content"] += choice.delta.content or ""
            so_far["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            so_far["finish"] = choice.finish_reason or so_far["finish"]
            if choice.logprobs:
                so_far["logprobs"] += [entry.logprob for entry in choice.logprobs.content]
            for call in choice.delta.tool_calls or ():
                known = so_far["calls"].setdefault(call.index, ["", ""])
                known[0] += call.function.name or ""
                known[1] += call.function.arguments or ""
    return found


def whole(completion: Any) -> dict[int, dict[str, Any]]:
    """Return the content of each choice, in the form of ``joined``."""
    return {
        choice.index: {
            "content": choice.message.content or "",
            "reasoning": getattr(choice.message, "reasoning_content", None) or "",
            "calls": {
                i: [call.function.name, call.function.arguments]
                for i, call in enumerate(choice.message.tool_calls or ())
            },
            "finish": choice.finish_reason,
            "logprobs": [e.logprob for e in choice.logprobs.content] if choice.logprobs else [],
        }
        for choice in completion.choices
    }


# -- every client ---------------------------------------------------------------------------------


@feature("client.models")
def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9/mini")
    assert "gpt-9/mini" in caught[0].message


def refused(error: type[openai.APIStatusError], status: int, words: str, **options: Any) -> None:
    """Check that a request is rejected with the SDK's error type, our message and its id."""
    request_id = f"refused-{uuid.uuid4()}"
    with raises(error) as caught:
        ask(extra_headers={"x-request-id": request_id}, **options)
    assert caught[0].status_code == status
    assert words in caught[0].message, caught[0].message
    assert caught[0].request_id == request_id


@feature("client.key")
def wrong_key() -> None:
    some_key()
    stranger = client.with_options(api_key="moe-wrong")
    with raises(openai.AuthenticationError) as caught:
        stranger.chat.completions.create(model=MODEL, messages=USER, max_tokens=1)
    assert caught[0].status_code == 401
    assert caught[0].message
    assert caught[0].request_id


@feature("client.model")
def unknown_model() -> None:
    refused(openai.NotFoundError, 404, "gpt-9", model="gpt-9")


@feature("client.parameter")
def bad_parameter() -> None:
    refused(openai.BadRequestError, 400, "temperature", temperature=-1)
    refused(openai.BadRequestError, 400, "max_tokens", max_tokens="many")
    assert ask(max_tokens=1).choices


@feature("client.large")
def too_large() -> None:
    refused(openai.APIStatusError, 413, "", messages=[{"role": "user", "content": LARGE}])


@feature("client.unsupported")
def unsupported() -> None:
    for call in (
        lambda: client.embeddings.create(model=MODEL, input="x"),
        lambda: client.images.generate(model=MODEL, prompt="x"),
        lambda: client.moderations.create(model=MODEL, input="x"),
        client.files.list,
        client.batches.list,
        client.vector_stores.list,
        lambda: client.responses.retrieve("resp_0"),
        lambda: client.responses.cancel("resp_0"),
        lambda: client.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF")),
        lambda: client.files.create(file=("a.jsonl", b"{}"), purpose="batch"),
        lambda: client.audio.speech.create(model=MODEL, input="x", voice="alloy"),
    ):
        with raises(openai.APIStatusError) as caught:
            call()
        assert caught[0].status_code in {404, 405, 501}, caught[0]
        assert caught[0].message


@feature("client.headers")
def headers() -> None:
    request_id = f"mine-{uuid.uuid4()}"
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=USER,
        max_tokens=1,
        extra_headers={"x-request-id": request_id, "x-own": "kept"},
        user="me",
        metadata={"a": "b"},
    )
    assert raw.headers["x-request-id"] == request_id
    assert raw.parse()._request_id == request_id


@feature("client.timeout")
def time_out() -> None:
    narrow = client.with_options(api_key=narrow_key())
    with raises(openai.APITimeoutError):
        narrow.with_options(timeout=0.5).chat.completions.create(**ENDLESS)
    admitted(lambda: short(narrow), openai.RateLimitError)


def short(asked: openai.OpenAI) -> Any:
    return asked.chat.completions.create(model=MODEL, messages=USER, max_tokens=1)


@feature("client.cancel")
def cancelled() -> None:
    narrow = client.with_options(api_key=narrow_key())
    with narrow.chat.completions.create(**ENDLESS, stream=True) as stream:
        next(iter(stream))
        with raises(openai.RateLimitError) as caught:
            short(narrow)
        assert caught[0].code
    admitted(lambda: short(narrow), openai.RateLimitError)


@feature("client.retry")
def retry() -> None:
    refusals = Refusals()
    narrow = openai.OpenAI(
        base_url=f"{URL}/v1",
        api_key=narrow_key(),
        max_retries=9,
        http_client=openai.DefaultHttpxClient(event_hooks={"response": [refusals]}),
    )

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        with narrow.chat.completions.create(**ENDLESS, stream=True) as stream:
            next(iter(stream))
            yield

    raw = retried(
        hold,
        lambda: narrow.chat.completions.with_raw_response.create(
            model=MODEL, messages=USER, max_tokens=1
        ),
        refusals,
    )
    assert raw.retries_taken >= 1
    assert raw.parse().choices


@feature("client.async")
async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as sdk:
        options: Any = {"model": MODEL, "messages": USER, "temperature": 0, "max_tokens": 24}
        stream = await sdk.chat.completions.create(**options, stream=True)
        reasoning = ""
        async for chunk in stream:
            for choice in chunk.choices:
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        answer = await sdk.chat.completions.create(**options)
        assert answer.choices[0].message.reasoning_content == reasoning
        async with asyncio.timeout(WAIT):
            task = asyncio.create_task(sdk.chat.completions.create(**ENDLESS))
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@feature("client.parallel")
def parallel() -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: whole(ask(max_tokens=16)), range(8)))
    assert all(answer == answers[0] for answer in answers)


# -- chat -----------------------------------------------------------------------------------------


@feature("chat.whole", "chat.stream", "chat.reasoning", "chat.reasoning_stream")
def streamed_is_whole() -> None:
    answer = whole(ask())
    assert joined(ask(stream=True)) == answer
    assert answer[0]["reasoning"].strip()
    assert answer[0]["content"].strip()
    assert "</think>" not in answer[0]["content"] + answer[0]["reasoning"]
    assert answer[0]["finish"] == "stop"
    # The SDK's method to assemble a stream.
    with client.chat.completions.stream(
        model=MODEL, messages=USER, temperature=0, max_tokens=ENOUGH
    ) as stream:
        for _ in stream:
            pass
        assert whole(stream.get_final_completion()) == answer


@feature("chat.usage")
def usage() -> None:
    counted = ask().usage
    assert counted.total_tokens == counted.prompt_tokens + counted.completion_tokens
    assert 0 < counted.completion_tokens_details.reasoning_tokens < counted.completion_tokens
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    last = chunks[-1].usage
    assert last.model_dump(exclude_none=True) == counted.model_dump(exclude_none=True)
    assert all(chunk.usage is None for chunk in chunks[:-1])


@feature("chat.conversation")
def conversation() -> None:
    longer = ask(messages=TURNS, max_tokens=8)
    assert longer.usage.prompt_tokens > ask(max_tokens=1).usage.prompt_tokens
    developer = [{"role": "developer", "content": SYSTEM}, *USER]
    assert ask(messages=developer, max_tokens=8).choices


@feature("chat.reasoning_back")
def reasoning_back() -> None:
    first = ask().choices[0].message
    for sent in (first, first.model_dump(), first.model_dump(exclude_none=True)):
        assert ask(messages=[*USER, sent, *USER], max_tokens=8).choices


@feature("chat.parts")
def parts() -> None:
    content = [{"type": "text", "text": "What is "}, {"type": "text", "text": "17+25?"}]
    assert ask(messages=[{"role": "user", "content": content}], max_tokens=8).choices


@feature("chat.image")
def image() -> None:
    content = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    refused(openai.BadRequestError, 400, "", messages=[{"role": "user", "content": content}])


@feature("chat.length")
def length() -> None:
    for options in ({"max_tokens": 4}, {"max_tokens": None, "max_completion_tokens": 4}):
        answer = ask(**options)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 4


@feature("chat.stop")
def stop() -> None:
    answer = whole(ask())[0]
    for words in (["ZZZZ"], [answer["content"].strip()[-1]], [answer["reasoning"][5:8]]):
        found = whole(ask(stop=words))
        assert joined(ask(stop=words, stream=True)) == found
        assert words[0] not in found[0]["content"] + found[0]["reasoning"]


@feature("chat.n")
def several() -> None:
    options = {"n": 2, "temperature": 0.8, "seed": 3, "max_tokens": 12}
    found = whole(ask(**options))
    assert sorted(found) == [0, 1]
    assert joined(ask(**options, stream=True)) == found


@feature("chat.logprobs")
def logprobs() -> None:
    options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    completion = ask(**options)
    entries = completion.choices[0].logprobs.content
    assert len(entries) == 6
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 3 for entry in entries)
    assert joined(ask(**options, stream=True)) == whole(completion)


@feature("chat.seed")
def seed() -> None:
    options = {"temperature": 0.9, "seed": 7, "max_tokens": 12, "top_p": 0.9}
    assert whole(ask(**options)) == whole(ask(**options))


ASKING: Any = {"messages": [{"role": "user", "content": WEATHER_QUESTION}], "tools": [WEATHER]}
NAMED = {"type": "function", "function": {"name": "weather"}}


@feature("chat.tools_auto")
def tools_auto() -> None:
    answer = whole(ask(**ASKING, tool_choice="auto", max_tokens=120))
    assert joined(ask(**ASKING, tool_choice="auto", max_tokens=120, stream=True)) == answer
    assert whole(ask(**ASKING, tool_choice="none", max_tokens=40))[0]["calls"] == {}


@feature("chat.tools_required", "chat.tools_named", "chat.tools_stream")
def tools_forced() -> None:
    for choice in ("required", NAMED):
        answer = whole(ask(**ASKING, tool_choice=choice, max_tokens=400))
        assert answer[0]["calls"], answer
        for name, arguments in answer[0]["calls"].values():
            assert name == "weather"
            check_arguments(arguments)
        assert joined(ask(**ASKING, tool_choice=choice, max_tokens=400, stream=True)) == answer
    # Parsed by the SDK.
    with client.chat.completions.stream(
        model=MODEL, temperature=0, max_tokens=400, tool_choice="required", **ASKING
    ) as stream:
        (choice,) = stream.get_final_completion().choices
    assert choice.message.tool_calls[0].function.parsed_arguments["days"] in range(1, 10)


@feature("chat.tools_back")
def tools_back() -> None:
    message = ask(**ASKING, tool_choice="required", max_tokens=400).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    for sent in (message, message.model_dump(exclude_none=True)):
        turns = [*ASKING["messages"], sent, *results]
        assert ask(messages=turns, tools=[WEATHER], max_tokens=8).choices


@feature("chat.json_object")
def json_object() -> None:
    answer = ask(response_format={"type": "json_object"}, max_tokens=400).choices[0]
    assert (answer.message.content or "").lstrip().startswith("{")


JSON_SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
}


@feature("chat.json_schema")
def json_schema() -> None:
    check_schema(ask(response_format=JSON_SCHEMA).choices[0].message.content)
    parsed = client.chat.completions.parse(
        model=MODEL, messages=USER, temperature=0, max_tokens=ENOUGH, response_format=Answer
    )
    assert 0 <= parsed.choices[0].message.parsed.answer <= 999


@feature("chat.json_stream")
def json_stream() -> None:
    options = {"response_format": JSON_SCHEMA}
    assert joined(ask(**options, stream=True)) == whole(ask(**options))
    with client.chat.completions.stream(
        model=MODEL, messages=USER, temperature=0, max_tokens=ENOUGH, response_format=Answer
    ) as stream:
        assert stream.get_final_completion().choices[0].message.parsed is not None


# -- completions ----------------------------------------------------------------------------------


def complete(**options: Any) -> Any:
    defaults = {"model": MODEL, "prompt": QUESTION, "temperature": 0, "max_tokens": 24}
    return client.completions.create(**{**defaults, **options})


@feature("completions.whole", "completions.stream")
def completions() -> None:
    text = complete().choices[0].text
    assert text
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == text
    assert chunks[-1].usage.completion_tokens > 0


@feature("completions.options")
def completions_options() -> None:
    text = complete().choices[0].text
    assert complete(echo=True).choices[0].text == QUESTION + text
    both = complete(prompt=[QUESTION, "abc"])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == text
    assert len(complete(logprobs=2, max_tokens=4).choices[0].logprobs.tokens) == 4
    cut = complete(stop=[text[4:6]]).choices[0]
    assert (cut.text, cut.finish_reason) == (text[: text.index(text[4:6])], "stop")


# -- responses ------------------------------------------------------------------------------------

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": ABOUT,
    "strict": True,
    "parameters": PARAMETERS,
}


def respond(**options: Any) -> Any:
    defaults = {
        "model": MODEL,
        "input": QUESTION,
        "temperature": 0,
        "max_output_tokens": ENOUGH,
        "store": False,
    }
    return client.responses.create(**{**defaults, **options})


def said(response: Any) -> list[Any]:
    """Return a response's output without fields that differ between responses."""
    items = []
    for item in response.output:
        if item.type == "function_call":
            items.append((item.type, item.name, item.arguments))
        else:
            items.append((item.type, "".join(part.text for part in item.content or ())))
    return items


@feature("responses.whole", "responses.stream")
def responses() -> None:
    answer = respond()
    assert answer.status == "completed"
    assert [kind for kind, _ in said(answer)] == ["reasoning", "message"]
    assert answer.output_text == said(answer)[1][1]
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    events = list(respond(stream=True))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert said(events[-1].response) == said(answer)
    for kind, text in (("reasoning_text", said(answer)[0][1]), ("output_text", answer.output_text)):
        assert "".join(e.delta for e in events if e.type == f"response.{kind}.delta") == text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=ENOUGH, store=False
    ) as stream:
        assert said(stream.get_final_response()) == said(answer)


@feature("responses.tools")
def responses_tools() -> None:
    options = {"input": WEATHER_QUESTION, "tools": [TOOL], "max_output_tokens": 400}
    for choice in ("required", {"type": "function", "name": "weather"}):
        answer = respond(**options, tool_choice=choice)
        calls = [item for item in answer.output if item.type == "function_call"]
        assert calls, answer
        check_arguments(calls[0].arguments)
        events = list(respond(**options, tool_choice=choice, stream=True))
        assert said(events[-1].response) == said(answer)
        parts = [e for e in events if e.type == "response.function_call_arguments.delta"]
        first = [e.delta for e in parts if e.output_index == parts[0].output_index]
        assert "".join(first) == calls[0].arguments
    turns = [
        {"role": "user", "content": WEATHER_QUESTION},
        *answer.output,
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "sunny"},
    ]
    assert respond(input=turns, tools=[TOOL], max_output_tokens=8).output is not None


@feature("responses.json")
def responses_json() -> None:
    form = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    check_schema(respond(text=form).output_text)
    parsed = client.responses.parse(
        model=MODEL, input=QUESTION, temperature=0, max_output_tokens=ENOUGH, text_format=Answer
    )
    assert 0 <= parsed.output_parsed.answer <= 999


@feature("responses.conversation")
def responses_conversation() -> None:
    first = respond(instructions=SYSTEM)
    turns = [
        {"role": "user", "content": QUESTION},
        *first.output,
        {"role": "user", "content": QUESTION},
    ]
    plain = respond(max_output_tokens=1).usage.input_tokens
    assert first.usage.input_tokens > plain
    assert respond(input=turns, max_output_tokens=8).usage.input_tokens > plain


@feature("responses.length")
def responses_length() -> None:
    answer = respond(max_output_tokens=5)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert list(respond(max_output_tokens=5, stream=True))[-1].type == "response.incomplete"


main(packages=("openai",), cannot={"messages.*": "supports only OpenAI's API"})
