"""The five APIs, each with and without streaming, with answers in a common form for comparison."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from serving.api.v1 import inference_pb2 as pb


@dataclass(frozen=True)
class Case:
    """One request."""

    door: str
    question: str
    max_tokens: int
    stop: list[str]
    n: int
    tools: str | None
    """auto, required, named, or no tools."""
    tool: dict[str, Any]
    include_reasoning: bool
    json_object: bool
    slow: bool
    """Whether the client reads slowly."""
    seed: int = 1

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters. Several greedy choices are rejected, because they would be equal."""
        return {"temperature": 0.0} if self.n == 1 else {"temperature": 0.7, "seed": self.seed}


@dataclass
class Choice:
    """The content of one choice."""

    reasoning: str = ""
    content: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    finish_reason: str | None = None
    stop_reason: Any = None

    def call(self, index: int, name: str, arguments: str) -> None:
        """Add a tool call, or a part of one."""
        known = self.calls.setdefault(index, ["", ""])
        known[0] += name
        known[1] += arguments


Answer = dict[int, Choice]


class Door(Protocol):
    """One API."""

    async def whole(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Return the answer without streaming; for an error, its status."""
        ...

    async def streamed(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Return the answer assembled from a stream."""
        ...


async def _events(
    rest: httpx.AsyncClient, path: str, body: dict[str, Any], *, slow: bool
) -> list[dict[str, Any]] | int | str:
    """Return the events, the status if there is no stream, and the error that ended the stream."""
    found: list[dict[str, Any]] = []
    async with rest.stream("POST", path, json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            return answer.status_code
        async for line in answer.aiter_lines():
            if slow:
                await asyncio.sleep(0.02)
            if line.startswith("data: ") and line != "data: [DONE]":
                found.append(json.loads(line.removeprefix("data: ")))
                if "error" in found[-1] or found[-1].get("type") == "error":
                    return line
    return found


def _chat_tools(case: Case) -> dict[str, Any]:
    if case.tools is None:
        return {}
    named = {"type": "function", "function": {"name": case.tool["name"]}}
    return {
        "tools": [{"type": "function", "function": case.tool}],
        "tool_choice": named if case.tools == "named" else case.tools,
    }


class Chat:
    """/v1/chat/completions."""

    path = "/v1/chat/completions"

    def body(self, case: Case, model: str) -> dict[str, Any]:
        """Return the request."""
        return {
            "model": model,
            "messages": [{"role": "user", "content": case.question}],
            **case.sampling,
            "max_tokens": case.max_tokens,
            "stop": case.stop,
            "n": case.n,
            "include_reasoning": case.include_reasoning,
            **({"response_format": {"type": "json_object"}} if case.json_object else {}),
            **_chat_tools(case),
        }

    async def whole(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request without streaming."""
        answer = await rest.post(self.path, json=self.body(case, model))
        if answer.status_code != 200:
            return answer.status_code
        found: Answer = {}
        for given in answer.json()["choices"]:
            message = given["message"]
            choice = found[given["index"]] = Choice(
                message.get("reasoning") or "",
                message.get("content") or "",
                finish_reason=given["finish_reason"],
                stop_reason=given.get("stop_reason"),
            )
            for index, call in enumerate(message.get("tool_calls") or ()):
                choice.call(index, call["function"]["name"], call["function"]["arguments"])
        return found

    async def streamed(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request with streaming."""
        events = await _events(rest, self.path, self.body(case, model), slow=case.slow)
        if isinstance(events, int | str):
            return events
        found: Answer = {}
        for event in events:
            for given in event["choices"]:
                choice, delta = found.setdefault(given["index"], Choice()), given["delta"]
                choice.reasoning += delta.get("reasoning") or ""
                choice.content += delta.get("content") or ""
                choice.finish_reason = given["finish_reason"] or choice.finish_reason
                choice.stop_reason = given.get("stop_reason") or choice.stop_reason
                for call in delta.get("tool_calls") or ():
                    part = call["function"]
                    name, arguments = part.get("name") or "", part.get("arguments") or ""
                    choice.call(call["index"], name, arguments)
        return found


class Completions:
    """/v1/completions."""

    path = "/v1/completions"

    def body(self, case: Case, model: str) -> dict[str, Any]:
        """Return the request."""
        return {
            "model": model,
            "prompt": f"{case.question}<think>\n",
            **case.sampling,
            "max_tokens": case.max_tokens,
            "stop": case.stop,
            "n": case.n,
        }

    async def whole(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request without streaming."""
        answer = await rest.post(self.path, json=self.body(case, model))
        if answer.status_code != 200:
            return answer.status_code
        return {
            given["index"]: Choice(
                content=given["text"],
                finish_reason=given["finish_reason"],
                stop_reason=given.get("stop_reason"),
            )
            for given in answer.json()["choices"]
        }

    async def streamed(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request with streaming."""
        events = await _events(rest, self.path, self.body(case, model), slow=case.slow)
        if isinstance(events, int | str):
            return events
        found: Answer = {}
        for event in events:
            for given in event["choices"]:
                choice = found.setdefault(given["index"], Choice())
                choice.content += given["text"]
                choice.finish_reason = given["finish_reason"] or choice.finish_reason
                choice.stop_reason = given.get("stop_reason") or choice.stop_reason
        return found


class Responses:
    """/v1/responses; the last event's response is compared as well."""

    path = "/v1/responses"

    def body(self, case: Case, model: str) -> dict[str, Any]:
        """Return the request."""
        tools: dict[str, Any] = {}
        if case.tools is not None:
            named = {"type": "function", "name": case.tool["name"]}
            tools = {
                "tools": [{"type": "function", **case.tool}],
                "tool_choice": named if case.tools == "named" else case.tools,
            }
        return {
            "model": model,
            "input": case.question,
            "temperature": 0,
            "max_output_tokens": case.max_tokens,
            "store": False,
            **tools,
        }

    async def whole(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request without streaming."""
        answer = await rest.post(self.path, json=self.body(case, model))
        return _of_response(answer.json()) if answer.status_code == 200 else answer.status_code

    async def streamed(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request with streaming."""
        events = await _events(rest, self.path, self.body(case, model), slow=case.slow)
        if isinstance(events, int | str):
            return events
        joined = Choice()
        calls: dict[int, int] = {}
        for event in events:
            if event["type"] == "response.reasoning_text.delta":
                joined.reasoning += event["delta"]
            elif event["type"] == "response.output_text.delta":
                joined.content += event["delta"]
            elif (
                event["type"] == "response.output_item.added"
                and event["item"]["type"] == "function_call"
            ):
                index = calls.setdefault(event["output_index"], len(calls))
                joined.call(index, event["item"]["name"], "")
            elif event["type"] == "response.function_call_arguments.delta":
                joined.call(calls[event["output_index"]], "", event["delta"])
        last = events[-1]
        ended = _of_response(last["response"])
        joined.finish_reason = ended[0].finish_reason
        assert last["type"] == f"response.{joined.finish_reason}", last["type"]
        return {0: joined} if ended == {0: joined} else {0: joined, 1: ended[0]}


def _of_response(response: Mapping[str, Any]) -> Answer:
    choice = Choice(finish_reason=response["status"])
    for item in response["output"]:
        if item["type"] == "reasoning":
            choice.reasoning += "".join(part["text"] for part in item["content"] or ())
        elif item["type"] == "message":
            choice.content += "".join(part["text"] for part in item["content"])
        elif item["type"] == "function_call":
            choice.call(len(choice.calls), item["name"], item["arguments"])
    return {0: choice}


class Messages:
    """/v1/messages."""

    path = "/v1/messages"

    def body(self, case: Case, model: str) -> dict[str, Any]:
        """Return the request."""
        tools: dict[str, Any] = {}
        if case.tools is not None:
            choices = {
                "auto": {"type": "auto"},
                "required": {"type": "any"},
                "named": {"type": "tool", "name": case.tool["name"]},
            }
            tool = {"name": case.tool["name"], "input_schema": case.tool["parameters"]}
            tools = {"tools": [tool], "tool_choice": choices[case.tools]}
        return {
            "model": model,
            "messages": [{"role": "user", "content": case.question}],
            "temperature": 0,
            "max_tokens": case.max_tokens,
            "stop_sequences": case.stop,
            **({} if case.include_reasoning else {"thinking": {"type": "disabled"}}),
            **tools,
        }

    async def whole(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request without streaming."""
        answer = await rest.post(self.path, json=self.body(case, model))
        if answer.status_code != 200:
            return answer.status_code
        content = answer.json()
        reason, stop = content["stop_reason"], content.get("stop_sequence")
        choice = Choice(finish_reason=reason, stop_reason=stop)
        for block in content["content"]:
            if block["type"] == "thinking":
                choice.reasoning += block["thinking"]
            elif block["type"] == "text":
                choice.content += block["text"]
            else:
                choice.call(len(choice.calls), block["name"], json.dumps(block["input"]))
        return {0: choice}

    async def streamed(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request with streaming."""
        events = await _events(rest, self.path, self.body(case, model), slow=case.slow)
        if isinstance(events, int | str):
            return events
        choice = Choice()
        calls: dict[int, int] = {}
        for event in events:
            if event["type"] == "content_block_start":
                block = event["content_block"]
                if block["type"] == "tool_use":
                    index = calls.setdefault(event["index"], len(calls))
                    choice.call(index, block["name"], "")
            elif event["type"] == "content_block_delta":
                delta = event["delta"]
                choice.reasoning += delta.get("thinking") or ""
                choice.content += delta.get("text") or ""
                if delta["type"] == "input_json_delta":
                    choice.call(calls[event["index"]], "", delta["partial_json"])
            elif event["type"] == "message_delta":
                choice.finish_reason = event["delta"]["stop_reason"]
                choice.stop_reason = event["delta"].get("stop_sequence")
        # A complete message omits calls with incomplete input, and has inputs as objects.
        whole = [(name, _object(text)) for name, text in choice.calls.values()]
        kept = [(name, value) for name, value in whole if value is not None]
        choice.calls = {i: [name, json.dumps(value)] for i, (name, value) in enumerate(kept)}
        return {0: choice}


def _object(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Grpc:
    """serving.api.v1.InferenceService."""

    def request(self, case: Case, model: str) -> pb.ChatRequest:
        """Return the request."""
        request = pb.ChatRequest(
            model=model,
            messages=[pb.Message(role=pb.ROLE_USER, content=case.question)],
            sampling=pb.SamplingParams(
                max_tokens=case.max_tokens, stop=case.stop, n=case.n, **case.sampling
            ),
        )
        if case.tools is not None:
            tool = request.tools.add(
                name=case.tool["name"], parameters_json=json.dumps(case.tool["parameters"])
            )
            if case.tool["strict"] is not None:
                tool.strict = case.tool["strict"]
            if case.tools == "named":
                request.tool_choice.function_name = case.tool["name"]
            else:
                request.tool_choice.mode = pb.ToolChoice.Mode.Value(f"MODE_{case.tools.upper()}")
        return request

    async def whole(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request without streaming."""
        calls, metadata = stub
        answer = await calls.Chat(self.request(case, model), metadata=metadata, timeout=300)
        found: Answer = {}
        for given in answer.choices:
            message = given.message
            choice = found[given.index] = Choice(
                message.reasoning_content,
                message.content,
                finish_reason=given.finish_reason,
                stop_reason=given.stop_reason,
            )
            for index, call in enumerate(message.tool_calls):
                choice.call(index, call.function.name, call.function.arguments_json)
        return found

    async def streamed(self, case: Case, model: str, rest: httpx.AsyncClient, stub: Any) -> Any:
        """Send the request with streaming."""
        calls, metadata = stub
        found: Answer = {}
        stream = calls.ChatStream(self.request(case, model), metadata=metadata, timeout=300)
        async for part in stream:
            if case.slow:
                await asyncio.sleep(0.02)
            for given in part.choices:
                choice = found.setdefault(given.index, Choice(stop_reason=""))
                choice.reasoning += given.reasoning_content
                choice.content += given.content
                choice.finish_reason = given.finish_reason or choice.finish_reason
                choice.stop_reason = given.stop_reason or choice.stop_reason
                for call in given.tool_calls:
                    choice.call(call.index, call.function.name, call.function.arguments_json)
        return found


DOORS: dict[str, Door] = {
    "chat": Chat(),
    "completions": Completions(),
    "responses": Responses(),
    "messages": Messages(),
    "grpc": Grpc(),
}
