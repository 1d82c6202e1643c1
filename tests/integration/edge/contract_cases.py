"""Requests whose responses are compared with the published APIs, and the engine's output."""

from dataclasses import dataclass, field
from typing import Any

from tests.integration.edge.scripted_engine import ANSWER

QUESTION = [{"role": "user", "content": "What is 17+25?"}]
CHAT = {"model": "pocket-r1", "messages": QUESTION}
TEXT = {"model": "pocket-r1", "prompt": "x"}
RESPONSE = {"model": "pocket-r1", "input": "What is 17+25?"}
MESSAGE = {**CHAT, "max_tokens": 100}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
FLAT_TOOL = {"type": "function", "name": "weather", "parameters": PARAMETERS}
INPUT_TOOL = {"name": "weather", "input_schema": PARAMETERS}
_CALL = (
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "Bern"}\n```<｜tool▁call▁end｜>'
)
CALLS = f"look</think><｜tool▁calls▁begin｜>{_CALL}\n{_CALL}<｜tool▁calls▁end｜>"
USAGE = {"include_usage": True, "continuous_usage_stats": True}


@dataclass(frozen=True)
class Case:
    """A request to an operation of a published API."""

    operation: str
    body: dict[str, Any]
    script: str = ANSWER
    streamed: dict[str, Any] = field(default_factory=dict)
    """Fields of the streamed request only."""


CASES: dict[str, Case] = {
    "chat": Case("POST /chat/completions", CHAT, streamed={"stream_options": USAGE}),
    "chat, two choices": Case("POST /chat/completions", {**CHAT, "n": 2}),
    "chat, logprobs": Case("POST /chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    "chat, stop": Case("POST /chat/completions", {**CHAT, "stop": ["It"]}),
    "chat, cut off": Case("POST /chat/completions", {**CHAT, "max_tokens": 3}),
    "chat, calls": Case("POST /chat/completions", {**CHAT, "tools": [TOOL]}, CALLS),
    "chat, forced": Case(
        "POST /chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "required"}, CALLS
    ),
    "chat, no reasoning": Case("POST /chat/completions", {**CHAT, "include_reasoning": False}),
    "text": Case("POST /completions", TEXT, streamed={"stream_options": USAGE}),
    "text, two prompts": Case("POST /completions", {**TEXT, "prompt": ["a", "b"], "n": 2}),
    "text, logprobs": Case("POST /completions", {**TEXT, "logprobs": 2}),
    "text, echo": Case("POST /completions", {**TEXT, "echo": True}),
    "text, stop": Case("POST /completions", {**TEXT, "stop": ["is"]}),
    "response": Case("POST /responses", RESPONSE),
    "response, cut off": Case("POST /responses", {**RESPONSE, "max_output_tokens": 3}),
    "response, calls": Case("POST /responses", {**RESPONSE, "tools": [FLAT_TOOL]}, CALLS),
    "response, forced": Case(
        "POST /responses", {**RESPONSE, "tools": [FLAT_TOOL], "tool_choice": "required"}, CALLS
    ),
    "response, logprobs": Case(
        "POST /responses",
        {**RESPONSE, "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ),
    "response, all settings": Case(
        "POST /responses",
        {
            **RESPONSE,
            "instructions": "be brief",
            "metadata": {"a": "b"},
            "reasoning": {"effort": "low"},
            "text": {"format": {"type": "text"}},
            "truncation": "auto",
            "user": "u",
        },
    ),
    "message": Case("POST /v1/messages", MESSAGE),
    "message, cut off": Case("POST /v1/messages", {**MESSAGE, "max_tokens": 3}),
    "message, stop": Case("POST /v1/messages", {**MESSAGE, "stop_sequences": ["It"]}),
    "message, calls": Case("POST /v1/messages", {**MESSAGE, "tools": [INPUT_TOOL]}, CALLS),
    "message, system": Case(
        "POST /v1/messages", {**MESSAGE, "system": [{"type": "text", "text": "be brief"}]}
    ),
}

PATHS = {
    "POST /chat/completions": "/v1/chat/completions",
    "POST /completions": "/v1/completions",
    "POST /responses": "/v1/responses",
    "POST /v1/messages": "/v1/messages",
}
