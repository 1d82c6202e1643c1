"""Defaults and caps of reasoning as rules; over real connections, see tests/integration/edge."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams

from serving.errors import PermissionDenied
from serving.request_context import ReasoningPolicy
from serving.vllm_adapter.reasoning_policy import limit_chat, limit_thinking

EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh", "max"]
BUDGETS = st.none() | st.integers(0, 100)


@given(BUDGETS, BUDGETS, BUDGETS)
def test_no_request_thinks_more_than_the_cap(default, most, asked):
    policy = ReasoningPolicy(thinking_token_budget=default, max_thinking_token_budget=most)
    params = SamplingParams(thinking_token_budget=asked)
    if asked is not None and most is not None and asked > most:
        with pytest.raises(PermissionDenied, match=f"up to {most}, not {asked}"):
            limit_thinking(policy, params)
        return
    limit_thinking(policy, params)
    found = params.thinking_token_budget
    if asked is not None:
        assert found == asked
    else:
        assert found == (
            most if default is None else default if most is None else min(default, most)
        )


@given(*[st.none() | st.sampled_from(EFFORTS)] * 3)
def test_no_chat_has_more_effort_than_the_cap(default, most, asked):
    policy = ReasoningPolicy(reasoning_effort=default, max_reasoning_effort=most)
    request = SimpleNamespace(reasoning_effort=asked, include_reasoning=True)
    order = [None, *EFFORTS].index
    if asked is not None and most is not None and order(asked) > order(most):
        with pytest.raises(PermissionDenied, match=f"up to {most}, not {asked}"):
            limit_chat(policy, request)
        return
    limit_chat(policy, request)
    assert request.include_reasoning
    if asked is not None:
        assert request.reasoning_effort == asked
    elif most is None or (default is not None and order(default) <= order(most)):
        assert request.reasoning_effort == default
    else:
        assert request.reasoning_effort == most
