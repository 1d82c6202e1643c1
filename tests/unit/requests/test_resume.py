"""Resumption: a test for each row of deploy/docs/resumption.md, and exactness under any cut."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from serving.link.v1 import link_pb2
from serving.requests.output_buffer import DivergedError, OutputBuffer
from serving.requests.resume import Way, needs_seed, plan, way_of

KIND = RequestOutputKind.DELTA
PROMPT = [7, 8, 9]

ROWS = [
    # parameters, way, whether the router chooses a seed
    pytest.param({"temperature": 0.0}, Way.CONTINUE, False, id="greedy"),
    pytest.param({"temperature": 0.8}, Way.CONTINUE, False, id="unseeded sampling"),
    pytest.param({"temperature": 0.8, "seed": 3}, Way.REPLAY, False, id="seeded sampling"),
    pytest.param({"temperature": 0.0, "seed": 3}, Way.CONTINUE, False, id="seeded greedy"),
    pytest.param({"temperature": 0.0, "stop": ["END"]}, Way.REPLAY, False, id="stop string"),
    pytest.param({"stop": ["END"]}, Way.REPLAY, True, id="stop string, sampled"),
    pytest.param({"stop_token_ids": [5]}, Way.CONTINUE, False, id="stop token"),
    pytest.param({"presence_penalty": 0.5}, Way.REPLAY, True, id="presence penalty"),
    pytest.param({"frequency_penalty": 0.5}, Way.REPLAY, True, id="frequency penalty"),
    pytest.param({"repetition_penalty": 1.2}, Way.CONTINUE, False, id="repetition penalty"),
    pytest.param(
        {"structured_outputs": StructuredOutputsParams(json_object=True)},
        Way.REPLAY,
        True,
        id="grammar",
    ),
    pytest.param({"n": 2}, Way.REPLAY, True, id="several choices"),
    pytest.param({"n": 2, "seed": 1}, Way.REPLAY, False, id="several seeded choices"),
    pytest.param({"logprobs": 3}, Way.CONTINUE, False, id="log-probabilities"),
    pytest.param({"prompt_logprobs": 1}, Way.CONTINUE, False, id="prompt's log-probabilities"),
    pytest.param({"min_tokens": 5}, Way.CONTINUE, False, id="min_tokens"),
    pytest.param({"logit_bias": {5: 1.0}}, Way.CONTINUE, False, id="logit bias"),
    pytest.param({"allowed_token_ids": [5, 6]}, Way.CONTINUE, False, id="allowed tokens"),
    pytest.param({"bad_words": ["no"]}, Way.REPLAY, True, id="bad words"),
    pytest.param({"thinking_token_budget": 9}, Way.REPLAY, True, id="thinking budget"),
    pytest.param(
        {"repetition_detection": RepetitionDetectionParams(max_pattern_size=4, min_count=2)},
        Way.REPLAY,
        True,
        id="repetition detection",
    ),
    pytest.param({"extra_args": {"x": 1}}, Way.REPLAY, True, id="plug-in arguments"),
]


def params(**given_params):
    return SamplingParams(max_tokens=20, **given_params)


def delta(tokens, text="", finish=0, index=0, *, finished=False, **fields):
    choice = link_pb2.ChoiceDelta(
        index=index, token_ids=tokens, text=text, finish_reason=finish, **fields
    )
    return link_pb2.Delta(request_id="x", choices=[choice], finished=finished)


def begun(sampling, *deltas):
    """Return what was sent to the first rank, and the buffer with what it generated."""
    work = link_pb2.Submit(
        request_id="x",
        prompt_token_ids=PROMPT,
        sampling_params=msgspec.msgpack.encode(sampling),
    )
    buffer = OutputBuffer("x", list(PROMPT), sampling, KIND)
    for one in deltas:
        buffer.apply(one)
    buffer.take()
    return work, buffer


@pytest.mark.parametrize(("given_params", "way", "seeded"), ROWS)
def test_every_row(given_params, way, seeded):
    sampling = params(**given_params)
    assert way_of(sampling) is way
    assert needs_seed(sampling) is seeded
    work, buffer = begun(sampling)
    buffer.started = True
    assert plan(work, sampling, buffer, attempt=1, expected_output=20).way is way


def test_an_unknown_parameter_means_replay():
    """A parameter that a later vLLM adds must not be continued by accident."""
    known = {"temperature", "max_tokens", "top_p"}
    unknown = set(SamplingParams.__struct_fields__) - known
    assert "bad_words" in unknown
    for name in ("bad_words", "extra_args", "thinking_token_budget"):
        sampling = params()
        setattr(sampling, name, [1])
        assert way_of(sampling) is Way.REPLAY


def test_a_continuation_generates_the_remaining_tokens():
    sampling = params(temperature=0.0, min_tokens=4, prompt_logprobs=1)
    work, buffer = begun(sampling, delta([10, 11, 12], "abc"))
    following = plan(work, sampling, buffer, attempt=1, expected_output=20)
    assert list(following.work.prompt_token_ids) == [*PROMPT, 10, 11, 12]
    assert following.work.request_id != work.request_id
    assert following.expected_output == 17
    rest = msgspec.msgpack.decode(following.work.sampling_params, type=SamplingParams)
    assert (rest.max_tokens, rest.min_tokens, rest.prompt_logprobs) == (17, 1, None)
    # The first ones stay: a second loss counts from the start again.
    assert (sampling.max_tokens, sampling.min_tokens) == (20, 4)
    buffer.apply(delta([13], "d"))
    second = plan(work, sampling, buffer, attempt=2, expected_output=20)
    assert list(second.work.prompt_token_ids) == [*PROMPT, 10, 11, 12, 13]
    rest = msgspec.msgpack.decode(second.work.sampling_params, type=SamplingParams)
    assert rest.max_tokens == 16


def test_before_the_first_delta_it_simply_starts_again():
    sampling = params(temperature=0.5)
    work, buffer = begun(sampling)
    following = plan(work, sampling, buffer, attempt=1, expected_output=20)
    assert list(following.work.prompt_token_ids) == PROMPT
    assert following.work.sampling_params == work.sampling_params


STOPPED = params(temperature=0.0, stop=["END"])


def test_a_replay_skips_what_was_sent_and_continues():
    work, buffer = begun(STOPPED, delta([1, 2], "ab"), delta([3], "c"))
    plan(work, STOPPED, buffer, attempt=1, expected_output=20)
    assert buffer.apply(delta([1], "a")) == 0
    assert buffer.take() is None
    assert buffer.apply(delta([2, 3, 4], "bcd")) == 1
    output = buffer.take()
    assert (output.outputs[0].token_ids, output.outputs[0].text) == ([4], "d")
    assert buffer.apply(delta([5], "e", link_pb2.ChoiceDelta.STOP, finished=True)) == 1
    output = buffer.take()
    assert output.finished
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("e", "stop")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(delta([1, 9], "ab"), id="another token"),
        pytest.param(delta([1, 2], "ax"), id="another text"),
        pytest.param(
            delta([1], "a", link_pb2.ChoiceDelta.STOP, finished=True), id="an earlier end"
        ),
    ],
)
def test_a_replay_that_differs_is_caught_before_anything_of_it_is_sent(wrong):
    work, buffer = begun(STOPPED, delta([1, 2], "ab"), delta([3], "c"))
    plan(work, STOPPED, buffer, attempt=1, expected_output=20)
    with pytest.raises(DivergedError):
        buffer.apply(wrong)
    assert buffer.take() is None
    assert buffer.emitted(0) == [1, 2, 3]


def test_a_choice_that_had_ended_must_end_the_same_way():
    sampling = params(seed=1, n=2)
    length = link_pb2.ChoiceDelta.LENGTH
    work, buffer = begun(sampling, delta([1, 2], "ab", length), delta([5], "x", index=1))
    plan(work, sampling, buffer, attempt=1, expected_output=20)
    buffer.apply(delta([1, 2], "ab", length))
    assert buffer.take() is None
    with pytest.raises(DivergedError):
        buffer.apply(delta([3], "c"))


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    cut=st.data(),
    seed=st.randoms(use_true_random=False),
)
def test_cut_anywhere_the_whole_is_the_same(lengths, cut, seed):
    """Tokens, text and log-probabilities are exact for any cuts and any batching of deltas."""
    sampling = params(n=len(lengths), logprobs=0, seed=1)
    whole = [[100 * index + i for i in range(length)] for index, length in enumerate(lengths)]
    work, buffer = begun(sampling)
    got = [([], "") for _ in lengths]
    cuts = cut.draw(st.integers(0, 3))
    for attempt in range(cuts + 1):
        positions = [0] * len(lengths)
        budget = cut.draw(st.integers(0, sum(lengths))) if attempt < cuts else 10**6
        while budget > 0 and not buffer.finished:
            open_choices = [i for i, at in enumerate(positions) if at < lengths[i]]
            if not open_choices:
                break
            index = seed.choice(open_choices)
            size = seed.randint(1, 4)
            tokens = whole[index][positions[index] : positions[index] + size]
            positions[index] += len(tokens)
            budget -= len(tokens)
            message = delta(
                tokens,
                "".join(f"<{token}>" for token in tokens),
                link_pb2.ChoiceDelta.LENGTH if positions[index] == lengths[index] else 0,
                index,
                logprobs=[
                    link_pb2.PositionLogprobs(token_ids=[token], logprobs=[-float(token)])
                    for token in tokens
                ],
            )
            message.finished = all(
                at == length for at, length in zip(positions, lengths, strict=True)
            )
            buffer.apply(message)
            if (output := buffer.take()) is not None:
                for choice in output.outputs:
                    ids, text = got[choice.index]
                    got[choice.index] = (ids + choice.token_ids, text + choice.text)
                    assert [next(iter(p)) for p in choice.logprobs] == choice.token_ids
        if not buffer.finished:
            plan(work, sampling, buffer, attempt=attempt + 1, expected_output=20)
    assert buffer.finished
    assert [ids for ids, _ in got] == whole
    assert [text for _, text in got] == ["".join(f"<{t}>" for t in ids) for ids in whole]
