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
from vllm.tokenizers import get_tokenizer

from serving.link.v1 import link_pb2
from serving.requests.choice_buffer import DivergedError
from serving.requests.output_buffer import OutputBuffer
from serving.requests.resume import Way, needs_seed, plan, way_of
from serving.settings import BUNDLED_MODEL
from serving.vllm_adapter.detokenizer import TextStream

KIND = RequestOutputKind.DELTA
TOKENIZER = get_tokenizer(str(BUNDLED_MODEL))
PROMPT = [7, 8, 9]

ROWS = [
    # parameters, way, whether the router chooses a seed
    pytest.param({"temperature": 0.0}, Way.CONTINUE, False, id="greedy"),
    pytest.param({"temperature": 0.8}, Way.CONTINUE, False, id="unseeded sampling"),
    pytest.param({"temperature": 0.8, "seed": 3}, Way.REPLAY, False, id="seeded sampling"),
    pytest.param({"temperature": 0.0, "seed": 3}, Way.CONTINUE, False, id="seeded greedy"),
    pytest.param({"temperature": 0.0, "stop": ["END"]}, Way.CONTINUE, False, id="stop string"),
    pytest.param({"stop": ["END"]}, Way.CONTINUE, False, id="stop string, sampled"),
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


def delta(tokens, finish=0, index=0, *, finished=False, **fields):
    choice = link_pb2.ChoiceDelta(index=index, token_ids=tokens, finish_reason=finish, **fields)
    return link_pb2.Delta(request_id="x", choices=[choice], finished=finished)


def begun(sampling, *deltas):
    """Return what was sent to the first rank, and the buffer with what it generated."""
    work = link_pb2.Submit(
        request_id="x",
        prompt_token_ids=PROMPT,
        sampling_params=msgspec.msgpack.encode(sampling),
    )
    buffer = OutputBuffer("x", list(PROMPT), sampling, KIND, tokenizer=TOKENIZER)
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
    work, buffer = begun(sampling, delta([10, 11, 12]))
    following = plan(work, sampling, buffer, attempt=1, expected_output=20)
    assert list(following.work.prompt_token_ids) == [*PROMPT, 10, 11, 12]
    assert following.work.request_id != work.request_id
    assert following.expected_output == 17
    rest = msgspec.msgpack.decode(following.work.sampling_params, type=SamplingParams)
    assert (rest.max_tokens, rest.min_tokens, rest.prompt_logprobs) == (17, 1, None)
    # The first ones stay: a second loss counts from the start again.
    assert (sampling.max_tokens, sampling.min_tokens) == (20, 4)
    buffer.apply(delta([13]))
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


REPLAYED = params(temperature=0.0, presence_penalty=0.5)


def ids(text):
    """Return the token ids of a text; the model's first 256 tokens are bytes."""
    return list(text.encode())


def test_a_replay_skips_what_was_sent_and_continues():
    work, buffer = begun(REPLAYED, delta(ids("ab")), delta(ids("c")))
    plan(work, REPLAYED, buffer, attempt=1, expected_output=20)
    assert buffer.apply(delta(ids("a"))) == 0
    assert buffer.take() is None
    assert buffer.apply(delta(ids("bcd"))) == 1
    output = buffer.take()
    assert (output.outputs[0].token_ids, output.outputs[0].text) == (ids("d"), "d")
    assert buffer.apply(delta(ids("e"), link_pb2.ChoiceDelta.LENGTH, finished=True)) == 1
    output = buffer.take()
    assert output.finished
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("e", "length")


@pytest.mark.parametrize("cut", range(1, 5))
@pytest.mark.parametrize("text", ["xxEND", "x€END"], ids=["one byte", "several bytes"])
def test_a_stop_string_is_found_across_a_cut(cut, text):
    """Its tokens, and those of a character, come from two ranks; the rest is not sent."""
    sampling = params(temperature=0.0, stop=["END"])
    tokens = ids(text)
    work, buffer = begun(sampling)
    buffer.apply(delta(tokens[:cut]))
    first = buffer.take()
    following = plan(work, sampling, buffer, attempt=1, expected_output=20)
    assert following.way is Way.CONTINUE
    buffer.apply(delta([*tokens[cut:], *ids("more")]))
    last = buffer.take()
    choice = last.outputs[0]
    assert last.finished
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "END")
    assert first.outputs[0].text + choice.text == text.removesuffix("END")
    assert buffer.emitted(0) == tokens
    assert buffer.completed == [0]


def test_a_choice_that_a_stop_string_ended_is_ended_again_on_the_next_rank():
    sampling = params(seed=1, n=2, stop=["END"])
    work, buffer = begun(sampling, delta(ids("a"), index=1), delta(ids("aENDb")))
    assert buffer.completed == [0]
    assert not buffer.finished
    buffer.completed.clear()
    plan(work, sampling, buffer, attempt=1, expected_output=20)
    buffer.apply(delta(ids("aE")))
    assert buffer.completed == []
    buffer.apply(delta(ids("NDb")))
    buffer.apply(delta(ids("c")))
    assert buffer.completed == [0]
    assert buffer.take() is None
    buffer.apply(delta(ids("ab"), link_pb2.ChoiceDelta.LENGTH, index=1))
    output = buffer.take()
    assert output.finished
    assert [(each.index, each.text) for each in output.outputs] == [(1, "ab")]  # held back
    assert buffer.emitted(0) == ids("aEND")


def test_a_rank_of_the_previous_protocol_ends_at_a_stop_string_itself():
    stop = delta(ids("END"), link_pb2.ChoiceDelta.STOP, stop_string="END", finished=True)
    _, buffer = begun(params(temperature=0.0, stop=["END"]), delta(ids("a")), stop)
    assert buffer.finished
    assert buffer.completed == []
    assert buffer.emitted(0) == ids("aEND")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(delta([1, 9]), id="another token"),
        pytest.param(delta([1], link_pb2.ChoiceDelta.STOP, finished=True), id="an earlier end"),
    ],
)
def test_a_replay_that_differs_is_caught_before_anything_of_it_is_sent(wrong):
    work, buffer = begun(REPLAYED, delta([1, 2]), delta([3]))
    plan(work, REPLAYED, buffer, attempt=1, expected_output=20)
    with pytest.raises(DivergedError):
        buffer.apply(wrong)
    assert buffer.take() is None
    assert buffer.emitted(0) == [1, 2, 3]


def test_a_choice_that_had_ended_must_end_the_same_way():
    sampling = params(seed=1, n=2)
    length = link_pb2.ChoiceDelta.LENGTH
    work, buffer = begun(sampling, delta([1, 2], length), delta([5], index=1))
    plan(work, sampling, buffer, attempt=1, expected_output=20)
    buffer.apply(delta([1, 2], length))
    assert buffer.take() is None
    with pytest.raises(DivergedError):
        buffer.apply(delta([3]))


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
                    before, text = got[choice.index]
                    got[choice.index] = (before + choice.token_ids, text + choice.text)
                    assert [next(iter(p)) for p in choice.logprobs] == choice.token_ids
        if not buffer.finished:
            plan(work, sampling, buffer, attempt=attempt + 1, expected_output=20)
    assert buffer.finished
    assert [tokens for tokens, _ in got] == whole
    assert [text for _, text in got] == [text_of(tokens, sampling) for tokens in whole]


def text_of(tokens, sampling):
    """Return the text of tokens that arrive without interruption."""
    stream = TextStream(TOKENIZER, PROMPT, sampling)
    return "".join(stream.add([token], stop_token=False, finished=False)[1] for token in tokens)
