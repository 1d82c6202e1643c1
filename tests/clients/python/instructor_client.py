"""Instructor: answers as validated objects, over the OpenAI and the Anthropic SDK."""

import contextlib
from collections.abc import Iterator
from typing import Any

import anthropic
import instructor
import openai
from cases import ENOUGH, USER, WAIT, Refusals, raises, retried
from frame import KEY, LONG, MODEL, URL, feature, main, narrow_key, some_key
from pydantic import BaseModel, Field


class Answer(BaseModel):
    """The answer to a sum."""

    answer: int = Field(ge=0, le=999)


NO_STRICT_TOOLS = (
    "sends tools that are not strict, and this model does not follow a schema by itself "
    "(router.tool_strict_level: parameter enforces it with the grammar)"
)


def sdk(**options: Any) -> openai.OpenAI:
    defaults: dict[str, Any] = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
    return openai.OpenAI(**{**defaults, "timeout": WAIT * 2, **options})


def ask(mode: Any = instructor.Mode.JSON_SCHEMA, client: Any = None, **options: Any) -> Any:
    """Send a greedy request."""
    defaults = {"model": MODEL, "messages": USER, "temperature": 0, "max_tokens": ENOUGH}
    patched = instructor.from_openai(client or sdk(), mode=mode)
    return patched.chat.completions.create(
        **{**defaults, "response_model": Answer, "max_retries": 0, **options}
    )


def cause(error: Any) -> Any:
    """Return the SDK's error that caused an error of Instructor."""
    while error is not None and not isinstance(error, openai.APIError):
        error = error.__cause__ or error.__context__
    return error


def refused(status: int, **options: Any) -> None:
    with raises(Exception) as caught:
        ask(**options)
    found = cause(caught[0])
    assert found is not None, repr(caught[0])
    assert found.status_code == status
    assert found.message
    assert found.request_id


@feature("client.key")
def wrong_key() -> None:
    some_key()
    refused(401, client=sdk(api_key="moe-wrong"))


@feature("client.model")
def unknown_model() -> None:
    refused(404, model="gpt-9")


@feature("client.parameter")
def bad_parameter() -> None:
    refused(400, temperature=-1)


@feature("client.retry")
def retry() -> None:
    refusals = Refusals()
    hooked = openai.DefaultHttpxClient(event_hooks={"response": [refusals]})
    patient = sdk(api_key=narrow_key(), max_retries=9, http_client=hooked)

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        with sdk(api_key=narrow_key()).chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": LONG}],
            max_tokens=1500,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            next(iter(stream))
            yield

    assert isinstance(retried(hold, lambda: ask(client=patient), refusals), Answer)


@feature("client.async")
async def asynchronous() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
        patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
        answer = await patched.chat.completions.create(
            model=MODEL,
            messages=USER,
            temperature=0,
            max_tokens=ENOUGH,
            response_model=Answer,
        )
    # Compare without the raw answer, with its id, that Instructor adds to the objects.
    assert answer.answer == ask().answer


@feature("chat.tools_named", fails=NO_STRICT_TOOLS)
def tools() -> None:
    assert isinstance(ask(instructor.Mode.TOOLS), Answer)


@feature("chat.whole", "chat.json_schema")
def json_schema() -> None:
    assert isinstance(ask(), Answer)


@feature("chat.stream", "chat.json_stream")
def partial() -> None:
    patched = instructor.from_openai(sdk(), mode=instructor.Mode.JSON_SCHEMA)
    parts = list(
        patched.chat.completions.create_partial(
            model=MODEL, messages=USER, temperature=0, max_tokens=ENOUGH, response_model=Answer
        )
    )
    assert parts[-1].answer == ask().answer


@feature("chat.usage")
def usage() -> None:
    patched = instructor.from_openai(sdk(), mode=instructor.Mode.JSON_SCHEMA)
    answer, completion = patched.chat.completions.create_with_completion(
        model=MODEL,
        messages=USER,
        temperature=0,
        max_tokens=ENOUGH,
        response_model=Answer,
    )
    assert isinstance(answer, Answer)
    assert completion.usage.completion_tokens > 0


@feature(
    "messages.tools",
    "messages.whole",
    fails=NO_STRICT_TOOLS,
)
def messages() -> None:
    client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    patched = instructor.from_anthropic(client, mode=instructor.Mode.TOOLS)
    answer = patched.messages.create(
        model=MODEL,
        messages=USER,
        max_tokens=ENOUGH,
        response_model=Answer,
        max_retries=0,
        extra_body={"temperature": 0},
    )
    assert isinstance(answer, Answer)


SDK = "delegates to the underlying SDK: see openai and anthropic"
main(
    packages=("instructor", "openai", "anthropic"),
    cannot=dict.fromkeys(("client.*", "chat.*", "completions.*", "responses.*", "messages.*"), SDK),
)
