"""Applies an API key's defaults and caps for reasoning to requests of vLLM's protocols.

A request that asks for more than its key permits is rejected, like one with a priority that the key
does not permit. Hidden reasoning is only left out of responses; the router receives all tokens,
counts them and resumes with them.
"""

from typing import Any

from vllm.sampling_params import SamplingParams

from serving.errors import PermissionDenied
from serving.request_context import Effort, ReasoningPolicy, is_above

_TEMPLATE_SWITCHES = ("reasoning_effort", "enable_thinking", "thinking")
"""Chat-template arguments that change the effort, bypassing ``reasoning_effort``."""


def limit_thinking(policy: ReasoningPolicy, params: SamplingParams) -> None:
    """Set the default for ``thinking_token_budget`` and enforce its cap, for any protocol.

    Raises:
        PermissionDenied: The request sets a higher budget than the key permits.
    """
    most = policy.max_thinking_token_budget
    asked = params.thinking_token_budget
    if asked is None:
        known = [each for each in (policy.thinking_token_budget, most) if each is not None]
        params.thinking_token_budget = min(known, default=None)
    elif most is not None and asked > most:
        raise PermissionDenied(
            f"this API key permits thinking_token_budget up to {most}, not {asked}"
        )


def limit_chat(policy: ReasoningPolicy, request: Any) -> None:
    """Set effort and visibility of a chat or a batch of chats; changes the request.

    Args:
        policy: The key's policy.
        request: vLLM's ``ChatCompletionRequest`` or ``BatchChatCompletionRequest``, which has some
            fields only if they are given.

    Raises:
        PermissionDenied: The request sets more than the key permits.
    """
    asked = getattr(request, "reasoning_effort", None)
    effort = _effort(policy, asked, request)
    if effort != asked:
        request.reasoning_effort = effort
    if policy.hidden:
        request.include_reasoning = False


def limit_response(policy: ReasoningPolicy, request: Any) -> None:
    """Set effort and visibility of a request to /v1/responses; changes the request.

    Raises:
        PermissionDenied: The request sets more than the key permits.
    """
    from openai.types.shared import Reasoning

    asked = None if request.reasoning is None else request.reasoning.effort
    effort = _effort(policy, asked, request)
    if effort != asked:
        given = request.reasoning or Reasoning()
        request.reasoning = given.model_copy(update={"effort": effort})
    if policy.hidden:
        request.include_reasoning = False


def refuse_raw_text(policy: ReasoningPolicy) -> None:
    """Reject requests to a route whose responses do not separate reasoning from the answer.

    Raises:
        PermissionDenied: The key hides reasoning.
    """
    if policy.hidden:
        raise PermissionDenied(
            "this API key hides reasoning, which completions would contain: use "
            "/v1/chat/completions, or ChatStream and Chat over gRPC"
        )


def _effort(policy: ReasoningPolicy, asked: str | None, request: Any) -> str | None:
    most = policy.max_reasoning_effort
    if most is None:
        return policy.reasoning_effort if asked is None else asked
    for name in _TEMPLATE_SWITCHES:
        if name in (getattr(request, "chat_template_kwargs", None) or {}):
            raise PermissionDenied(
                f"this API key permits reasoning_effort up to {most}: "
                f"chat_template_kwargs.{name} is not permitted"
            )
    if asked is None:
        default: Effort = policy.reasoning_effort or most
        return most if is_above(default, most) else default
    if is_above(asked, most):
        raise PermissionDenied(f"this API key permits reasoning_effort up to {most}, not {asked}")
    return asked
