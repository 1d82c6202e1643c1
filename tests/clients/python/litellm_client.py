"""LiteLLM's library: the providers hosted_vllm, openai, text-completion-openai and anthropic."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import accesses the internet

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litellm
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
    admitted,
    check_arguments,
    check_schema,
    raises,
)
from frame import KEY, LONG, MODEL, QUESTION, URL, feature, main, narrow_key, some_key

litellm.telemetry = False
litellm.suppress_debug_info = True
API = {
    "api_base": f"{URL}/v1",
    "api_key": KEY,
    "timeout": WAIT * 2,
    "num_retries": 0,
    "max_retries": 0,
}


def ask(**options: Any) -> Any:
    """Send a greedy request."""
    return litellm.completion(**asking(**options))


def asking(**options: Any) -> dict[str, Any]:
    """Return a greedy request."""
    defaults = {
        "model": f"hosted_vllm/{MODEL}",
        "messages": USER,
        "temperature": 0,
        "max_tokens": ENOUGH,
    }
    return {**API, **defaults, **options}


def said(message: Any) -> tuple[str, str, list[tuple[str, str]]]:
    """Return reasoning, content and calls."""
    return (
        getattr(message, "reasoning_content", None) or "",
        message.content or "",
        [(call.function.name, call.function.arguments) for call in message.tool_calls or ()],
    )


def streamed(**options: Any) -> Any:
    """Return the message that LiteLLM assembles from a stream."""
    chunks = list(ask(**options, stream=True))
    return litellm.stream_chunk_builder(chunks).choices[0].message


# -- every client ---------------------------------------------------------------------------------


def refused(error: type[Exception], words: str, **options: Any) -> None:
    with raises(error) as caught:
        ask(**options)
    assert words in str(caught[0]), caught[0]


@feature("client.key")
def wrong_key() -> None:
    some_key()
    refused(litellm.AuthenticationError, "key", api_key="moe-wrong")


@feature("client.model")
def unknown_model() -> None:
    refused(litellm.NotFoundError, "gpt-9", model="hosted_vllm/gpt-9")


@feature("client.parameter")
def bad_parameter() -> None:
    refused(litellm.BadRequestError, "temperature", temperature=-1)


@feature("client.large")
def too_large() -> None:
    with raises(litellm.APIError) as caught:
        ask(messages=[{"role": "user", "content": LARGE}])
    assert caught[0].status_code == 413, caught[0].status_code


@feature("client.unsupported")
def unsupported() -> None:
    with raises(Exception) as caught:
        litellm.embedding(model=f"hosted_vllm/{MODEL}", input=["x"], **API)
    assert caught[0].status_code in {404, 501}, caught[0]


@feature("client.headers")
def headers() -> None:
    answer = ask(max_tokens=1, extra_headers={"x-request-id": "mine-1"})
    sent = answer._hidden_params["additional_headers"]
    assert sent["llm_provider-x-request-id"] == "mine-1"


def endless(**options: Any) -> Any:
    return ask(
        api_key=narrow_key(),
        messages=[{"role": "user", "content": LONG}],
        max_tokens=1500,
        extra_body={"ignore_eos": True},
        **options,
    )


def short(**options: Any) -> Any:
    return ask(api_key=narrow_key(), max_tokens=1, **options)


@feature("client.timeout")
def time_out() -> None:
    with raises(litellm.Timeout):
        endless(timeout=0.5)
    admitted(short, litellm.RateLimitError)


@feature("client.cancel")
def cancelled() -> None:
    stream = endless(stream=True)
    next(iter(stream))
    with raises(litellm.RateLimitError):
        short()
    stream.completion_stream.close()
    admitted(short, litellm.RateLimitError)


@feature("client.retry")
def retry() -> None:
    refusals: list[Any] = []

    def note(*arguments: Any) -> None:
        refusals.append(arguments)

    litellm.failure_callback = [note]

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        stream = endless(stream=True)
        next(iter(stream))
        yield
        stream.completion_stream.close()

    with ThreadPoolExecutor(1) as pool:
        with hold():
            with raises(litellm.RateLimitError):
                short()
            patience = {"num_retries": 9, "retry_strategy": "exponential_backoff_retry"}
            answer = pool.submit(lambda: short(**patience))
        assert answer.result(WAIT).choices


@feature("client.async")
async def asynchronous() -> None:
    whole = await litellm.acompletion(**asking(max_tokens=24))
    chunks = [
        chunk async for chunk in await litellm.acompletion(**asking(max_tokens=24), stream=True)
    ]
    joined = litellm.stream_chunk_builder(chunks)
    assert said(joined.choices[0].message) == said(whole.choices[0].message)


@feature("client.parallel")
def parallel() -> None:
    answers = litellm.batch_completion(**{**asking(max_tokens=16), "messages": [USER] * 8})
    assert len({said(answer.choices[0].message)[0] for answer in answers}) == 1


# -- chat -----------------------------------------------------------------------------------------


@feature("chat.whole", "chat.stream", "chat.reasoning", "chat.reasoning_stream")
def streamed_is_whole() -> None:
    answer = ask().choices[0]
    reasoning, content, _ = said(answer.message)
    assert reasoning.strip()
    assert content.strip()
    assert "</think>" not in reasoning + content
    assert answer.finish_reason == "stop"
    assert said(streamed()) == said(answer.message)


@feature("chat.usage")
def usage() -> None:
    counted = ask().usage
    assert counted.total_tokens == counted.prompt_tokens + counted.completion_tokens
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    last = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)][-1]
    assert last.completion_tokens == counted.completion_tokens
    assert last.prompt_tokens == counted.prompt_tokens


@feature("chat.conversation")
def conversation() -> None:
    assert (
        ask(messages=TURNS, max_tokens=8).usage.prompt_tokens
        > ask(max_tokens=1).usage.prompt_tokens
    )


@feature("chat.reasoning_back")
def reasoning_back() -> None:
    message = ask().choices[0].message
    for sent in (message, message.model_dump()):
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
    refused(litellm.BadRequestError, "", messages=[{"role": "user", "content": content}])


@feature("chat.length")
def length() -> None:
    assert ask(max_tokens=4).choices[0].finish_reason == "length"


@feature("chat.stop")
def stop() -> None:
    word = said(ask().choices[0].message)[1].strip()[-1]
    found = said(ask(stop=[word]).choices[0].message)
    assert word not in found[1]
    assert said(streamed(stop=[word])) == found


@feature("chat.n")
def several() -> None:
    found = ask(n=2, temperature=0.8, seed=3, max_tokens=12)
    assert [choice.index for choice in found.choices] == [0, 1]


@feature("chat.logprobs")
def logprobs() -> None:
    found = ask(logprobs=True, top_logprobs=2, max_tokens=6).choices[0].logprobs
    content = found["content"] if isinstance(found, dict) else found.content
    assert len(content) == 6


@feature("chat.seed")
def seed() -> None:
    options = {"temperature": 0.9, "seed": 7, "max_tokens": 12}
    first, second = (said(ask(**options).choices[0].message) for _ in range(2))
    assert first == second


ASKING: Any = {"messages": [{"role": "user", "content": WEATHER_QUESTION}], "tools": [WEATHER]}


@feature("chat.tools_auto")
def tools_auto() -> None:
    options = {**ASKING, "tool_choice": "auto", "max_tokens": 120}
    assert said(streamed(**options)) == said(ask(**options).choices[0].message)


@feature("chat.tools_required", "chat.tools_named", "chat.tools_stream")
def tools_forced() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        for provider in ("openai", "hosted_vllm"):
            options = {**ASKING, "tool_choice": choice, "max_tokens": 400}
            options["model"] = f"{provider}/{MODEL}"
            found = said(ask(**options).choices[0].message)
            assert found[2], found
            for name, arguments in found[2]:
                assert name == "weather"
                if provider == "openai":
                    check_arguments(arguments)
                else:  # omits strict, so the arguments are only guaranteed to be an object
                    assert isinstance(json.loads(arguments), dict)
            assert said(streamed(**options)) == found


@feature("chat.tools_back")
def tools_back() -> None:
    message = ask(**ASKING, tool_choice="required", max_tokens=400).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls
    ]
    turns = [*ASKING["messages"], message, *results]
    assert ask(messages=turns, tools=[WEATHER], max_tokens=8).choices


@feature("chat.json_object")
def json_object() -> None:
    answer = ask(response_format={"type": "json_object"}, max_tokens=400).choices[0].message
    assert answer.content.lstrip().startswith("{")


@feature("chat.json_schema", "chat.json_stream")
def json_schema() -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    found = said(ask(response_format=form).choices[0].message)
    check_schema(found[1])
    assert said(streamed(response_format=form)) == found


# -- completions, responses, messages -------------------------------------------------------------


def complete(**options: Any) -> Any:
    defaults = {"model": f"text-completion-openai/{MODEL}", "prompt": QUESTION}
    return litellm.text_completion(
        **{**API, **defaults, "temperature": 0, "max_tokens": 24, **options}
    )


@feature("completions.whole", "completions.stream")
def completions() -> None:
    text = complete().choices[0].text
    assert text
    parts = [chunk.choices[0].text or "" for chunk in complete(stream=True) if chunk.choices]
    assert "".join(parts) == text


@feature("completions.options")
def completions_options() -> None:
    text = complete().choices[0].text
    assert complete(echo=True).choices[0].text == QUESTION + text
    assert complete(stop=[text[4:6]]).choices[0].text == text[: text.index(text[4:6])]


TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": ABOUT,
    "strict": True,
    "parameters": PARAMETERS,
}


def respond(**options: Any) -> Any:
    defaults = {
        "model": f"openai/{MODEL}",
        "input": QUESTION,
        "temperature": 0,
        "max_output_tokens": ENOUGH,
        "store": False,
    }
    return litellm.responses(**{**API, **defaults, **options})


def output(response: Any) -> str:
    return "".join(
        part.text for item in response.output if item.type == "message" for part in item.content
    )


@feature("responses.whole", "responses.stream")
def responses() -> None:
    answer = respond()
    assert output(answer).strip()
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    events = list(respond(stream=True))
    assert output(events[-1].response) == output(answer)


@feature("responses.tools")
def responses_tools() -> None:
    options = {"input": WEATHER_QUESTION, "tools": [TOOL], "max_output_tokens": 400}
    answer = respond(**options, tool_choice="required")
    call = next(item for item in answer.output if item.type == "function_call")
    check_arguments(call.arguments)


@feature("responses.json")
def responses_json() -> None:
    form = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    check_schema(output(respond(text=form)))


@feature("responses.conversation")
def responses_conversation() -> None:
    turns = [*USER, {"role": "assistant", "content": "42"}, *USER]
    assert respond(input=turns, instructions=SYSTEM, max_output_tokens=8).usage.input_tokens > 20


@feature("responses.length")
def responses_length() -> None:
    assert respond(max_output_tokens=5).status == "incomplete"


async def message(**options: Any) -> Any:
    defaults = {
        "model": f"anthropic/{MODEL}",
        "messages": USER,
        "max_tokens": ENOUGH,
        "temperature": 0,
    }
    return await litellm.anthropic.messages.acreate(
        **{"api_base": URL, "api_key": KEY, **defaults, **options}
    )


@feature("messages.whole", "messages.thinking")
async def messages() -> None:
    found = await message()
    assert [block["type"] for block in found["content"]] == ["thinking", "text"]


@feature(
    "messages.stream",
    fails="streamed messages import a part of its proxy that needs fastapi, which litellm "
    "does not install",
)
async def messages_streamed() -> None:
    whole = await message()
    text = ""
    async for chunk in await message(stream=True):
        for line in chunk.decode().splitlines():
            if line.startswith("data: "):
                text += (json.loads(line[6:]).get("delta") or {}).get("text") or ""
    assert text == whole["content"][-1]["text"]


@feature("messages.tools")
async def messages_tools() -> None:
    tool = {"name": "weather", "description": ABOUT, "input_schema": PARAMETERS, "strict": True}
    found = await message(tools=[tool], tool_choice={"type": "any"}, max_tokens=400)
    call = next(block for block in found["content"] if block["type"] == "tool_use")
    check_arguments(call["input"])


@feature("messages.system", "messages.stop")
async def messages_system() -> None:
    found = await message(system=SYSTEM, messages=TURNS[1:], stop_sequences=["2"])
    assert found["stop_reason"] in {"stop_sequence", "end_turn"}


PASSES = "passes the body through unchanged: see anthropic"
main(
    packages=("litellm",),
    cannot={
        "client.models": "lists the models of its built-in price table, not those of the server",
        "messages.thinking_off": PASSES,
        "messages.thinking_back": PASSES,
        "messages.tools_stream": PASSES,
        "messages.tools_back": PASSES,
        "messages.count_tokens": "counts tokens with its built-in tokenizers, not on the server",
    },
)
