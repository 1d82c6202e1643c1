"""Model output, split anywhere: the stream has the same content as the complete answer."""

import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from serving.settings import BUNDLED_MODEL
from serving.vllm_adapter.answer_parser import install_answer_parser
from tests.fuzz import mutators
from tests.fuzz.guided.finding import demand

PACKAGES = (
    "serving.vllm_adapter.answer_parser",
    "serving.vllm_adapter.token_text",
    "serving.vllm_adapter.deepseek_tool_calls",
    "serving.vllm_adapter.tool_calls",
)
_WORDS = (
    *("</think>", "<think>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function"),
    *(
        "<｜tool▁sep｜>",
        "weather",
        "\n```json\n",
        '{"city":"Bern"}',
        "\n```",
        "<｜tool▁call▁end｜>",
    ),
    *(
        "<｜tool▁calls▁end｜>",
        "42",
        " ",
        "\n",
        "\n\n",
        "ü",
        "🙂",
        "你好",
        "{",
        "}",
        '"',
        "\\",
        ":",
        "n",
    ),
    *(
        "```",
        "json",
        "<｜",
        "｜>",
        "<",
        "a b",
        "<｜end▁of▁sentence｜>",
        "hink>",
        "tool",
        ",",
        "[1, null]",
    ),
)
_STOPS = ((), ("\n\nZZZZ",), ("k>",), ("42",), ("json", "}"), ("🙂",), ("\n",), ("</think>", "zz"))
_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
_END = 255
"""Ends the words; the sizes of the deltas follow."""


class Answers:
    """The target: first byte stop strings, second tools, then words, then sizes."""

    name = "answers"
    packages = PACKAGES

    async def open(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODEL)
        base = ParserManager.get_parser(
            tool_parser_name="deepseek_v3",
            reasoning_parser_name="deepseek_r1",
            enable_auto_tools=True,
            tool_strict_level="auto",
            model_name="m",
            is_harmony=False,
            tokenizer=self.tokenizer,
        )
        state: Any = SimpleNamespace(
            online_renderer=SimpleNamespace(parser=base),
            openai_serving_chat=SimpleNamespace(parser_cls=base),
            openai_serving_chat_batch=SimpleNamespace(parser_cls=base),
            openai_serving_responses=SimpleNamespace(parser=base),
            anthropic_serving_messages=SimpleNamespace(parser_cls=base),
        )
        install_answer_parser(state, compact_json=True)
        self.made = state.openai_serving_chat.parser_cls
        self.prompt = self.tokenizer.encode("<think>\n", add_special_tokens=False)

    async def close(self) -> None:
        pass

    def seeds(self) -> Iterable[bytes]:
        one_call = bytes((3, 4, 5, 6, 7, 8, 9, 10))
        for stop in range(len(_STOPS)):
            for tools in range(3):
                yield bytes((stop, tools, 12, 0)) + b"\x02" + one_call + b"\x0b\xff" + b"\1\2\3" * 9
                yield bytes((stop, tools, 16, 17, 18, 0, 15, 15, 12, 16, 19)) + b"\xff\1\1\1\1\1"

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.4:
            at = rng.randrange(2, max(len(data), 3))
            words = bytes(rng.randrange(len(_WORDS)) for _ in range(rng.choice((1, 2, 5))))
            return data[:at] + words + data[at + rng.choice((0, 0, 1)) :]
        return mutators.bytes_changed(rng, data)[:300]

    async def run(self, data: bytes) -> None:
        head, rest = data[:2].ljust(2, b"\0"), data[2:]
        words, _, sizes = rest.partition(bytes((_END,)))
        text = "".join(_WORDS[word % len(_WORDS)] for word in words[:200])
        tools = (_TOOL,) if head[1] % 3 else ()
        request = ChatCompletionRequest(
            model="m",
            messages=[{"role": "user", "content": "x"}],
            tools=list(tools) or None,
            skip_special_tokens=False,
            stop=list(_STOPS[head[0] % len(_STOPS)]),
        )
        if head[1] % 3 == 2:
            request.tool_choice = "required"
        streamed, whole = self._both(text, request, [1 + size % 9 for size in sizes])
        demand(
            streamed == whole,
            f"the stream differs | {text!r} {request.stop}: {streamed}, complete {whole}",
        )

    def _both(self, text: str, request: Any, sizes: list[int]) -> tuple[Any, Any]:
        parser = self.made(self.tokenizer, request.tools)
        all_text, all_ids = "", []
        reasoning, content, calls = "", "", {}
        for delta_text, token_ids, last in self._generated(text, request, sizes):
            all_text += delta_text
            all_ids += token_ids
            delta = parser.parse_delta(
                delta_text, token_ids, request, prompt_token_ids=self.prompt, finished=last
            )
            if delta is None:
                continue
            reasoning += delta.reasoning or ""
            content += delta.content or ""
            for part in delta.tool_calls or ():
                call = calls.setdefault(part.index, [None, ""])
                call[0] = call[0] or part.function.name
                call[1] += part.function.arguments or ""
        parser = self.made(self.tokenizer, request.tools)
        others = parser.parse(
            all_text, request, enable_auto_tools=True, model_output_token_ids=all_ids
        )
        found = [[call.name, call.arguments] for call in others[2] or ()]
        return (
            (reasoning, content, list(calls.values())),
            (others[0] or "", others[1] or "", found),
        )

    def _generated(self, text: str, request: Any, sizes: list[int]) -> Iterable[Any]:
        token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        params = SamplingParams(stop=request.stop, skip_special_tokens=False)
        work: Any = SimpleNamespace(
            request_id="", prompt_token_ids=self.prompt, sampling_params=params
        )
        detokenizer = IncrementalDetokenizer.from_new_request(self.tokenizer, work)
        at = 0
        for size in [*sizes, len(token_ids)]:
            some = token_ids[at : at + size]
            at += size
            before = detokenizer.num_output_tokens()
            stopped = detokenizer.update(some, False) is not None
            last = stopped or at >= len(token_ids)
            new = list(detokenizer.output_token_ids[before:])
            yield detokenizer.get_next_output_text(last, True), new, last
            if last:
                return
