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


ONLY = "has chat completions only"
main(
    packages=("langchain-deepseek",),
    cannot={
        "client.models": "has no call for it",
        "client.unsupported": "has no calls but chat",
        "chat.reasoning_back": "sends no reasoning back (DeepSeek's own API asks for that)",
        "completions.*": ONLY,
        "responses.*": ONLY,
        "messages.*": ONLY,
    },
)
