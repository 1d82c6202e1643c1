"""Log probabilities of /v1/responses: those of the text's tokens, streamed or not."""

from types import SimpleNamespace

import pytest
from openai.types.responses.response_output_text import Logprob

from serving.vllm_adapter.response_logprobs import StreamedLogprobs, text_range

END, CALLS, EOS = 100, 101, 102
PARSER = SimpleNamespace(
    _reasoning_parser=SimpleNamespace(end_token_id=END),
    _tool_parser=SimpleNamespace(tool_calls_start_token_id=CALLS),
)


def asked(tool_choice="auto"):
    return SimpleNamespace(tools=[{}], tool_choice=tool_choice)


def created(token_ids, logprobs):
    assert list(logprobs) == [-float(token) for token in token_ids]
    return [
        Logprob(token=str(token), bytes=[], logprob=logprob, top_logprobs=[])
        for token, logprob in zip(token_ids, logprobs, strict=True)
    ]


def tokens(logprobs):
    return [int(entry.token) for entry in logprobs]


async def streamed(request, deltas):
    """Return the tokens of the text deltas and of the three final events.

    Args:
        request: the request.
        deltas: for each output, its tokens and whether it has text.
    """
    made = StreamedLogprobs(request, created)

    async def contexts():
        for token_ids, _ in deltas:
            output = SimpleNamespace(token_ids=token_ids, logprobs=[-float(t) for t in token_ids])
            yield SimpleNamespace(
                last_output=SimpleNamespace(outputs=[output]), response_parser=PARSER
            )

    sent = []
    noted = made.noting(contexts())
    for _, has_text in deltas:
        await anext(noted)
        if has_text:
            event = SimpleNamespace(type="response.output_text.delta")
            made.add_to(event)
            sent += tokens(event.logprobs)
    text = SimpleNamespace(type="response.output_text.done")
    part = SimpleNamespace(
        type="response.content_part.done", part=SimpleNamespace(type="output_text")
    )
    item = SimpleNamespace(
        type="response.output_item.done",
        item=SimpleNamespace(type="message", content=[SimpleNamespace()]),
    )
    for event in (text, part, item):
        made.add_to(event)
    done = [text.logprobs, part.part.logprobs, item.item.content[0].logprobs]
    return sent, [tokens(logprobs) for logprobs in done]


@pytest.mark.parametrize(
    ("deltas", "in_deltas", "in_all"),
    [
        pytest.param(
            [([1, 2], False), ([END], False), ([3], True), ([EOS], False)],
            [3], [3, EOS], id="token by token",
        ),
        pytest.param(
            [([1, END, 3], True), ([4], False), ([5], False), ([6, 7], True), ([EOS], False)],
            [3, 4, 5, 6, 7], [3, 4, 5, 6, 7, EOS], id="tokens whose text comes later",
        ),
        pytest.param([([3], True), ([EOS], False)], [3], [3, EOS], id="no reasoning"),
        pytest.param(
            [([END], False), ([3, END, 4], True), ([EOS], False)],
            [3, END, 4], [3, END, 4, EOS], id="a second end of reasoning is text",
        ),
        pytest.param(
            [([END, 3], True), ([4, CALLS, 5], True), ([6, EOS], False)],
            [3, 4], [3, 4], id="text before a tool call",
        ),
    ],
)  # fmt: skip
async def test_no_token_of_the_text_is_missing(deltas, in_deltas, in_all):
    sent, done = await streamed(asked(), deltas)
    assert sent == in_deltas
    assert done == [in_all] * 3
    whole = [token for token_ids, _ in deltas for token in token_ids]
    assert whole[text_range(PARSER, asked(), whole)] == in_all


def test_without_tools_a_call_is_text():
    whole = [1, END, 3, CALLS, 4]
    assert whole[text_range(PARSER, asked("none"), whole)] == [3, CALLS, 4]
    assert whole[text_range(None, asked(), whole)] == whole
