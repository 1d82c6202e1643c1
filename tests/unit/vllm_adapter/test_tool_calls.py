"""Streamed tool calls are complete for any split into deltas, with vLLM's parsers."""

import json
from functools import partial

import pytest
import xgrammar
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.sampling_params import StructuredOutputsParams
from xgrammar.testing import _is_grammar_accept_string

from serving.settings import BUNDLED_MODEL
from serving.vllm_adapter.tool_calls import CompletedToolCalls, tightened

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def call(city: str) -> str:
    arguments = json.dumps({"city": city})
    return (
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
        f"```json\n{arguments}\n```<｜tool▁call▁end｜>"
    )


def answer(*cities: str) -> str:
    calls = "\n".join(map(call, cities))
    return f"look</think><｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def parse(tokenizer):
    """Stream a text that is split at some tokens; returns the calls and the last delta."""
    parser_cls = ParserManager.get_parser(
        tool_parser_name="deepseek_v3",
        reasoning_parser_name="deepseek_r1",
        enable_auto_tools=True,
        tool_strict_level="auto",
        model_name="m",
        is_harmony=False,
        tokenizer=tokenizer,
    )
    prompt = tokenizer.encode("<think>\n", add_special_tokens=False)

    def run(text: str, cuts: set[int], tools=(TOOL,)) -> dict[int, list[str]]:
        request = ChatCompletionRequest(
            model="m", messages=[{"role": "user", "content": "x"}], tools=list(tools) or None
        )
        make = partial(parser_cls, tokenizer, request.tools, chat_template_kwargs={})
        parse_delta = CompletedToolCalls(make().parse_delta, make, enable_auto_tools=True)
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        ends = sorted({cut for cut in cuts if 0 < cut < len(token_ids)} | {len(token_ids)})
        calls: dict[int, list[str]] = {}
        for start, end in zip([0, *ends], ends, strict=False):
            piece = token_ids[start:end]
            message = parse_delta(
                delta_text=tokenizer.decode(piece, skip_special_tokens=False),
                delta_token_ids=piece,
                request=request,
                prompt_token_ids=prompt,
                finished=end == len(token_ids),
            )
            for part in message.tool_calls if message is not None else ():
                seen = calls.setdefault(part.index, ["", ""])
                seen[0] += part.function.name or ""
                seen[1] += part.function.arguments or ""
        return calls

    return run


@given(cuts=st.sets(st.integers(1, 60)))
def test_one_call_is_whole(parse, cuts):
    calls = parse(answer("Bern"), cuts)
    assert list(calls) == [0]
    name, arguments = calls[0]
    assert (name, json.loads(arguments)) == ("weather", {"city": "Bern"})


@pytest.mark.parametrize("step", [1, 2, 3, 5, 9, 1000])
def test_two_calls_are_whole(parse, step):
    calls = parse(answer("Bern", "Rome"), set(range(0, 200, step)))
    assert {index: (name, json.loads(arguments)) for index, (name, arguments) in calls.items()} == {
        0: ("weather", {"city": "Bern"}),
        1: ("weather", {"city": "Rome"}),
    }


def test_no_call_stays_none(parse):
    assert parse("look</think>It is sunny.", set(range(50))) == {}


def test_without_tools_nothing_is_added(parse):
    assert parse(answer("Bern"), {20}, tools=()) == {}


WORDS = st.text(
    st.one_of(
        st.sampled_from('abcdefABCDEF0189xu\\"/ \n\t\x7f'),
        st.characters(min_codepoint=0x80, max_codepoint=0xFF),
        st.characters(min_codepoint=0x20, exclude_categories=("Cs",)),
    ),
    min_size=1,
    max_size=8,
)


@given(name=WORDS, values=st.lists(WORDS, min_size=1, max_size=3, unique=True))
@example(name="größe", values=["über", "école", "\\xdfe", "a\nb"])
@example(name="a", values=["\x80\x80a", "ÿf", "\\ßa"])
def test_the_grammar_of_arguments_is_that_of_their_schema(name, values):
    schema = {
        "type": "object",
        "properties": {name: {"enum": values}},
        "required": [name],
        "additionalProperties": False,
    }
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    made = tightened(StructuredOutputsParams(structural_tag=json.dumps(tag)), compact=True)
    found = json.loads(made.structural_tag)["format"]
    assert found["type"] == "grammar"
    grammar = xgrammar.Grammar.from_ebnf(found["grammar"])
    for value in values:
        text = json.dumps({name: value}, ensure_ascii=False, separators=(",", ":"))
        direct = xgrammar.Grammar.from_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(",", ":")
        )
        # xgrammar escapes some control characters differently than json.
        assert _is_grammar_accept_string(grammar, text) == _is_grammar_accept_string(direct, text)
        assert _is_grammar_accept_string(grammar, text) or not (name + value).isprintable()
