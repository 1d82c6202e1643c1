"""Requests for every REST route: valid ones with defects, and raw bytes."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.odd import mutate, odd_value

MODEL = "pocket-r1"
USER = {"role": "user", "content": "What is 17+25?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}}, "required": ["z"]}
CHAT = {"model": MODEL, "messages": [USER], "max_tokens": 8}

GOOD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "auto"}),
    (
        "/v1/chat/completions",
        {
            **CHAT,
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "r",
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ],
            "tools": [TOOL],
        },
    ),
    (
        "/v1/chat/completions",
        {
            **CHAT,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            },
        },
    ),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 2, "seed": 3}),
    ("/v1/chat/completions/batch", {"model": MODEL, "messages": [[USER], [USER]], "max_tokens": 4}),
    ("/v1/completions", {"model": MODEL, "prompt": "What", "max_tokens": 8, "logprobs": 1}),
    ("/v1/completions", {"model": MODEL, "prompt": [70, 71, 72], "max_tokens": 8, "echo": True}),
    ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"], "max_tokens": 4, "n": 2}),
    ("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 8}),
    (
        "/v1/responses",
        {
            "model": MODEL,
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
            "instructions": "Be short.",
            "max_output_tokens": 8,
            "text": {"format": {"type": "text"}},
            "tools": [],
        },
    ),
    ("/v1/messages", {"model": MODEL, "messages": [USER], "max_tokens": 8, "system": "Be short."}),
    (
        "/v1/messages",
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "max_tokens": 8,
            "tools": [{"name": "weather", "input_schema": SCHEMA}],
        },
    ),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": [USER]}),
    ("/tokenize", {"model": MODEL, "prompt": "17+25"}),
    ("/tokenize", {"model": MODEL, "messages": [USER], "add_generation_prompt": True}),
    ("/detokenize", {"model": MODEL, "tokens": [70, 71]}),
)

DANGEROUS: dict[str, tuple[Any, ...]] = {
    "n": (0, 2, 3, 129, 16384, 10**9),
    "max_tokens": (0, 1, 511, 512, 10**6, 2**31, 2**63),
    "max_completion_tokens": (0, 1, 10**9),
    "max_output_tokens": (0, -1, 10**9),
    "min_tokens": (1, 7, 10**6, 2**31),
    "temperature": (0, 1e-9, 0.01, 2, 100, 1e30),
    "top_p": (0, 1e-9, 0.5, 1, 1.1),
    "top_k": (-1, 0, 1, 10**6, 2**31),
    "min_p": (0, 1, 1.5, -0.1),
    "repetition_penalty": (0, 1e-9, 0.5, 2, 1e9),
    "frequency_penalty": (-2, 2, 3),
    "presence_penalty": (-2, 2, -3),
    "seed": (0, -1, 2**31, 2**63 - 1, 2**64),
    "stop": ("", [""], "e", ["a"] * 100, [None], "x" * 3000),
    "stop_token_ids": ([0], [-1], [2**31], [2**63], [10**7]),
    "allowed_token_ids": ([], [0], [-1], [10**7], [70, 71]),
    "bad_words": ([""], ["a"], [" "], ["a"] * 500, ["\ud800"], ["x" * 1000]),
    "logit_bias": (
        {"70": 100},
        {"-1": 1},
        {"99999999": 1},
        {"70": 1e30},
        {"a": 1},
        {"4294967296": 5},
        {"1.5": 1},
    ),
    "logprobs": (True, 0, 5, 20, 21, -1, 100000),
    "top_logprobs": (0, 5, 20, 21, -1, 100000),
    "prompt_logprobs": (0, 1, -1, 20, 100000),
    "logprob_token_ids": ([70], [-1], [10**7], []),
    "truncate_prompt_tokens": (-1, 0, 1, 5, 10**6),
    "thinking_token_budget": (0, 1, -1, 10**9),
    "stream_interval": (0, 1, 3, 10**6),
    "priority": (0, 1, -1, 2**31, 2**63),
    "use_beam_search": (True,),
    "echo": (True,),
    "suffix": ("x",),
    "best_of": (2,),
    "structured_outputs": (
        {"regex": "(a+)+$"},
        {"regex": "["},
        {"regex": "a{1,100000}"},
        {"grammar": 'root ::= "a" root'},
        {"grammar": "root ::= root"},
        {"grammar": "]]"},
        {"choice": []},
        {"choice": [""]},
        {"json": {}},
        {"json": {"type": "nonsense"}},
        {"json": "{"},
        {"json": {"$ref": "#"}},
        {"json_object": True},
        {"structural_tag": "x"},
        {"regex": "a", "choice": ["b"]},
    ),
    "response_format": (
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": ["a"]}}},
        {"type": "structural_tag", "format": {}},
        {"type": "structural_tag", "structures": [], "triggers": []},
        {"type": "regex"},
    ),
    "tool_choice": (
        "required",
        {"type": "function", "function": {"name": "nobody"}},
        {"type": "any"},
        {"type": "tool", "name": "nobody"},
    ),
    "stream_options": ({"include_usage": True}, {"continuous_usage_stats": True}, {}),
    "documents": ([{"title": "t", "text": "x"}],),
    "chat_template": ("{{ messages }}", "{{ 1/0 }}"),
    "chat_template_kwargs": ({"messages": 1}, {"tools": 1}, {"chat_template": "x"}, {"x": {}}),
    "continue_final_message": (True,),
    "add_generation_prompt": (False,),
    "mm_processor_kwargs": ({"x": 1},),
    "prompt_embeds": ("AAAA", [b"".decode()], ["AAAA"]),
    "cache_salt": ("salt", ""),
    "kv_transfer_params": ({}, {"x": 1}),
    "ec_transfer_params": ({}, {"x": 1}),
    "vllm_xargs": ({}, {"x": 1}, {"x": [1]}, {"x": {}}),
    "repetition_detection": (
        {"max_pattern_size": 3, "min_pattern_size": 1, "min_count": 2},
        {"max_pattern_size": -1},
        {"max_pattern_size": 10**9, "min_count": 10**9},
    ),
    "request_id": ("x", "same", "a" * 500, "\n"),
    "session_id": ("s", "a" * 5000),
    "background": (True,),
    "store": (True,),
    "previous_response_id": ("resp_x", "nope"),
    "previous_input_messages": ([{"role": "user"}], [1]),
    "reasoning_effort": ("low", "max", "none"),
    "reasoning": ({"effort": "low"}, {"summary": "auto"}),
    "thinking": ({"type": "enabled", "budget_tokens": -1}, {"type": "disabled"}, {"type": "x"}),
    "watermarking": (True,),
    "mm_payload": ("full",),
    "return_mm_kwargs": (True,),
    "return_token_ids": (True,),
    "return_tokens_as_token_ids": (True,),
    "return_token_offsets": (True,),
    "return_prompt_text": (True,),
    "routed_experts_prompt_start": (0, 1, -1),
    "stop_sequences": (["x"], [""], [1]),
    "include": (["message.output_text.logprobs"], ["x"]),
    "include_stop_str_in_output": (True,),
    "ignore_eos": (True,),
    "skip_special_tokens": (False,),
    "spaces_between_special_tokens": (False,),
    "detokenize": (False,),
    "enable_response_messages": (True,),
    "service_tier": ("auto", "flex"),
    "truncation": ("auto", "disabled"),
    "input": ([{"type": "reasoning"}], [{"type": "function_call_output"}], [{"type": "x"}]),
    "tools": ([{"type": "web_search"}], [{"type": "mcp"}], [TOOL, TOOL]),
    "prompt": ([[]], [[70], [71]], [-1], [10**7], [70] * 600, ["x"] * 50, [[70], "x"]),
    "tokens": ([-1], [2**63], [10**7], [70] * 10000, []),
    "model": (MODEL, "gpt-9", None),
}

HEADERS: tuple[dict[str, str], ...] = (
    {"x-request-id": "same"},
    {"x-request-id": "a b"},
    {"x-request-timeout-ms": "1"},
    {"x-request-timeout-ms": "-1"},
    {"x-request-timeout-ms": "99999999999999999999"},
    {"x-priority": "batch"},
    {"x-priority": "urgent"},
    {"x-session-id": "s" * 3000},
    {"x-data-parallel-rank": "7"},
    {"x-explain-routing": "1"},
    {"traceparent": "00-0-0-0"},
    {"authorization": "Bearer x"},
    {"content-encoding": "gzip"},
    {"endpoint-load-metrics-format": "JSON"},
    {"accept": "text/event-stream"},
    {"expect": "100-continue"},
)

GETS = (
    "/v1/models",
    "/v1/models?x=%00",
    "/v1/responses/nope",
    "/v1/responses/resp_%F0%9F?stream=1",
    "/v1/responses/resp_x?starting_after=-1&stream=true",
    "/v1/responses/resp_x?starting_after=1e9",
    "/v1/responses/" + "a" * 3000,
    "/livez",
    "/readyz?parked=maybe",
    "/fleet?x[]=1",
    "/metrics?name[]=%00",
    "/health",
    "/version",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//",
    "/v1/../fleet",
    "/openapi.json",
    "/docs",
)


@dataclass(frozen=True)
class Case:
    """One request."""

    path: str
    content: bytes | list[bytes]
    """Parts of the body, sent as chunks."""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.headers} {self.content!r:.600}"


def mutated(rng: random.Random, fields: dict[str, list[str]]) -> Case:
    """Generate a valid request for a random route, with one to three defects."""
    path, body = rng.choice(GOOD)
    names = {name: DANGEROUS.get(name, ()) for name in fields.get(path) or DANGEROUS}
    body = mutate(rng, {**body, "stream": rng.random() < 0.5}, names)
    headers = {"content-type": "application/json"}
    if rng.random() < 0.1:
        headers |= rng.choice(HEADERS)
    return Case(path, json.dumps(body).encode("utf-8", "surrogatepass"), headers=headers)


def raw(rng: random.Random) -> Case:  # noqa: C901, PLR0912  a table of ways
    """Generate a request of invalid bytes."""
    path, body = rng.choice(GOOD)
    good = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    kind = rng.randrange(13)
    content: bytes | list[bytes] = good
    match kind:
        case 0:
            content = rng.randbytes(rng.randint(0, 300))
        case 1:
            content = good[: rng.randrange(len(good))]
        case 2:
            broken = bytearray(good)
            for _ in range(rng.randint(1, 5)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            content = bytes(broken)
        case 3:
            depth = rng.choice((10, 500, 5000, 100_000))
            opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
            content = opening * depth + (b"1" + closing * depth if rng.random() < 0.5 else b"")
        case 4:
            deep = b"[" * 400 + b"]" * 400
            content = good[:-1] + b', "x": ' + deep + b', "metadata": ' + deep + b"}"
        case 5:
            number = rng.choice((b"1" * 5000, b"1e999", b"-1e999", b"0" * 50, b"1e-999", b"-"))
            content = good[:-1] + b', "max_tokens": ' + number + b"}"
        case 6:
            content = good.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
        case 7:
            content = good[:-1] + b', "user": "\xff\xfe\xed\xa0\x80"}'
        case 8:
            headers["content-type"] = rng.choice(
                (
                    "text/plain",
                    "",
                    "application/xml",
                    "multipart/form-data; boundary=x",
                    "multipart/form-data",
                    "application/x-www-form-urlencoded",
                    "application/json; charset=utf-16",
                    "application/vnd.x+json",
                    "a" * 2000,
                )
            )
        case 9:
            content = [bytes([byte]) for byte in good]  # one chunk per byte
        case 10:
            content = [good, b"", good]
        case 11:
            content = json.dumps(odd_value(rng)).encode("utf-8", "surrogatepass")
        case _:
            return Case(
                rng.choice(GETS) if rng.random() < 0.7 else path,
                b"",
                method=rng.choice(("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW")),
                headers=rng.choice(HEADERS),
            )
    if rng.random() < 0.2:
        headers |= rng.choice(HEADERS)
    return Case(path, content, headers=headers)


def cases(seed: int, count: int, fields: dict[str, list[str]]) -> Iterator[Case]:
    """Generate ``count`` cases; three of four have valid JSON."""
    rng = random.Random(seed)
    for _ in range(count):
        yield mutated(rng, fields) if rng.random() < 0.75 else raw(rng)
