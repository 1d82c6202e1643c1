"""Streamed answers equal complete ones for any split into deltas, with vLLM's parsers."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from serving.settings import BUNDLED_MODEL
from serving.vllm_adapter.answer_parser import AnswerParser, _served, install_answer_parser

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = "<｜tool▁calls▁begin｜>"


def call(arguments: str, name: str = "weather") -> str:
    return (
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n"
        f"```json\n{arguments}\n```<｜tool▁call▁end｜>"
    )


def calls(*arguments: str) -> str:
    return CALLS + "\n".join(map(call, arguments)) + "<｜tool▁calls▁end｜>"


BERN = '{"city":"Bern"}'
BROKEN = '{"n"\n\n\n: 42\n}'
FENCE = '{"a": "b\\n```"}'
NESTED = '{"x": [1, {"y": null}]}'
ANSWERS = [
    "17+25: 7+5=12 0042\n</think>\n\n42",
    "no end of reasoning",
    "</think>42",
    "look</think>\n\nIt is 3 < 4 and ```json\nx\n``` and <｜ too.",
    "ümlaut 你好 🙂</think>Grüße 🙂 你",
    "look</think>" + calls(BERN),
    "look</think>\n\n" + calls(BROKEN, FENCE),
    "look</think>Now. " + calls(BERN, "{}", NESTED),
    "look</think>" + calls(BERN)[:-40],
    f"look</think>{CALLS}<｜tool▁call▁begin｜>function",
    f"look</think>{CALLS}garbage" + call('{"a":1}'),
    "<think>again</think>42",
    "white space in place of a call</think>\n \n",
    "one</think>two <think>three</think>four",
    "one <think>two</think>three",
    "spelled\0</think>\0and not</think>42 </think>",
    "spelled\0</think>\0alone",
]
"""Text between NULs is generated one character per token, so it contains no markers."""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_MODEL)


def parser_class(tokenizer, tool_parser="deepseek_v3"):
    base = ParserManager.get_parser(
        tool_parser_name=tool_parser,
        reasoning_parser_name="deepseek_r1",
        enable_auto_tools=True,
        tool_strict_level="auto",
        model_name="m",
        is_harmony=False,
        tokenizer=tokenizer,
    )
    state = SimpleNamespace()
    holders = {
        "online_renderer": "parser",
        "openai_serving_chat": "parser_cls",
        "openai_serving_chat_batch": "parser_cls",
        "openai_serving_responses": "parser",
        "anthropic_serving_messages": "parser_cls",
    }
    for name, attribute in holders.items():
        setattr(state, name, SimpleNamespace(**{attribute: base}))
    install_answer_parser(state, compact_json=True)
    made = {getattr(getattr(state, name), attribute) for name, attribute in holders.items()}
    assert len(made) == 1
    return made.pop()


def asked(tools=(TOOL,), **fields):
    return ChatCompletionRequest(
        model="m",
        messages=[{"role": "user", "content": "x"}],
        tools=list(tools) or None,
        skip_special_tokens=False,
        **fields,
    )


def generated(tokenizer, prompt, text, request, sizes):
    """Yield the deltas of a rank: text, tokens, and whether it is the last."""
    token_ids = []
    for number, part in enumerate(text.split("\0")):
        for piece in part if number % 2 else [part]:
            token_ids += tokenizer.encode(piece, add_special_tokens=False)
    params = SamplingParams(
        stop=request.stop,
        include_stop_str_in_output=request.include_stop_str_in_output,
        skip_special_tokens=False,
    )
    detokenizer = IncrementalDetokenizer.from_new_request(
        tokenizer,
        SimpleNamespace(request_id="", prompt_token_ids=prompt, sampling_params=params),
    )
    at = 0
    for size in [*sizes, len(token_ids)]:
        some = token_ids[at : at + size]
        at += size
        before = detokenizer.num_output_tokens()
        stopped = detokenizer.update(some, False) is not None
        last = stopped or at >= len(token_ids)
        new = detokenizer.output_token_ids[before:]
        yield detokenizer.get_next_output_text(last, True), list(new), last
        if last:
            return


THINKING = {"prompt": "<think>\n"}


class Streamed:
    """The deltas of a stream, joined as a client does."""

    def __init__(self):
        self.reasoning, self.content, self.calls = "", "", {}

    def add(self, delta):
        if delta is None:
            return
        self.reasoning += delta.reasoning or ""
        self.content += delta.content or ""
        for part in delta.tool_calls or ():
            seen = self.calls.setdefault(part.index, [None, None, ""])
            seen[0] = seen[0] or part.id
            seen[1] = seen[1] or (part.function.name or None)
            seen[2] += part.function.arguments or ""


def stream_and_whole(tokenizer, made, text, request, sizes, prompt="<think>\n"):
    prompt = tokenizer.encode(prompt, add_special_tokens=False)
    parser, streamed, whole_text, whole_ids = made(tokenizer, request.tools), Streamed(), "", []
    for delta_text, token_ids, last in generated(tokenizer, prompt, text, request, sizes):
        whole_text += delta_text
        whole_ids += token_ids
        streamed.add(
            parser.parse_delta(
                delta_text=delta_text,
                delta_token_ids=token_ids,
                request=request,
                prompt_token_ids=prompt,
                finished=last,
            )
        )
    parser = made(tokenizer, request.tools)
    parser.set_prompt_token_ids(prompt)
    reasoning, content, found = parser.parse(
        whole_text, request, enable_auto_tools=True, model_output_token_ids=whole_ids
    )
    stream_calls = [(name, arguments) for _, name, arguments in streamed.calls.values()]
    assert all(given for given, _, _ in streamed.calls.values())
    assert list(streamed.calls) == list(range(len(streamed.calls)))
    return (
        (streamed.reasoning, streamed.content, stream_calls),
        (reasoning or "", content or "", [(c.name, c.arguments) for c in found or ()]),
    )


@settings(max_examples=150, deadline=None)
@given(
    text=st.sampled_from(ANSWERS),
    stop=st.lists(
        st.one_of(
            st.sampled_from(["\n\nZZZZ", "k>", "42", "</think>", "json", "}", "\n", "🙂", "zzz"]),
            st.text(st.sampled_from('ab4 \n<>{}"🙂'), min_size=1, max_size=12),
        ),
        max_size=3,
    ),
    sizes=st.lists(st.integers(1, 9), max_size=120),
    tools=st.booleans(),
    forced=st.booleans(),
    shown=st.booleans(),
    prompt=st.sampled_from(["<think>\n", "", "<think>\nhm</think>So", "what is </think>?"]),
)
@example(
    text=ANSWERS[0],
    stop=["\n\nZZZZ"],
    sizes=[1] * 99,
    tools=False,
    forced=False,
    shown=False,
    **THINKING,
)
@example(
    text=ANSWERS[14], stop=[], sizes=[1] * 99, tools=False, forced=False, shown=False, prompt="hi"
)
@example(
    text=ANSWERS[14], stop=["t</"], sizes=[], tools=False, forced=False, shown=False, prompt="hi"
)
@example(
    text=ANSWERS[15], stop=["zzz"], sizes=[], tools=False, forced=False, shown=False, prompt="hi"
)
@example(
    text=ANSWERS[0], stop=[], sizes=[], tools=False, forced=False, shown=False, prompt="</think>"
)
@example(text=ANSWERS[6], stop=[], sizes=[1] * 99, tools=True, forced=True, shown=False, **THINKING)
@example(
    text=ANSWERS[12], stop=[], sizes=[1] * 99, tools=True, forced=True, shown=False, **THINKING
)
@example(
    text=ANSWERS[0], stop=["</thinX"], sizes=[], tools=False, forced=False, shown=False, **THINKING
)
@example(
    text=ANSWERS[0], stop=["<"], sizes=[1] * 99, tools=False, forced=False, shown=True, **THINKING
)
@example(
    text=ANSWERS[0],
    stop=["</th"],
    sizes=[1] * 99,
    tools=False,
    forced=False,
    shown=True,
    **THINKING,
)
def test_the_stream_is_the_whole(tokenizer, text, stop, sizes, tools, forced, shown, prompt):
    request = asked((TOOL,) if tools else (), stop=stop, include_stop_str_in_output=shown)
    if tools and forced:
        request.tool_choice = "required"
    made = parser_class(tokenizer)
    streamed, whole = stream_and_whole(tokenizer, made, text, request, sizes, prompt)
    assert streamed == whole


def test_a_planted_fault_is_seen(tokenizer, monkeypatch):
    """Token ids may arrive before their text."""
    monkeypatch.setattr("serving.vllm_adapter.answer_parser.text_may_differ", lambda request: False)
    made, request = parser_class(tokenizer), asked((), stop=["\n\nZZZZ"])
    streamed, whole = stream_and_whole(tokenizer, made, ANSWERS[0], request, [1] * 99)
    assert streamed != whole


@pytest.mark.parametrize("sizes", [[1] * 200, [2] * 100, [7] * 30, []])
def test_calls_with_line_breaks_arrive(tokenizer, sizes):
    streamed, whole = stream_and_whole(
        tokenizer, parser_class(tokenizer), ANSWERS[6], asked(), sizes
    )
    assert streamed == whole
    assert [json.loads(arguments) for _, arguments in whole[2]] == [{"n": 42}, {"a": "b\n```"}]


def test_the_rest_of_a_cut_off_call_is_the_last_call(tokenizer):
    streamed, whole = stream_and_whole(tokenizer, parser_class(tokenizer), ANSWERS[8], asked(), [])
    assert streamed == whole
    assert [name for name, _ in whole[2]] == ["weather"]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_other_tool_parsers_see_one_token_at_a_time(tokenizer, size):
    made = parser_class(tokenizer, "hermes")
    wanted = '{"name": "weather", "arguments": {"city": "Bern"}}'
    text = f"look</think><tool_call>\n{wanted}\n</tool_call>"
    streamed, whole = stream_and_whole(tokenizer, made, text, asked(), [size] * 100)
    assert streamed[2] == whole[2]


@pytest.mark.parametrize("size", [1, 3, 50])
@pytest.mark.parametrize("text", ["It is 3 <", "no <tool_call", 'cut <tool_call>\n{"name": "wea'])
def test_text_that_may_begin_a_call_is_not_lost(tokenizer, text, size):
    made = parser_class(tokenizer, "hermes")
    streamed, whole = stream_and_whole(
        tokenizer, made, f"look</think>{text}", asked(), [size] * 100
    )
    assert streamed == whole == ("look", text, [])


def test_reasoning_has_both_names(tokenizer):
    parser = parser_class(tokenizer)(tokenizer, None)
    prompt = tokenizer.encode("<think>\n", add_special_tokens=False)
    delta = parser.parse_delta(
        "hm", tokenizer.encode("hm"), asked(()), prompt_token_ids=prompt, finished=False
    )
    assert delta.model_dump(exclude_unset=True) == {"reasoning": "hm", "reasoning_content": "hm"}


def test_the_cost_of_a_reasoning_token_does_not_grow(tokenizer):
    """vLLM's parser searches all previous tokens."""
    parser = parser_class(tokenizer)(tokenizer, None)
    prompt = tokenizer.encode("<think>\n", add_special_tokens=False)
    word = tokenizer.encode("hm", add_special_tokens=False)
    seen = Streamed()
    for _ in range(100):
        seen.add(parser.parse_delta("hm", word, asked(()), prompt_token_ids=prompt, finished=False))
    assert seen.reasoning == "hm" * 100
    assert len(parser._stream_state.previous_token_ids) <= len(word)
    end = tokenizer.encode("</think>42", add_special_tokens=False)
    seen.add(parser.parse_delta("</think>42", end, asked(()), finished=True))
    assert (seen.reasoning, seen.content) == ("hm" * 100, "42")


def test_a_part_of_a_character_is_no_reasoning(tokenizer):
    """A response whose only token has no text has no reasoning item, as when it is complete."""
    parser = parser_class(tokenizer)(tokenizer, None)
    prompt = tokenizer.encode("<think>\n", add_special_tokens=False)
    part = tokenizer.encode("🙂", add_special_tokens=False)[:1]
    assert parser.parse_delta("", part, asked(()), prompt_token_ids=prompt, finished=True) is None


def test_one_class_for_all_that_parse(tokenizer):
    made = parser_class(tokenizer)
    assert issubclass(made, AnswerParser)
    assert made is parser_class(tokenizer)
    assert _served(None, None, 0, False) is not made
