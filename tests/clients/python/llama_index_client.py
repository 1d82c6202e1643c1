"""LlamaIndex's OpenAILike, on chat completions and on completions."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
from cases import (
    ENOUGH,
    LARGE,
    PIXEL,
    TURNS,
    WAIT,
    WEATHER_QUESTION,
    Refusals,
    admitted,
    raises,
    retried,
)
from frame import KEY, LONG, MODEL, QUESTION, URL, feature, main, narrow_key, some_key
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field


class Answer(BaseModel):
    """The answer to a sum."""

    answer: int = Field(ge=0, le=999)


def make(**options: Any) -> Any:
    """Return a greedy model."""
    defaults = {
        "model": MODEL,
        "api_base": f"{URL}/v1",
        "api_key": KEY,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "should_use_structured_outputs": True,
        "strict": True,
        "temperature": 0,
        "max_tokens": ENOUGH,
        "max_retries": 0,
        "timeout": WAIT * 2,
    }
    return OpenAILike(**{**defaults, **options})


def user(text: str = QUESTION) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def text_of(response: Any) -> str:
    return response.message.content or ""


def thought_of(response: Any) -> str:
    return "".join(b.content or "" for b in response.message.blocks if b.block_type == "thinking")


# -- every client ---------------------------------------------------------------------------------


def refused(
    error: type[openai.APIStatusError], status: int, words: str, llm: Any, text: str = "x"
) -> None:
    with raises(error) as caught:
        llm.chat([user(text)])
    assert caught[0].status_code == status
    assert words in caught[0].message
    assert caught[0].request_id


@feature("client.key")
def wrong_key() -> None:
    some_key()
    refused(openai.AuthenticationError, 401, "", make(api_key="moe-wrong"))


@feature("client.model")
def unknown_model() -> None:
    refused(openai.NotFoundError, 404, "gpt-9", make(model="gpt-9"))


@feature("client.parameter")
def bad_parameter() -> None:
    refused(openai.BadRequestError, 400, "top_p", make(additional_kwargs={"top_p": 7}))


@feature("client.large")
def too_large() -> None:
    refused(openai.APIStatusError, 413, "", make(), LARGE)


@feature("client.headers")
def headers() -> None:
    llm = make(default_headers={"x-request-id": "mine-1"}, max_tokens=1)
    assert llm.chat([user()]).raw._request_id == "mine-1"


def endless(**options: Any) -> Any:
    more = {"extra_body": {"ignore_eos": True}}
    return make(api_key=narrow_key(), max_tokens=1500, additional_kwargs=more, **options)


def short() -> Any:
    return make(api_key=narrow_key(), max_tokens=1).chat([user()])


@feature("client.timeout")
def time_out() -> None:
    with raises(openai.APITimeoutError):
        endless(timeout=0.5).chat([user(LONG)])
    admitted(short, openai.RateLimitError)


@feature("client.cancel")
def cancelled() -> None:
    stream = endless().stream_chat([user(LONG)])
    next(stream)
    with raises(openai.RateLimitError):
        short()
    stream.close()
    admitted(short, openai.RateLimitError)


@feature("client.retry")
def retry() -> None:
    refusals = Refusals()
    hooked = openai.DefaultHttpxClient(event_hooks={"response": [refusals]})

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        stream = endless().stream_chat([user(LONG)])
        next(stream)
        yield
        stream.close()

    patient = make(api_key=narrow_key(), max_tokens=1, max_retries=9, http_client=hooked)
    assert retried(hold, lambda: patient.chat([user()]), refusals)


@feature("client.async")
async def asynchronous() -> None:
    llm = make(max_tokens=60)
    whole = await llm.achat([user()])
    async for part in await llm.astream_chat([user()]):
        last = part
    assert (thought_of(last), text_of(last)) == (thought_of(whole), text_of(whole))


@feature("client.parallel")
def parallel() -> None:
    llm = make(max_tokens=16)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: thought_of(llm.chat([user()])), range(8)))
    assert len(set(answers)) == 1


# -- chat -----------------------------------------------------------------------------------------


@feature("chat.whole", "chat.stream", "chat.reasoning", "chat.reasoning_stream")
def streamed_is_whole() -> None:
    whole = make().chat([user()])
    assert text_of(whole).strip()
    assert thought_of(whole).strip()
    assert "</think>" not in text_of(whole) + thought_of(whole)
    parts = list(make().stream_chat([user()]))
    assert (thought_of(parts[-1]), text_of(parts[-1])) == (thought_of(whole), text_of(whole))
    assert "".join(part.delta or "" for part in parts) == text_of(whole)


@feature("chat.usage")
def usage() -> None:
    counted = make().chat([user()]).raw.usage
    assert counted.total_tokens == counted.prompt_tokens + counted.completion_tokens
    more = {"stream_options": {"include_usage": True}}
    last = list(make(additional_kwargs=more).stream_chat([user()]))[-1]
    assert last.raw.usage.completion_tokens == counted.completion_tokens


@feature("chat.conversation", "chat.reasoning_back")
def conversation() -> None:
    first = make().chat([user()]).message
    turns = [ChatMessage(role=turn["role"], content=turn["content"]) for turn in TURNS]
    assert make(max_tokens=8).chat([*turns, first, user()]).raw.usage.prompt_tokens > 40


@feature("chat.parts")
def parts() -> None:
    blocks = [TextBlock(text="What is "), TextBlock(text="17+25?")]
    assert make(max_tokens=8).chat([ChatMessage(role="user", blocks=blocks)])


@feature("chat.image")
def image() -> None:
    blocks = [TextBlock(text=QUESTION), ImageBlock(url=PIXEL)]
    with raises(openai.BadRequestError):
        make(max_tokens=8).chat([ChatMessage(role="user", blocks=blocks)])


@feature("chat.length")
def length() -> None:
    assert make(max_tokens=4).chat([user()]).raw.choices[0].finish_reason == "length"


@feature("chat.stop")
def stop() -> None:
    word = text_of(make().chat([user()])).strip()[-1]
    found = make().chat([user()], stop=[word])
    assert word not in text_of(found)
    assert text_of(list(make().stream_chat([user()], stop=[word]))[-1]) == text_of(found)


@feature("chat.logprobs")
def logprobs() -> None:
    found = make(logprobs=True, top_logprobs=2, max_tokens=6).chat([user()])
    assert len(found.logprobs) == 6


@feature("chat.seed")
def seed() -> None:
    llm = make(temperature=0.9, additional_kwargs={"seed": 7}, max_tokens=12)
    assert thought_of(llm.chat([user()])) == thought_of(llm.chat([user()]))


# -- tools and structures -------------------------------------------------------------------------


def weather(city: str, days: int) -> str:
    """Weather of a city for some days."""
    return f"sunny in {city} for {days} days"


TOOL = FunctionTool.from_defaults(weather)


def selections(llm: Any, response: Any) -> list[Any]:
    calls = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [(call.tool_name, call.tool_kwargs) for call in calls]


@feature("chat.tools_auto")
def tools_auto() -> None:
    llm = make(max_tokens=120)
    whole = llm.chat_with_tools([TOOL], user_msg=WEATHER_QUESTION)
    parts = list(llm.stream_chat_with_tools([TOOL], user_msg=WEATHER_QUESTION))
    assert text_of(parts[-1]) == text_of(whole)
    assert selections(llm, parts[-1]) == selections(llm, whole)


@feature("chat.tools_required", "chat.tools_stream", "chat.tools_named")
def tools_required() -> None:
    llm = make(max_tokens=400)
    named = {"type": "function", "function": {"name": "weather"}}
    for options in ({"tool_required": True}, {"tool_choice": named}):
        whole = llm.chat_with_tools([TOOL], user_msg=WEATHER_QUESTION, **options)
        ((name, arguments), *_) = selections(llm, whole)
        assert (name, set(arguments)) == ("weather", {"city", "days"})
        parts = list(llm.stream_chat_with_tools([TOOL], user_msg=WEATHER_QUESTION, **options))
        assert selections(llm, parts[-1]) == selections(llm, whole)


@feature("chat.tools_back")
def tools_back() -> None:
    llm = make(max_tokens=400)
    message = llm.chat_with_tools([TOOL], user_msg=WEATHER_QUESTION, tool_required=True).message
    calls = [b for b in message.blocks if b.block_type == "tool_call"]
    results = [
        ChatMessage(
            role="tool", content="sunny", additional_kwargs={"tool_call_id": c.tool_call_id}
        )
        for c in calls
    ]
    assert results
    assert make(max_tokens=8).chat([user(WEATHER_QUESTION), message, *results])


@feature("chat.json_object")
def json_object() -> None:
    found = make(max_tokens=400).chat([user()], response_format={"type": "json_object"})
    assert text_of(found).lstrip().startswith("{")


@feature("chat.json_schema")
def json_schema() -> None:
    found = make().as_structured_llm(Answer).chat([user()])
    assert isinstance(found.raw, Answer)


@feature("chat.json_stream")
def json_stream() -> None:
    structured = make().as_structured_llm(Answer)
    last = list(structured.stream_chat([user()]))[-1]
    assert last.raw.answer == structured.chat([user()]).raw.answer


# -- completions ----------------------------------------------------------------------------------


@feature("completions.whole", "completions.stream")
def completions() -> None:
    llm = make(is_chat_model=False, max_tokens=24)
    text = llm.complete(QUESTION).text
    assert text
    parts = list(llm.stream_complete(QUESTION))
    assert parts[-1].text == text
    assert "".join(part.delta or "" for part in parts) == text


@feature("completions.options")
def completions_options() -> None:
    llm = make(is_chat_model=False, max_tokens=24)
    text = llm.complete(QUESTION).text
    assert llm.complete(QUESTION, echo=True).text == QUESTION + text
    assert llm.complete(QUESTION, stop=[text[4:6]]).text == text[: text.index(text[4:6])]


main(
    packages=("llama-index-llms-openai-like", "llama-index-core", "openai"),
    cannot={
        "client.models": "does not support it",
        "client.unsupported": "supports only chat and completions",
        "chat.n": "returns one choice",
        "responses.*": "OpenAILike supports only chat completions and completions",
        "messages.*": "supports only OpenAI's API",
    },
)
