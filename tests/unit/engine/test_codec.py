"""Requests and outputs are unchanged after encoding and decoding."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

from serving.engine.codec import (
    decode_params,
    decode_parser_kwargs,
    encode_output,
    error_delta,
    failure_delta,
)
from serving.errors import InvalidRequest
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


positions = st.lists(
    st.dictionaries(
        st.integers(0, 2**31),
        st.builds(
            Logprob,
            logprob=st.floats(-50, 0, width=32),
            rank=st.none() | st.integers(1, 2**31),
            decoded_token=st.none() | st.text(max_size=4),
        ),
        max_size=4,
    ),
    max_size=4,
)


@given(positions=positions, flat=st.booleans())
def test_log_probabilities_arrive_in_either_form(positions, flat):
    given_logprobs = positions
    if flat:
        given_logprobs = FlatLogprobs()
        given_logprobs.extend(positions)
    choice = completion(logprobs=given_logprobs)
    delta = encode_output(output([choice]), "r", first=False)
    got = [
        {
            token: (value, rank, text)
            for token, value, rank, text in zip(
                p.token_ids,
                p.logprobs,
                p.vocab_ranks,
                p.decoded_tokens,
                strict=True,
            )
        }
        for p in delta.choices[0].logprobs
    ]
    assert got == [
        {token: (one.logprob, one.rank or 0, one.decoded_token or "") for token, one in p.items()}
        for p in positions
    ]


def completion(index=0, **fields):
    return CompletionOutput(
        **{
            "index": index,
            "text": "hé",
            "token_ids": [5, 6],
            "cumulative_logprob": None,
            "logprobs": None,
        }
        | fields,
    )


def output(choices, *, finished=False, **fields):
    return RequestOutput(
        "inner", None, [1, 2, 3], fields.pop("prompt_logprobs", None), choices, finished, **fields
    )


def test_the_first_delta_carries_the_prompt_and_later_ones_do_not():
    gained = output(
        [completion()],
        num_cached_tokens=2,
        prompt_logprobs=[None, {2: Logprob(-1.0, 1, "b")}, {3: Logprob(-2.0, 4, "c")}],
    )
    first = encode_output(gained, "r", first=True)
    assert (first.request_id, first.prompt_tokens, first.cached_tokens) == ("r", 3, 2)
    assert [list(p.token_ids) for p in first.prompt_logprobs] == [[], [2], [3]]
    later = encode_output(output([completion()]), "r", first=False)
    assert (later.prompt_tokens, later.cached_tokens, len(later.prompt_logprobs)) == (0, 0, 0)
    assert later.choices[0].text == "hé"
    assert list(later.choices[0].token_ids) == [5, 6]


@pytest.mark.parametrize(
    ("reason", "stop", "want", "which", "value"),
    [
        pytest.param("stop", None, CHOICE.STOP, None, None, id="end-of-text"),
        pytest.param("stop", "###", CHOICE.STOP, "stop_string", "###", id="string"),
        pytest.param("stop", 0, CHOICE.STOP, "stop_token_id", 0, id="token-zero"),
        pytest.param("length", None, CHOICE.LENGTH, None, None, id="length"),
        pytest.param("abort", None, CHOICE.ABORT, None, None, id="abort"),
        pytest.param("error", None, CHOICE.ERROR, None, None, id="error"),
        pytest.param(
            "repetition",
            "repetition_detected",
            CHOICE.REPETITION,
            "stop_string",
            "repetition_detected",
            id="repetition",
        ),
        pytest.param("something new", None, CHOICE.ERROR, None, None, id="unknown"),
    ],
)
def test_finish_and_stop_reasons(reason, stop, want, which, value):
    choice = completion(finish_reason=reason, stop_reason=stop)
    message = encode_output(output([choice], finished=True), "r", first=False)
    assert message.finished
    assert message.choices[0].finish_reason == want
    assert message.choices[0].WhichOneof("stop_reason") == which
    if which is not None:
        assert getattr(message.choices[0], which) == value


def test_speculation_is_counted_at_the_end_of_a_choice():
    metrics = RequestSpecDecodeMetrics.new(2)
    for accepted in (0, 2, 1, 2):
        metrics.observe(2, accepted)
    choice = completion(finish_reason="stop", spec_decode_metrics=metrics)
    counts = encode_output(output([choice]), "r", first=False).choices[0].speculation
    assert (counts.draft_steps, counts.proposed_tokens, counts.accepted_tokens) == (4, 8, 5)
    running = encode_output(output([completion()]), "r", first=False).choices[0]
    assert not running.HasField("speculation")


def test_several_choices_travel_together():
    delta = encode_output(output([completion(0), completion(2)]), "r", first=False)
    assert [choice.index for choice in delta.choices] == [0, 2]


def test_an_error_ends_the_request():
    delta = error_delta("r", link_pb2.RequestError.OVERLOADED, "full")
    assert delta.finished
    assert (delta.error.code, delta.error.message) == (link_pb2.RequestError.OVERLOADED, "full")


def raised(cause):
    """vLLM's form of an error in its front end."""
    error = EngineGenerateError()
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "alone", "code"),
    [
        pytest.param(EngineDeadError(), False, "ENGINE_FAILED", id="the engine died"),
        pytest.param(ValueError("x"), False, "INVALID_REQUEST", id="vLLM refuses it"),
        # A text for kv_transfer_params: if it fenced a group, one client could stop all groups.
        pytest.param(raised(AttributeError("x")), True, "INVALID_REQUEST", id="fails alone"),
        pytest.param(raised(AttributeError("x")), False, "ENGINE_FAILED", id="fails under way"),
    ],
)
def test_what_a_failure_is_called(error, alone, code):
    delta = failure_delta("r", error, alone=alone)
    assert delta.finished
    assert link_pb2.RequestError.Code.Name(delta.error.code) == code
