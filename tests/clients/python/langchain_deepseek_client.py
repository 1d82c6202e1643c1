"""LangChain's model of DeepSeek's API: ChatDeepSeek, which shows reasoning."""

from frame import QUESTION, feature, main
from langchain_deepseek import ChatDeepSeek
from langchain_shared import joined, maker, text_of, try_all

make = maker(ChatDeepSeek)
try_all(make)


@feature("chat.reasoning", "chat.reasoning_stream")
def reasoning() -> None:
    message = make().invoke(QUESTION)
    thought = message.additional_kwargs["reasoning_content"]
    assert thought.strip()
    assert thought not in text_of(message)
    assert joined(make().stream(QUESTION)).additional_kwargs["reasoning_content"] == thought


ONLY = "supports only chat completions"
main(
    packages=("langchain-deepseek",),
    cannot={
        "client.models": "does not support it",
        "client.unsupported": "supports only chat",
        "chat.reasoning_back": "does not send reasoning back (DeepSeek's API requires this)",
        "completions.*": ONLY,
        "responses.*": ONLY,
        "messages.*": ONLY,
    },
)
