"""The features that clients try: the rows of the table, by group, in order.

A client tries a feature under its name here, or says why it cannot. A name ending in ``.*`` stands
for all features of a group.
"""

from collections.abc import Iterable

GROUPS: dict[str, dict[str, str]] = {
    "client": {
        "models": "models: list, one by name, an unknown one",
        "key": "a wrong key: its own error class, our message and request id",
        "model": "an unknown model: the same",
        "parameter": "a bad parameter: the same",
        "large": "a body over the limit (413): the same",
        "unsupported": "what this server lacks (embeddings): refused in words",
        "headers": "own headers; the request id comes back",
        "timeout": "its time-out ends the request here too",
        "cancel": "a stream closed early ends the request here too",
        "retry": "refused with 429: waits for Retry-After, tries again, succeeds",
        "async": "its asynchronous client",
        "parallel": "eight requests at once over one client",
    },
    "chat": {
        "whole": "whole answer",
        "stream": "streamed = whole",
        "reasoning": "reasoning apart from content",
        "reasoning_stream": "reasoning streamed = whole",
        "usage": "usage, of a stream too",
        "conversation": "system prompt and earlier turns",
        "reasoning_back": "an earlier turn's reasoning sent back",
        "parts": "content as a list of text parts",
        "image": "an image: refused in words",
        "length": "max_tokens: finish reason length",
        "stop": "stop strings",
        "n": "n > 1, told apart in a stream",
        "logprobs": "logprobs and top_logprobs, of a stream too",
        "seed": "seed: the same answer twice",
        "tools_auto": "tools, choice auto",
        "tools_required": "tools, choice required",
        "tools_named": "tools, one by name",
        "tools_stream": "tool calls streamed = whole",
        "tools_back": "a tool's result sent back",
        "json_object": "JSON object",
        "json_schema": "JSON schema, parsed by the client",
        "json_stream": "JSON schema streamed",
    },
    "completions": {
        "whole": "whole answer",
        "stream": "streamed = whole",
        "options": "echo, logprobs, stop, several prompts",
    },
    "responses": {
        "whole": "whole answer, with reasoning",
        "stream": "streamed = whole, typed events",
        "tools": "function calls, whole and streamed; a result sent back",
        "json": "JSON schema, parsed by the client",
        "conversation": "instructions and earlier turns",
        "length": "truncated: incomplete, with its reason",
    },
    "messages": {
        "whole": "whole answer",
        "stream": "streamed = whole, typed events",
        "thinking": "thinking blocks, whole and streamed",
        "thinking_off": "thinking disabled: none",
        "thinking_back": "an earlier turn's thinking sent back",
        "system": "system prompt and earlier turns",
        "stop": "stop sequences",
        "tools": "tools: auto, any, by name",
        "tools_stream": "tool calls streamed = whole",
        "tools_back": "a tool's result sent back",
        "count_tokens": "count_tokens = input_tokens of the answer",
    },
    "grpc": {
        "models": "ListModels",
        "whole": "Chat: whole answer, reasoning apart, usage",
        "stream": "ChatStream joined = Chat: content, reasoning, usage, token ids",
        "stop": "stop strings, streamed = whole",
        "n": "n > 1, told apart in a stream",
        "logprobs": "logprobs, streamed = whole",
        "tools": "tools: required and by name; streamed = whole; a result sent back",
        "json": "JSON schema and choices, streamed = whole",
        "complete": "Complete and CompleteStream: text and token ids, echo, logprobs",
        "tokenize": "Tokenize and Detokenize: there and back",
        "unsupported": "what this server lacks (Embed): UNIMPLEMENTED, in words",
        "key": "a wrong key, and no key: UNAUTHENTICATED with details",
        "errors": "unknown model, bad field: code, words, ErrorInfo and BadRequest",
        "metadata": "x-request-id there and back, other metadata, binary ones",
        "deadline": "a deadline ends the call here too",
        "cancel": "a cancelled call, whole or streamed, ends here too",
        "parallel": "sixteen calls at once over one channel",
        "compression": "requests and answers compressed",
        "large": "a large message goes; one over the limit: RESOURCE_EXHAUSTED, the next call goes",
        "own_limit": "an answer over the client's own limit: refused there, the next call goes",
        "ping": "the client's keep-alive pings during a stream",
        "health": "grpc.health.v1: Check and Watch",
        "reflection": "reflection v1 and v1alpha: list services, describe one",
        "blocking": "its blocking interface: whole, streamed, cancelled",
    },
}
TITLES = {
    "client": "Every client",
    "chat": "Chat completions",
    "completions": "Completions",
    "responses": "Responses",
    "messages": "Messages",
    "grpc": "gRPC",
}


def names(groups: Iterable[str]) -> list[str]:
    """Return the full names (``group.feature``) of all features of some groups."""
    return [f"{group}.{feature}" for group in groups for feature in GROUPS[group]]


def group_of(name: str) -> str:
    """Return the group that a full name belongs to."""
    return name.partition(".")[0]


def expand(name: str) -> list[str]:
    """Return the features that match a name or ``group.*``.

    Raises:
        KeyError: there is no such group or feature.
    """
    group, _, feature = name.partition(".")
    if feature == "*":
        return names([group])
    GROUPS[group][feature]
    return [name]
