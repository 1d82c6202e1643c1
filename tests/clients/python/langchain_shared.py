"""Features tried with both of LangChain's chat models."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import openai
from cases import (
    ENOUGH,
    LARGE,
    PIXEL,
    TURNS,
    WAIT,
    WEATHER,
    WEATHER_QUESTION,
    Refusals,
    admitted,
    check_arguments,
    raises,
    retried,
)
from frame import KEY, LONG, MODEL, QUESTION, URL, feature, narrow_key, some_key
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from pydantic import BaseModel, Field


class Answer(BaseModel):
    """The answer to a sum."""

    answer: int = Field(ge=0, le=999)


Make = Callable[..., Any]


def maker(model_class: Any) -> Make:
    """Return a function that makes a greedy chat model."""

    def make(**options: Any) -> Any:
        defaults = {
            "model": MODEL,
            "base_url": f"{URL}/v1",
            "api_key": KEY,
            "temperature": 0,
            "max_tokens": ENOUGH,
            "max_retries": 0,
            "timeout": WAIT * 2,
        }
        return model_class(**{**defaults, **options})

    return make


def joined(stream: Any) -> Any:
    """Sum a stream's chunks, as in LangChain's documentation."""
    total = None
    for chunk in stream:
        total = chunk if total is None else total + chunk
    assert total is not None
    return total


def text_of(message: Any) -> str:
    """Return the text of a message."""
    return str(message.text)


Tried = Callable[[Make], Any]
_TRIED: list[tuple[tuple[str, ...], Tried]] = []


def shared(*names: str) -> Callable[[Tried], Tried]:
    """Let a function, which is given the maker, try features for both models."""

    def add(function: Tried) -> Tried:
        _TRIED.append((names, function))
        return function

    return add


def try_all(make: Make) -> None:
    """Add the features that work alike."""
    for names, function in _TRIED:
        feature(*names)(partial(function, make))


@shared("client.key")
def wrong_key(make: Make) -> None:
    some_key()
    with raises(openai.AuthenticationError) as caught:
        make(api_key="moe-wrong").invoke("x")
    assert caught[0].request_id


def refused(error: type[openai.APIStatusError], status: int, words: str, model: Any) -> None:
    with raises(error) as caught:
        model.invoke(QUESTION)
    assert caught[0].status_code == status
    assert words in caught[0].message
    assert caught[0].request_id


@shared("client.model")
def unknown_model(make: Make) -> None:
    refused(openai.NotFoundError, 404, "gpt-9", make(model="gpt-9"))


@shared("client.parameter")
def bad_parameter(make: Make) -> None:
    refused(openai.BadRequestError, 400, "temperature", make(temperature=-1))


@shared("client.large")
def too_large(make: Make) -> None:
    with raises(openai.APIStatusError) as caught:
        make().invoke(LARGE)
    assert caught[0].status_code == 413


@shared("client.headers")
def headers(make: Make) -> None:
    mine = make(
        max_tokens=1,
        default_headers={"x-request-id": "mine-1"},
        include_response_headers=True,
    )
    assert mine.invoke("x").response_metadata["headers"]["x-request-id"] == "mine-1"


def endless(make: Make, **options: Any) -> Any:
    return make(api_key=narrow_key(), max_tokens=1500, extra_body={"ignore_eos": True}, **options)


def short(make: Make) -> Any:
    return make(api_key=narrow_key(), max_tokens=1).invoke("x")


@shared("client.timeout")
def time_out(make: Make) -> None:
    with raises(openai.APITimeoutError):
        endless(make, timeout=0.5).invoke(LONG)
    admitted(lambda: short(make), openai.RateLimitError)


@shared("client.cancel")
def cancelled(make: Make) -> None:
    stream = endless(make).stream(LONG)
    next(stream)
    with raises(openai.RateLimitError):
        short(make)
    stream.close()
    admitted(lambda: short(make), openai.RateLimitError)


@shared("client.retry")
def retry(make: Make) -> None:
    refusals = Refusals()
    hooked = openai.DefaultHttpxClient(event_hooks={"response": [refusals]})

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        stream = endless(make).stream(LONG)
        next(stream)
        yield
        stream.close()

    patient = make(api_key=narrow_key(), max_tokens=1, max_retries=9, http_client=hooked)
    assert retried(hold, lambda: patient.invoke("x"), refusals)


@shared("client.async")
async def asynchronous(make: Make) -> None:
    short_model = make(max_tokens=40)
    total = None
    async for chunk in short_model.astream(QUESTION):
        total = chunk if total is None else total + chunk
    assert text_of(total) == text_of(await short_model.ainvoke(QUESTION))


@shared("client.parallel")
def parallel(make: Make) -> None:
    answers = make(max_tokens=16).batch([QUESTION] * 8, {"max_concurrency": 8})
    assert len({text_of(answer) for answer in answers}) == 1


@shared("chat.whole", "chat.stream")
def streamed_is_whole(make: Make) -> None:
    message = make().invoke(QUESTION)
    assert text_of(message).strip()
    assert "</think>" not in text_of(message)
    total = joined(make().stream(QUESTION))
    assert text_of(total) == text_of(message)
    assert total.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["finish_reason"] == "stop"


@shared("chat.usage")
def usage(make: Make) -> None:
    counted = make().invoke(QUESTION).usage_metadata
    assert counted["total_tokens"] == counted["input_tokens"] + counted["output_tokens"]
    assert counted["output_token_details"]["reasoning"] > 0
    total = joined(make(stream_usage=True).stream(QUESTION)).usage_metadata
    assert total["output_tokens"] == counted["output_tokens"]
    assert total["input_tokens"] == counted["input_tokens"]


@shared("chat.conversation")
def conversation(make: Make) -> None:
    kinds = {"system": SystemMessage, "user": HumanMessage, "assistant": AIMessage}
    turns = [kinds[turn["role"]](turn["content"]) for turn in TURNS]
    longer = make(max_tokens=8).invoke([*turns, make().invoke(QUESTION), HumanMessage("x")])
    assert longer.usage_metadata["input_tokens"] > 40


@shared("chat.parts")
def parts(make: Make) -> None:
    content = [{"type": "text", "text": "What is "}, {"type": "text", "text": "17+25?"}]
    assert make(max_tokens=8).invoke([HumanMessage(content)])


@shared("chat.image")
def image(make: Make) -> None:
    content = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": {"url": PIXEL}},
    ]
    with raises(openai.BadRequestError) as caught:
        make(max_tokens=8).invoke([HumanMessage(content)])
    assert caught[0].message


@shared("chat.length")
def length(make: Make) -> None:
    message = make(max_tokens=4).invoke(QUESTION)
    assert message.response_metadata["finish_reason"] == "length"


@shared("chat.stop")
def stop(make: Make) -> None:
    text = text_of(make().invoke(QUESTION))
    word = text.strip()[-1]
    found = make().invoke(QUESTION, stop=[word])
    assert word not in text_of(found)
    assert text_of(joined(make().stream(QUESTION, stop=[word]))) == text_of(found)


@shared("chat.n")
def several(make: Make) -> None:
    several = make(n=2, temperature=0.8, seed=3, max_tokens=12)
    (choices,) = several.generate([[HumanMessage(QUESTION)]]).generations
    assert len(choices) == 2


@shared("chat.logprobs")
def logprobs(make: Make) -> None:
    telling = make(logprobs=True, top_logprobs=2, max_tokens=6)
    found = telling.invoke(QUESTION).response_metadata["logprobs"]["content"]
    assert len(found) == 6
    assert all(len(entry["top_logprobs"]) == 2 for entry in found)


@shared("chat.seed")
def seed(make: Make) -> None:
    seeded = make(temperature=0.9, seed=7, max_tokens=60)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(seeded.invoke, [QUESTION] * 2))
    assert text_of(answers[0]) == text_of(answers[1])


def calls(message: Any) -> list[Any]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


@shared("chat.tools_auto")
def tools_auto(make: Make) -> None:
    bound = make(max_tokens=120).bind_tools([WEATHER], tool_choice="auto")
    message = bound.invoke(WEATHER_QUESTION)
    total = joined(bound.stream(WEATHER_QUESTION))
    assert (text_of(total), calls(total)) == (text_of(message), calls(message))


@shared("chat.tools_required", "chat.tools_named", "chat.tools_stream")
def tools_forced(make: Make) -> None:
    for choice in ("required", "weather"):
        bound = make(max_tokens=400).bind_tools([WEATHER], tool_choice=choice)
        message = bound.invoke(WEATHER_QUESTION)
        assert calls(message), message
        for name, arguments in calls(message):
            assert name == "weather"
            check_arguments(arguments)
        assert calls(joined(bound.stream(WEATHER_QUESTION))) == calls(message)


@shared("chat.tools_back")
def tools_back(make: Make) -> None:
    bound = make(max_tokens=400).bind_tools([WEATHER], tool_choice="required")
    message = bound.invoke(WEATHER_QUESTION)
    results = [ToolMessage("sunny", tool_call_id=call["id"]) for call in message.tool_calls]
    turns = [HumanMessage(WEATHER_QUESTION), message, *results]
    assert make(max_tokens=8).bind_tools([WEATHER]).invoke(turns)


@shared("chat.json_object")
def json_object(make: Make) -> None:
    held = make(max_tokens=400).bind(response_format={"type": "json_object"})
    try:
        text = text_of(held.invoke(QUESTION))
    except openai.LengthFinishReasonError as cut:
        # Without a schema, this model's output may be endless.
        text = cut.completion.choices[0].message.content
    assert text.lstrip().startswith("{")


@shared("chat.json_schema", "chat.json_stream")
def json_schema(make: Make) -> None:
    for method in ("json_schema", "function_calling"):
        structured = make().with_structured_output(Answer, method=method, strict=True)
        answer = structured.invoke(QUESTION)
        assert isinstance(answer, Answer), method
        assert list(structured.stream(QUESTION))[-1] == answer
