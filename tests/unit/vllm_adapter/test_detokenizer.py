"""Text of tokens and of log-probability candidates: equal to what vLLM's own front end returns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsLists

from serving.settings import BUNDLED_MODEL
from serving.vllm_adapter.detokenizer import TextStream, candidate_texts, detokenizer_of

TOKENIZER = get_tokenizer(str(BUNDLED_MODEL))
tokens = st.one_of(
    st.text(min_size=1, max_size=4).map(lambda text: list(text.encode())),
    st.lists(st.integers(0, 287), min_size=1, max_size=3),
)


def request(prompt, params):
    return EngineCoreRequest("x", prompt, None, params, None, 0.0, None, None, None)


@st.composite
def steps(draw):
    """Draw a prompt, and the tokens of each step."""
    prompt = [token for part in draw(st.lists(tokens, min_size=1, max_size=30)) for token in part]
    return prompt, draw(st.lists(tokens, max_size=8))


@given(
    steps(),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
    st.booleans(),
    st.booleans(),
    st.integers(0, 6),
)
@settings(max_examples=150)
def test_text_and_stops_are_vllms(drawn, stop, keep, special, least):
    prompt, parts = drawn
    # Stop strings that occur now and then.
    answer = bytes(token for part in parts for token in part if token < 256).decode(errors="ignore")
    stop = [*stop, answer[2:4]] if stop and answer[2:4] else stop
    params = SamplingParams(
        stop=stop, include_stop_str_in_output=keep, skip_special_tokens=special, min_tokens=least
    )
    theirs = IncrementalDetokenizer.from_new_request(TOKENIZER, request(prompt, params))
    ours = TextStream(TOKENIZER, prompt, params)
    assert (ours.decode_one is None) == bool(stop)
    for number, part in enumerate(parts):
        by_token = number == len(parts) - 1 and keep
        before = theirs.num_output_tokens()
        found = theirs.update(list(part), by_token)
        text = theirs.get_next_output_text(found is not None or by_token, True)
        kept = theirs.num_output_tokens() - before
        assert ours.add(list(part), stop_token=by_token, finished=by_token) == (kept, text, found)
        if found:
            break


@pytest.mark.parametrize(
    ("end", "whole"),
    [
        pytest.param([65], False, id="text"),
        pytest.param(TOKENIZER.all_special_ids[:1], True, id="special tokens only"),
        pytest.param([0xE2], True, id="an incomplete character"),
    ],
)
def test_of_a_long_prompt_only_the_end_is_decoded_if_that_is_enough(end, whole):
    prompt = [66] * 1000 + end * 40
    found = []
    made = IncrementalDetokenizer.from_new_request

    def record(tokenizer, request):
        found.append(len(request.prompt_token_ids))
        return made(tokenizer, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IncrementalDetokenizer, "from_new_request", record)
        detokenizer_of(TOKENIZER, prompt, SamplingParams())
    assert found == [len(prompt) if whole else 8]


@given(st.lists(st.lists(st.integers(0, 287), min_size=2, max_size=3), max_size=6))
@settings(max_examples=100)
def test_texts_of_candidates_are_vllms(positions):
    """This includes candidates that complete a character of several tokens."""
    params = SamplingParams(logprobs=2)
    theirs = LogprobsProcessor.from_new_request(TOKENIZER, request([1], params))
    before = []
    for ids in [[0xE2, 1], [0x82, 2], [0xAC, 3], *positions]:
        lists = LogprobsLists(np.array([ids]), -np.ones((1, len(ids))), np.array([1]))
        theirs.update_from_output(EngineCoreOutput("x", ids[:1], new_logprobs=lists))
        wanted = {token: one.decoded_token for token, one in theirs.logprobs[-1].items()}
        texts = candidate_texts(TOKENIZER).texts(ids, before)
        assert dict(zip(ids, texts, strict=True)) == wanted
        before = list(theirs.logprobs)
