"""Converts proto messages, tools and embedded JSON to the fields of vLLM's requests. No I/O."""

import json
from collections.abc import Iterable
from typing import Any

from serving.api.v1 import inference_pb2 as pb
from serving.edge.grpc.errors import BadField

_ROLES: dict[int, str] = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_DEVELOPER: "developer",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}

_TOOL_MODES: dict[int, str] = {
    pb.ToolChoice.MODE_NONE: "none",
    pb.ToolChoice.MODE_AUTO: "auto",
    pb.ToolChoice.MODE_REQUIRED: "required",
}


def messages_json(messages: Iterable[pb.Message], field: str = "messages") -> list[dict[str, Any]]:
    """Convert a conversation.

    Args:
        messages: The messages, oldest first.
        field: Proto path of the list, for errors.

    Raises:
        BadField: The list is empty, or a message is malformed.
    """
    converted = [_message(message, f"{field}[{i}]") for i, message in enumerate(messages)]
    if not converted:
        raise BadField(field, "must contain at least one message")
    return converted


def _message(message: pb.Message, field: str) -> dict[str, Any]:
    role = _ROLES.get(message.role)
    if role is None:
        raise BadField(f"{field}.role", "is required")
    content: dict[str, Any] = {"role": role, "content": message.content}
    if message.reasoning_content:
        content["reasoning"] = message.reasoning_content
    if message.name:
        content["name"] = message.name
    if message.tool_calls:
        if message.role != pb.ROLE_ASSISTANT:
            raise BadField(
                f"{field}.tool_calls", "are allowed only in messages with ROLE_ASSISTANT"
            )
        content["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(call, f"{field}.tool_calls[{i}]"),
                },
            }
            for i, call in enumerate(message.tool_calls)
        ]
    if message.role == pb.ROLE_TOOL:
        if not message.tool_call_id:
            raise BadField(f"{field}.tool_call_id", "is required for ROLE_TOOL")
        content["tool_call_id"] = message.tool_call_id
    return content


def _arguments(call: pb.ToolCall, field: str) -> str:
    if not call.function.name:
        raise BadField(f"{field}.function.name", "is required")
    text = call.function.arguments_json or "{}"
    json_object(text, f"{field}.function.arguments_json")
    return text


def tool_json(tool: pb.Tool, index: int) -> dict[str, Any]:
    """Convert a tool.

    Raises:
        BadField: The name is missing, or the parameters are not a JSON object.
    """
    if not tool.name:
        raise BadField(f"tools[{index}].name", "is required")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = json_object(
            tool.parameters_json, f"tools[{index}].parameters_json"
        )
    if tool.HasField("strict"):
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def tool_choice_json(choice: pb.ToolChoice) -> str | dict[str, Any]:
    """Convert a tool choice.

    Raises:
        BadField: The choice is empty.
    """
    if choice.WhichOneof("choice") == "function_name":
        return {"type": "function", "function": {"name": choice.function_name}}
    mode = _TOOL_MODES.get(choice.mode)
    if mode is None:
        raise BadField("tool_choice", "is empty: set mode or function_name")
    return mode


def json_object(text: str, field: str) -> dict[str, Any]:
    """Parse JSON text that must be an object; key order is preserved.

    Raises:
        BadField: The text is not valid JSON, or not an object.
    """
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise BadField(field, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadField(field, "must be a JSON object")
    return value


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed in JSON")
