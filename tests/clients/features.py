"""The features that clients try: the rows of the table, by group, in order.

A client tries a feature under its name here, or gives the reason why it cannot. A name ending in
``.*`` stands for all features of a group.
"""

from collections.abc import Iterable

GROUPS: dict[str, dict[str, str]] = {
    "client": {
        "models": "models: the list, one by name, an unknown one",
        "key": "an invalid key: the client's error class, with our message and request id",
        "model": "an unknown model: the same",
        "parameter": "an invalid parameter: the same",
        "large": "a body over the limit (413): the same",
        "unsupported": "an unsupported feature (embeddings): a clear error",
        "headers": "custom headers; the request id is returned",
        "timeout": "the client's timeout also ends the request on the server",
        "cancel": "closing a stream early also ends the request on the server",
        "retry": "rejected with 429: waits for Retry-After, retries, succeeds",
        "async": "the asynchronous client",
        "parallel": "eight concurrent requests with one client",
    },
    "chat": {
        "whole": "non-streamed response",
        "stream": "streamed = non-streamed",
        "reasoning": "reasoning separate from content",
        "reasoning_stream": "reasoning: streamed = non-streamed",
        "usage": "usage, also in a stream",
        "conversation": "system prompt and earlier turns",
        "reasoning_back": "an earlier turn's reasoning sent back",
        "parts": "content as a list of text parts",
        "image": "an image: a clear error",
        "length": "max_tokens: finish reason length",
        "stop": "stop strings",
        "n": "n > 1, distinguished in a stream",
        "logprobs": "logprobs and top_logprobs, also in a stream",
        "seed": "seed: the same answer twice",
        "tools_auto": "tools, choice auto",
        "tools_required": "tools, choice required",
        "tools_named": "tools, one by name",
        "tools_stream": "tool calls: streamed = non-streamed",
        "tools_back": "a tool result sent back",
        "json_object": "JSON object",
        "json_schema": "JSON schema, parsed by the client",
        "json_stream": "JSON schema streamed",
    },
    "completions": {
        "whole": "non-streamed response",
        "stream": "streamed = non-streamed",
        "options": "echo, logprobs, stop, several prompts",
    },
    "responses": {
        "whole": "non-streamed response, with reasoning",
        "stream": "streamed = non-streamed, typed events",
        "tools": "function calls, non-streamed and streamed; a result sent back",
        "json": "JSON schema, parsed by the client",
        "conversation": "instructions and earlier turns",
        "length": "truncated: incomplete, with the reason",
    },
    "messages": {
        "whole": "non-streamed response",
        "stream": "streamed = non-streamed, typed events",
        "thinking": "thinking blocks, non-streamed and streamed",
        "thinking_off": "thinking disabled: no thinking blocks",
        "thinking_back": "an earlier turn's thinking sent back",
        "system": "system prompt and earlier turns",
        "stop": "stop sequences",
        "tools": "tools: auto, any, by name",
        "tools_stream": "tool calls: streamed = non-streamed",
        "tools_back": "a tool result sent back",
        "count_tokens": "count_tokens = input_tokens of the response",
    },
    "grpc": {
        "models": "ListModels",
        "whole": "Chat: non-streamed response, separate reasoning, usage",
        "stream": "ChatStream joined = Chat: content, reasoning, usage, token ids",
        "stop": "stop strings, streamed = non-streamed",
        "n": "n > 1, distinguished in a stream",
        "logprobs": "logprobs, streamed = non-streamed",
        "tools": "tools: required and by name; streamed = non-streamed; a result sent back",
        "json": "JSON schema and choices, streamed = non-streamed",
        "complete": "Complete and CompleteStream: text and token ids, echo, logprobs",
        "tokenize": "Tokenize and Detokenize: round trip",
        "unsupported": "an unsupported method (Embed): UNIMPLEMENTED with a clear message",
        "key": "an invalid key, and no key: UNAUTHENTICATED with details",
        "errors": "unknown model, invalid field: code, message, ErrorInfo and BadRequest",
        "metadata": "x-request-id round trip, other metadata, binary metadata",
        "deadline": "a deadline also ends the call on the server",
        "cancel": "cancelling a call, unary or streaming, also ends it on the server",
        "parallel": "sixteen concurrent calls over one channel",
        "compression": "compressed requests and responses",
        "large": "a large message; one over the limit: RESOURCE_EXHAUSTED, next call succeeds",
        "own_limit": "a response over the client's limit: rejected there, next call succeeds",
        "ping": "the client's keep-alive pings during a stream",
        "health": "grpc.health.v1: Check and Watch",
        "reflection": "reflection v1 and v1alpha: list services, describe one",
        "blocking": "the blocking interface: unary, streaming, cancelled",
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
        KeyError: no such group or feature.
    """
    group, _, feature = name.partition(".")
    if feature == "*":
        return names([group])
    GROUPS[group][feature]
    return [name]
