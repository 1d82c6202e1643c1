"""LangChain's models of the OpenAI API: ChatOpenAI, OpenAI, and ChatOpenAI on /v1/responses."""

from typing import Any

import openai
from cases import WEATHER, WEATHER_QUESTION, check_arguments, raises
from frame import KEY, MODEL, QUESTION, URL, feature, main
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from langchain_shared import Answer, joined, maker, text_of, try_all

make = maker(ChatOpenAI)
try_all(make)


@feature("client.unsupported")
def unsupported() -> None:
    embeddings = OpenAIEmbeddings(
        model=MODEL,
        base_url=f"{URL}/v1",
        api_key=KEY,
        max_retries=0,
        check_embedding_ctx_length=False,
    )
    with raises(openai.APIStatusError) as caught:
        embeddings.embed_query("x")
    assert caught[0].status_code in {404, 501}


@feature(
    "chat.reasoning",
    "chat.reasoning_stream",
    fails="ChatOpenAI omits fields that OpenAI's API does not have, such as reasoning_content; "
    "ChatDeepSeek shows it, and so does ChatOpenAI on /v1/responses",
)
def reasoning() -> None:
    assert "reasoning" in str(
        make().invoke(QUESTION).model_dump(exclude={"usage_metadata", "response_metadata"})
    )


# -- completions ----------------------------------------------------------------------------------


def completing(**options: Any) -> Any:
    defaults: dict[str, Any] = {
        "model": MODEL,
        "base_url": f"{URL}/v1",
        "api_key": KEY,
        "temperature": 0,
        "max_tokens": 24,
        "max_retries": 0,
    }
    return OpenAI(**{**defaults, **options})


@feature("completions.whole", "completions.stream")
def completions() -> None:
    text = completing().invoke(QUESTION)
    assert text
    assert "".join(completing().stream(QUESTION)) == text


@feature("completions.options")
def completions_options() -> None:
    text = completing().invoke(QUESTION)
    both = completing().generate([QUESTION, "abc"]).generations
    assert [len(choices) for choices in both] == [1, 1]
    assert both[0][0].text == text
    assert completing().invoke(QUESTION, stop=[text[4:6]]) == text[: text.index(text[4:6])]


# -- responses ------------------------------------------------------------------------------------


def responding(**options: Any) -> Any:
    return make(use_responses_api=True, output_version="responses/v1", store=False, **options)


def reasoning_of(message: Any) -> str:
    return "".join(
        part["text"]
        for block in message.content
        if block["type"] == "reasoning"
        for part in block.get("content") or ()
    )


@feature("responses.whole", "responses.stream")
def responses() -> None:
    message = responding().invoke(QUESTION)
    assert text_of(message).strip()
    assert reasoning_of(message).strip()
    assert message.usage_metadata["output_token_details"]["reasoning"] > 0
    assert text_of(joined(responding().stream(QUESTION))) == text_of(message)


@feature("responses.tools")
def responses_tools() -> None:
    bound = responding(max_tokens=400).bind_tools([WEATHER], tool_choice="required")
    message = bound.invoke(WEATHER_QUESTION)
    assert message.tool_calls
    check_arguments(message.tool_calls[0]["args"])
    found = joined(bound.stream(WEATHER_QUESTION)).tool_calls
    assert [call["args"] for call in found] == [call["args"] for call in message.tool_calls]
    results = [ToolMessage("sunny", tool_call_id=call["id"]) for call in message.tool_calls]
    turns = [HumanMessage(WEATHER_QUESTION), message, *results]
    assert responding(max_tokens=8).bind_tools([WEATHER]).invoke(turns)


@feature("responses.json")
def responses_json() -> None:
    structured = responding().with_structured_output(Answer, method="json_schema")
    assert isinstance(structured.invoke(QUESTION), Answer)


@feature("responses.conversation")
def responses_conversation() -> None:
    first = responding().invoke(QUESTION)
    assert responding(max_tokens=8).invoke([HumanMessage(QUESTION), first, HumanMessage(QUESTION)])


@feature("responses.length")
def responses_length() -> None:
    message = responding(max_tokens=5).invoke(QUESTION)
    assert message.response_metadata["status"] == "incomplete"


main(
    packages=("langchain-openai", "langchain-core"),
    cannot={
        "client.models": "does not support it",
        "chat.reasoning_back": "ChatOpenAI does not keep the reasoning, so it cannot send it back",
        "messages.*": "supports only OpenAI's API",
    },
)
