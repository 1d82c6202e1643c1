"""Requests and outputs are unchanged after encoding and decoding."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.exceptions import QueueOverflowError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.outputs import LogprobsLists

from serving.engine.codec import (
    decode_params,
    decode_parser_kwargs,
    encode_end,
    encode_logprobs,
    error_delta,
    failure_delta,
)
from serving.errors import InvalidRequest, Overloaded
from serving.link.v1 import link_pb2

CHOICE = link_pb2.ChoiceDelta


def submit(params):
    return link_pb2.Submit(sampling_params=msgspec.msgpack.encode(params))


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"n": 3, "temperature": 0.5, "seed": 7, "top_p": 0.9}, id="sampling"),
        pytest.param({"stop": ["a", "b"], "stop_token_ids": [3], "bad_words": ["x"]}, id="stop"),
        pytest.param({"logprobs": 5, "prompt_logprobs": 0, "flat_logprobs": True}, id="logprobs"),
        pytest.param(
            {"structured_outputs": StructuredOutputsParams(json={"type": "object"})},
            id="grammar",
        ),
        pytest.param({"extra_args": {"a": [1, {"b": None}]}, "logit_bias": {3: -1.5}}, id="extra"),
    ],
)
def test_sampling_parameters_arrive_as_they_were_sent_but_for_deltas(params):
    sent = SamplingParams(**params)
    got = decode_params(submit(sent))
    assert got.output_kind == RequestOutputKind.DELTA
    got.output_kind = sent.output_kind
    assert got == sent


def test_a_client_cannot_have_cached_blocks_reported_as_new_ones():
    sent = SamplingParams(extra_args={"kv_cache_report_mode": "full", "mine": 1})
    assert decode_params(submit(sent)).extra_args == {"mine": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"n": "x"}),
        msgspec.msgpack.encode({"temperature": -3}),
    ],
    ids=["empty", "garbage", "list", "wrong-type", "out-of-range"],
)
def test_bad_sampling_parameters_are_an_invalid_request(data):
    with pytest.raises(InvalidRequest, match="sampling_params"):
        decode_params(link_pb2.Submit(sampling_params=data))


def test_reasoning_parser_arguments():
    encoded = msgspec.msgpack.encode({"chat_template_kwargs": {"thinking": True}})
    work = link_pb2.Submit(reasoning_parser_kwargs=encoded)
    assert decode_parser_kwargs(work) == {"chat_template_kwargs": {"thinking": True}}
    assert decode_parser_kwargs(link_pb2.Submit()) is None
    with pytest.raises(InvalidRequest, match="reasoning_parser_kwargs"):
        decode_parser_kwargs(link_pb2.Submit(reasoning_parser_kwargs=b"\xc1"))


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2**31 - 1), min_size=3, max_size=3, unique=True),
            st.lists(st.floats(-50, 0, width=32), min_size=3, max_size=3),
            st.integers(1, 2**31 - 1),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_log_probabilities_arrive_in_either_form(positions, flat):
    """The sampled token first, with its rank; then the most likely ones, ranked from 1."""
    params = SamplingParams(logprobs=2, flat_logprobs=flat)
    request = EngineCoreRequest("x", [1], None, params, None, 0.0, None, None, None)
    processor = LogprobsProcessor.from_new_request(None, request)
    ids, values, ranks = (np.array(column) for column in zip(*positions, strict=True))
    output = EngineCoreOutput("x", [], new_logprobs=LogprobsLists(ids, values, ranks))
    for _ in range(2):  # what was encoded is not encoded again
        prompt, sampled = encode_logprobs(processor, output)
        assert list(prompt) == []
        assert [
            (list(one.token_ids), list(one.logprobs), list(one.vocab_ranks)) for one in sampled
        ] == [(tokens, logprobs, [rank, 1, 2]) for tokens, logprobs, rank in positions]


@pytest.mark.parametrize(
    ("reason", "stop", "want", "which", "value"),
    [
        pytest.param(FinishReason.STOP, None, CHOICE.STOP, None, None, id="end-of-text"),
        pytest.param(FinishReason.STOP, 0, CHOICE.STOP, "stop_token_id", 0, id="token-zero"),
        pytest.param(FinishReason.LENGTH, None, CHOICE.LENGTH, None, None, id="length"),
        pytest.param(FinishReason.ABORT, None, CHOICE.ABORT, None, None, id="abort"),
        pytest.param(FinishReason.ERROR, None, CHOICE.ERROR, None, None, id="error"),
        pytest.param(
            FinishReason.REPETITION,
            "repetition_detected",
            CHOICE.REPETITION,
            "stop_string",
            "repetition_detected",
            id="repetition",
        ),
    ],
)
def test_finish_and_stop_reasons(reason, stop, want, which, value):
    message = CHOICE()
    encode_end(message, EngineCoreOutput("x", [], finish_reason=reason, stop_reason=stop))
    assert message.finish_reason == want
    assert message.WhichOneof("stop_reason") == which
    if which is not None:
        assert getattr(message, which) == value
    assert not message.HasField("speculation")


def test_every_finish_reason_of_vllm_is_known():
    for reason in FinishReason:
        message = CHOICE()
        encode_end(message, EngineCoreOutput("x", [], finish_reason=reason))
        assert (message.finish_reason == CHOICE.ERROR) is (reason is FinishReason.ERROR)


def test_speculation_is_counted_at_the_end_of_a_choice():
    metrics = RequestSpecDecodeMetrics.new(2)
    for accepted in (0, 2, 1, 2):
        metrics.observe(2, accepted)
    message = CHOICE()
    end = EngineCoreOutput("x", [], finish_reason=FinishReason.STOP, spec_decode_metrics=metrics)
    encode_end(message, end)
    counts = message.speculation
    assert (counts.draft_steps, counts.proposed_tokens, counts.accepted_tokens) == (4, 8, 5)


def test_an_error_ends_the_request():
    delta = error_delta("r", link_pb2.RequestError.OVERLOADED, "full")
    assert delta.finished
    assert (delta.error.code, delta.error.message) == (link_pb2.RequestError.OVERLOADED, "full")


@pytest.mark.parametrize(
    ("error", "alone", "code"),
    [
        pytest.param(EngineDeadError(), False, "ENGINE_FAILED", id="the engine died"),
        pytest.param(Overloaded("x"), True, "OVERLOADED", id="full"),
        pytest.param(QueueOverflowError(), True, "OVERLOADED", id="vLLM is full"),
        pytest.param(ValueError("x"), False, "INVALID_REQUEST", id="vLLM refuses it"),
        # Text as kv_transfer_params: if it fenced a group, one client could stop all groups.
        pytest.param(AttributeError("x"), True, "INVALID_REQUEST", id="fails alone"),
        pytest.param(AttributeError("x"), False, "ENGINE_FAILED", id="fails under way"),
    ],
)
def test_what_a_failure_is_called(error, alone, code):
    delta = failure_delta("r", error, alone=alone)
    assert delta.finished
    assert link_pb2.RequestError.Code.Name(delta.error.code) == code
