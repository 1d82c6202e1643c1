"""Converts vLLM's responses and stream chunks to proto messages. No I/O."""

from collections.abc import Sequence
from typing import Any

from serving.api.v1 import inference_pb2 as pb
from serving.edge.grpc.vllm_json import (
    ChatChoice,
    ChatJson,
    ChatLogprobs,
    ChatMessage,
    Function,
    TextChoice,
    TextJson,
    TextLogprobs,
    TopLogprob,
    UsageJson,
)
from serving.errors import EngineError

FINISH_REASONS: dict[str, pb.FinishReason] = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "tool_calls": pb.FINISH_REASON_TOOL_CALLS,
    "abort": pb.FINISH_REASON_ABORT,
    "error": pb.FINISH_REASON_ERROR,
    "repetition": pb.FINISH_REASON_REPETITION,
}

_ROLES: dict[str, pb.Role] = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_DEVELOPER,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}


def chat_response(answer: ChatJson) -> pb.ChatResponse:
    """Build the response of Chat."""
    return pb.ChatResponse(
        id=answer.id,
        model=answer.model,
        created_unix_seconds=answer.created,
        choices=[_chat_choice(choice) for choice in answer.choices],
        usage=usage_proto(answer.usage),
        prompt_token_ids=answer.prompt_token_ids,
    )


def chat_stream_response(chunk: ChatJson) -> pb.ChatStreamResponse:
    """Build one message of ChatStream."""
    return pb.ChatStreamResponse(
        id=chunk.id,
        model=chunk.model,
        created_unix_seconds=chunk.created,
        choices=[_chat_delta(choice) for choice in chunk.choices],
        usage=usage_proto(chunk.usage),
        prompt_token_ids=chunk.prompt_token_ids,
    )


def complete_response(answer: TextJson) -> pb.CompleteResponse:
    """Build the response of Complete."""
    return pb.CompleteResponse(**_text_fields(answer))


def complete_stream_response(chunk: TextJson) -> pb.CompleteStreamResponse:
    """Build one message of CompleteStream."""
    return pb.CompleteStreamResponse(**_text_fields(chunk))


def usage_proto(usage: UsageJson | None) -> pb.Usage | None:
    """Convert usage; token details omitted by vLLM are 0."""
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        total_tokens=usage.total_tokens,
        cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
        reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
    )


def finish_reason(text: str | None) -> pb.FinishReason:
    """Convert a finish reason; UNSPECIFIED while the choice is still being generated.

    Raises:
        EngineError: The reason is unknown to this version.
    """
    if text is None:
        return pb.FINISH_REASON_UNSPECIFIED
    if text not in FINISH_REASONS:
        raise EngineError(f"unknown finish reason from the engine: {text}")
    return FINISH_REASONS[text]


def _chat_choice(choice: ChatChoice) -> pb.ChatChoice:
    message = choice.message or ChatMessage()
    return pb.ChatChoice(
        index=choice.index,
        message=pb.Message(
            role=_ROLES.get(message.role or "", pb.ROLE_ASSISTANT),
            content=message.content or "",
            reasoning_content=message.reasoning or "",
            tool_calls=[
                pb.ToolCall(id=call.id or "", function=_function(call.function))
                for call in message.tool_calls
            ],
        ),
        finish_reason=finish_reason(choice.finish_reason),
        stop_reason=_stop_reason(choice.stop_reason),
        logprobs=_chat_logprobs(choice.logprobs),
        token_ids=choice.token_ids,
    )


def _chat_delta(choice: ChatChoice) -> pb.ChatChoiceDelta:
    delta = choice.delta or ChatMessage()
    return pb.ChatChoiceDelta(
        index=choice.index,
        role=_ROLES.get(delta.role or "", pb.ROLE_UNSPECIFIED),
        content=delta.content or "",
        reasoning_content=delta.reasoning or "",
        tool_calls=[
            pb.ToolCallDelta(index=call.index, id=call.id or "", function=_function(call.function))
            for call in delta.tool_calls
        ],
        finish_reason=finish_reason(choice.finish_reason),
        stop_reason=_stop_reason(choice.stop_reason),
        logprobs=_chat_logprobs(choice.logprobs),
        token_ids=choice.token_ids,
    )


def _text_fields(answer: TextJson) -> dict[str, Any]:
    return {
        "id": answer.id,
        "model": answer.model,
        "created_unix_seconds": answer.created,
        "choices": [_text_choice(choice) for choice in answer.choices],
        "usage": usage_proto(answer.usage),
    }


def _text_choice(choice: TextChoice) -> pb.CompleteChoice:
    if choice.finish_reason is None and choice.logprobs is None and not choice.token_ids:
        # Fast path for most chunks of a stream, in which no other field can be set.
        return pb.CompleteChoice(
            index=choice.index, text=choice.text, prompt_token_ids=choice.prompt_token_ids
        )
    return pb.CompleteChoice(
        index=choice.index,
        text=choice.text,
        finish_reason=finish_reason(choice.finish_reason),
        stop_reason=_stop_reason(choice.stop_reason),
        logprobs=_text_logprobs(choice.logprobs),
        token_ids=choice.token_ids,
        prompt_token_ids=choice.prompt_token_ids,
    )


def _function(function: Function | None) -> pb.FunctionCall | None:
    if function is None:
        return None
    return pb.FunctionCall(name=function.name or "", arguments_json=function.arguments or "")


def _stop_reason(reason: int | str | None) -> str:
    return "" if reason is None else str(reason)


def _chat_logprobs(logprobs: ChatLogprobs | None) -> Sequence[pb.TokenLogprob]:
    if logprobs is None or logprobs.content is None:
        return ()
    return [
        pb.TokenLogprob(
            token=entry.token,
            logprob=entry.logprob,
            token_bytes=_bytes(entry),
            top=[
                pb.TopLogprob(token=top.token, logprob=top.logprob, token_bytes=_bytes(top))
                for top in entry.top_logprobs
            ],
        )
        for entry in logprobs.content
    ]


def _bytes(entry: TopLogprob) -> bytes:
    return entry.token.encode() if entry.bytes is None else bytes(entry.bytes)


def _text_logprobs(logprobs: TextLogprobs | None) -> Sequence[pb.TokenLogprob]:
    if logprobs is None:
        return ()
    tops = logprobs.top_logprobs or [None] * len(logprobs.tokens)
    return [
        pb.TokenLogprob(
            token=token,
            # The first token of an echoed prompt has no logprob; 0 would mean certainty.
            logprob=float("nan") if logprob is None else logprob,
            token_bytes=token.encode(),
            top=[
                pb.TopLogprob(token=name, logprob=value, token_bytes=name.encode())
                for name, value in (top or {}).items()
            ],
        )
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, tops, strict=True)
    ]
