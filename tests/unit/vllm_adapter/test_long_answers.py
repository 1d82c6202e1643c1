"""Long answers are encoded in slices to the same JSON, and built in a thread."""

import asyncio
import json

import pytest
from openai.types.responses import ResponseOutputMessage, ResponseOutputText
from openai.types.responses.response_output_text import Logprob as TextLogprob
from openai.types.responses.response_output_text import LogprobTopLogprob
from vllm.entrypoints.generate.base.protocol import UsageInfo
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionLogProb,
    ChatCompletionLogProbs,
    ChatCompletionLogProbsContent,
    ChatCompletionResponseChoice,
    ChatMessage,
)
from vllm.entrypoints.openai.completion.protocol import CompletionLogProbs, CompletionResponseChoice
from vllm.logprobs import Logprob

from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter import long_answers
from serving.vllm_adapter.handlers import ChatAnswer, TextAnswer
from serving.vllm_adapter.long_answers import (
    LongAnswerError,
    MaybeLong,
    built_in_thread,
    finished,
    response_in_parts,
)
from serving.vllm_adapter.tokenization_handler import TokenizeAnswer

USAGE = UsageInfo(prompt_tokens=1, completion_tokens=9, total_tokens=10)
PROMPT_LOGPROBS = [None, *({n: Logprob(-0.5, 1, "é"), 7: Logprob(-2.5, 3, '"')} for n in range(6))]


def chat() -> ChatAnswer:
    content = [
        ChatCompletionLogProbsContent(
            token="é",
            logprob=-n / 7,
            bytes=[195, 169],
            top_logprobs=[ChatCompletionLogProb(token='"', logprob=-9999.0)] * (n % 3),
        )
        for n in range(9)
    ]
    choices = [
        ChatCompletionResponseChoice(
            index=n,
            message=ChatMessage(role="assistant", content="é"),
            logprobs=ChatCompletionLogProbs(content=list(content)),
            token_ids=list(range(9)),
        )
        for n in range(2)
    ]
    return ChatAnswer(
        id="a",
        created=1,
        model="m",
        choices=choices,
        usage=USAGE,
        prompt_logprobs=list(PROMPT_LOGPROBS),
    )


def text() -> TextAnswer:
    logprobs = CompletionLogProbs(
        text_offset=list(range(9)),
        token_logprobs=[None, *(-n / 7 for n in range(8))],
        tokens=["é"] * 9,
        top_logprobs=[None, *({"é": -0.5, '"': -n / 7} for n in range(8))],
    )
    choice = CompletionResponseChoice(
        index=0, text="é", logprobs=logprobs, prompt_logprobs=list(PROMPT_LOGPROBS)
    )
    return TextAnswer(id="a", created=1, model="m", choices=[choice], usage=USAGE)


def tokens() -> TokenizeAnswer:
    return TokenizeAnswer(
        count=9, max_model_len=9, tokens=list(range(9)), token_strs=["é", '"'] * 4
    )


class Message(MaybeLong, ResponseOutputMessage):
    """An item of /v1/responses."""


def item() -> Message:
    top = LogprobTopLogprob(token="é", bytes=[1], logprob=-0.5)
    logprobs = [TextLogprob(token="é", bytes=[1], logprob=-n / 7, top_logprobs=[top] * (n % 3))
                for n in range(9)]  # fmt: skip
    part = ResponseOutputText(type="output_text", text="é", annotations=[], logprobs=logprobs)
    return Message(id="i", type="message", role="assistant", status="completed", content=[part])


@pytest.mark.parametrize("slice_size", [1, 3, 1_000])
@pytest.mark.parametrize("made", [chat, text, tokens, item])
async def test_the_json_is_the_same(made, slice_size, monkeypatch):
    expected = made().model_dump()
    monkeypatch.setattr(long_answers, "LONG", 4)
    monkeypatch.setattr(long_answers, "_SLICE", slice_size)
    monkeypatch.setattr(long_answers, "_SENT", 100)
    with pytest.raises(LongAnswerError) as raised:
        made().model_dump()
    response = await response_in_parts(raised.value, TaskTurns())
    parts = [part async for part in response.body_iterator]
    body = b"".join(parts)
    assert response.headers["content-length"] == str(len(body))
    assert max(map(len, parts)) == 100
    assert json.loads(body) == json.loads(json.dumps(expected))
    assert list(json.loads(body)) == list(expected)


async def test_a_build_that_waits_is_not_supported():
    async def waits():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="not supported"):
        await built_in_thread(lambda: finished(waits()))
