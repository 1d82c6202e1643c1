"""OutputBuffer: the same outputs as vLLM's own output processor, however deltas merge."""

from copy import deepcopy
from types import SimpleNamespace
from unittest import mock

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from serving.engine.core.requests import CoreRequests
from serving.link.v1 import link_pb2
from serving.requests import choice_buffer
from serving.requests.output_buffer import OutputBuffer
from serving.settings import BUNDLED_MODEL

KINDS = [pytest.param(kind, id=kind.name.lower()) for kind in RequestOutputKind]
DELTA, FINAL, CUMULATIVE = (
    RequestOutputKind.DELTA,
    RequestOutputKind.FINAL_ONLY,
    RequestOutputKind.CUMULATIVE,
)


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer(str(BUNDLED_MODEL))


class Vllm:
    """vLLM's output processor for one request: takes engine outputs, returns RequestOutputs."""

    def __init__(self, tokenizer, params, prompt_ids):
        self.processor = OutputProcessor(tokenizer, log_stats=False)
        self.queue = RequestOutputCollector(params.output_kind, "x")
        request = EngineCoreRequest(
            "x", prompt_ids, None, params, None, 0.0, None, None, None, external_req_id="x"
        )
        if params.n == 1:
            self.children = ["x"]
            self.processor.add_request(request, "the prompt", None, 0, self.queue)
            return
        parent = ParentRequest(request)
        self.children = []
        for index in range(params.n):
            child, child_params = parent.get_child_info(index)
            self.children.append(child)
            self.processor.add_request(
                EngineCoreRequest(
                    child,
                    prompt_ids,
                    None,
                    child_params,
                    None,
                    0.0,
                    None,
                    None,
                    None,
                    external_req_id="x",
                ),
                "the prompt",
                parent,
                index,
                self.queue,
            )

    def step(self, outputs):
        """One engine step; outputs by choice index."""
        self.processor.process_outputs(
            [
                # A copy: vLLM's collector extends the lists that it was given.
                EngineCoreOutput(self.children[index], **deepcopy(fields))
                for index, fields in outputs.items()
            ]
        )

    def get(self):
        return self.queue.get_nowait()


def sample(token, others):
    """Return log-probabilities of one sampled token: it comes first, then the most likely ones."""
    ids = np.array([[token, *others]])
    return LogprobsLists(ids, (-ids / 16).astype(np.float32), np.array([2]))


def comparable(output: RequestOutput | None):
    if output is None:
        return None
    # A copy: vLLM's cumulative outputs share lists that grow.
    fields = deepcopy(vars(output))
    fields["outputs"] = sorted(
        (
            dict(vars(choice), token_ids=list(choice.token_ids), weight_versions=None)
            for choice in fields["outputs"]
        ),
        key=lambda choice: choice["index"],
    )
    # Prefix-cache writes stay in the engine; the link has no field for them.
    del fields["num_cache_creation_tokens"]
    return fields


class Statistics:
    """In place of vLLM's metrics, which are registered once per process."""

    def begin(self):
        return None

    def count(self, step, one, output, at):
        one.prefilling = False
        if output.prefill_stats is not None:
            one.cached_tokens = output.prefill_stats.num_cached_tokens

    def finished(self, one, reason, output):
        pass

    def end(self, outputs):
        pass


class Rank:
    """The rank's side: takes engine outputs, returns deltas as they arrive at the router."""

    def __init__(self, params, prompt_ids):
        limits = SimpleNamespace(max_num_queued_reqs=None, max_num_queued_tokens=None)
        core = SimpleNamespace(
            vllm_config=SimpleNamespace(scheduler_config=limits),
            dead=False,
            traces=False,
            input_processor=SimpleNamespace(process_inputs=self.process),
        )
        self.params = params
        self.deltas = []
        self.requests = CoreRequests(core, Statistics())
        work = link_pb2.Submit(
            request_id="x",
            prompt_token_ids=prompt_ids,
            sampling_params=msgspec.msgpack.encode(params),
        )
        self.request = self.requests.submit(work, self.deliver)
        self.children = [choice.core_id for choice in self.request.choices.values()]

    def process(self, request_id, prompt, params, **_):
        return EngineCoreRequest(
            request_id, prompt["prompt_token_ids"], None, params, None, 0.0, None, None, None
        )

    def deliver(self, delta):
        self.deltas.append(link_pb2.Delta.FromString(delta.SerializeToString()))

    def step(self, outputs):
        self.requests._step(
            EngineCoreOutputs(
                outputs=[
                    EngineCoreOutput(self.children[index], **deepcopy(fields))
                    for index, fields in outputs.items()
                ]
            )
        )
        deltas, self.deltas = self.deltas, []
        return deltas


def both(tokenizer, steps, *, reads, **params):
    """Feed the same steps to vLLM in the requested kind and through the link; return both reads.

    ``reads`` are the steps after which the caller reads.
    """
    kind = params.pop("output_kind")
    prompt = [5, 6, 7]
    direct = Vllm(tokenizer, SamplingParams(output_kind=kind, **params), prompt)
    rank = Rank(SamplingParams(output_kind=DELTA, **params), prompt)
    wanted = SamplingParams(**params)
    buffer = OutputBuffer("x", prompt, wanted, kind, "the prompt", tokenizer=tokenizer)
    seen, expected = [], []
    for number, step in enumerate(steps):
        direct.step(step)
        for delta in rank.step(step):
            if not buffer.finished and buffer.add(delta) is None:
                buffer.apply(delta)
        if number in reads or number == len(steps) - 1:
            expected.append(comparable(direct.get()))
            seen.append(comparable(buffer.take()))
    return expected, seen


def step(*tokens, **fields):
    return {"new_token_ids": list(tokens), **fields}


STORIES = {
    "one token a step": (
        [
            {0: step(20, prefill_stats=PrefillStats())},
            {0: step(21)},
            {0: step(22, finish_reason=FinishReason.LENGTH)},
        ],
        {},
    ),
    "several tokens a step (MTP), stop token": (
        [{0: step(20, 21)}, {0: step(22, 23, finish_reason=FinishReason.STOP, stop_reason=23)}],
        {"stop_token_ids": [23]},
    ),
    "two choices, one ends first": (
        [
            {0: step(20), 1: step(30)},
            {0: step(21, finish_reason=FinishReason.LENGTH), 1: step(31)},
            {1: step(32)},
            {1: step(33, finish_reason=FinishReason.LENGTH)},
        ],
        {"n": 2},
    ),
    "three choices, out of step": (
        [
            {2: step(40)},
            {0: step(20)},
            {1: step(30, finish_reason=FinishReason.LENGTH), 2: step(41)},
            {0: step(21, finish_reason=FinishReason.STOP), 2: step(42)},
            {2: step(finish_reason=FinishReason.ABORT)},
        ],
        {"n": 3},
    ),
    "log-probabilities": (
        [
            {
                0: step(
                    20,
                    new_logprobs=sample(20, [21, 22]),
                    new_prompt_logprobs_tensors=LogprobsTensors(
                        torch.tensor([[6, 1, 2], [7, 3, 4]]),
                        torch.tensor([[-0.25, -1.0, -2.0], [-0.5, -1.5, -2.5]]),
                        torch.tensor([1, 3]),
                    ),
                )
            },
            {0: step(22, new_logprobs=sample(22, [20, 22]))},
            {0: step(21, new_logprobs=sample(21, [20, 22]), finish_reason=FinishReason.LENGTH)},
        ],
        {"logprobs": 2, "prompt_logprobs": 2},
    ),
    "no detokenization": (
        [
            {0: step(20, new_logprobs=sample(20, [21]))},
            {0: step(21, new_logprobs=sample(21, [20]), finish_reason=FinishReason.LENGTH)},
        ],
        {"logprobs": 1, "detokenize": False},
    ),
    "error in the engine": (
        [{0: step(20)}, {0: step(finish_reason=FinishReason.ERROR)}],
        {},
    ),
    "repetition": (
        [{0: step(20)}, {0: step(20, finish_reason=FinishReason.REPETITION)}],
        {},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reads", [pytest.param(range(9), id="fast"), pytest.param([1], id="slow")])
@pytest.mark.parametrize("story", STORIES)
def test_equals_vllms_own_output(tokenizer, kind, reads, story):
    steps, params = STORIES[story]
    expected, seen = both(tokenizer, steps, reads=reads, output_kind=kind, **params)
    assert seen == expected
    assert expected[-1] is not None
    assert expected[-1]["finished"]


@pytest.mark.parametrize("kind", KINDS)
def test_stop_string_equals_vllms(tokenizer, kind):
    ids = tokenizer.encode("12 + 34", add_special_tokens=False)
    stop = tokenizer.decode(ids)[-2:]
    steps = [{0: step(token)} for token in ids]
    expected, seen = both(tokenizer, steps, reads=range(99), output_kind=kind, stop=[stop])
    assert seen == expected
    assert expected[-1]["outputs"][0]["stop_reason"] == stop


@pytest.mark.parametrize("kind", KINDS)
def test_flat_log_probabilities_keep_their_form(kind):
    params = SamplingParams(logprobs=1, flat_logprobs=True)
    buffer = OutputBuffer("x", [1], params, kind)
    buffer.apply(
        link_pb2.Delta(choices=[choice(0, [3], length=True, logprobs=[-0.5])], finished=True)
    )
    output = buffer.take()
    assert output is not None
    logprobs = output.outputs[0].logprobs
    assert isinstance(logprobs, FlatLogprobs)
    assert logprobs[0] == {3: Logprob(-0.5, None, None)}


# -- merging ------------------------------------------------------------------------------


def choice(index, tokens, *, length=False, logprobs=()):
    return link_pb2.ChoiceDelta(
        index=index,
        token_ids=tokens,
        finish_reason=link_pb2.ChoiceDelta.LENGTH if length else 0,
        logprobs=[
            link_pb2.PositionLogprobs(token_ids=[token], logprobs=[value])
            for token, value in zip(tokens, logprobs, strict=False)
        ],
    )


@st.composite
def histories(draw):
    """Draw deltas of up to three choices in any order, and whether the consumer takes each one."""
    count = draw(st.integers(1, 3))
    deltas = draw(
        st.lists(
            st.tuples(
                st.integers(0, count - 1), st.lists(st.integers(0, 9), max_size=3), st.booleans()
            ),
            max_size=12,
        )
    )
    return count, deltas


def gather(outputs, count):
    """Return what a consumer of DELTA outputs assembles."""
    tokens = {index: [] for index in range(count)}
    texts = dict.fromkeys(range(count), "")
    for output in outputs:
        for each in output.outputs:
            tokens[each.index] += each.token_ids
            texts[each.index] += each.text
    return tokens, texts


@given(histories(), st.sampled_from([2, 4, 64]))
@settings(max_examples=200)
def test_deltas_put_together_are_the_final_output(history, merged):
    with mock.patch.object(choice_buffer, "_MERGED", merged):
        _put_together(*history, merged)


def _put_together(count, deltas, merged):
    params = SamplingParams(n=count)
    by_kind = {kind: OutputBuffer("x", [1], params, kind) for kind in RequestOutputKind}
    outputs = {kind: [] for kind in RequestOutputKind}
    last = link_pb2.Delta(
        choices=[choice(index, [7], length=True) for index in range(count)], finished=True
    )
    messages = [
        (link_pb2.Delta(choices=[choice(index, tokens)]), looks) for index, tokens, looks in deltas
    ]
    for message, looks in [*messages, (last, True)]:
        for kind, buffer in by_kind.items():
            buffer.apply(message)
            while looks and (output := buffer.take()) is not None:
                outputs[kind].append(output)
                assert buffer.backlog is buffer.takeable
    (final,) = outputs[FINAL]
    cumulative = outputs[CUMULATIVE][-1]
    tokens, texts = gather(outputs[DELTA], count)
    for output in outputs[DELTA]:
        # A delta of up to three tokens is not split.
        assert all(len(each.token_ids) <= max(merged, 3) for each in output.outputs)
        assert output.finished or any(each.finish_reason is None for each in output.outputs)
    for index in range(count):
        assert final.outputs[index].token_ids == tokens[index]
        assert final.outputs[index].text == texts[index]
        assert final.outputs[index] == cumulative.outputs[index]
    assert all(not output.finished for output in outputs[DELTA][:-1])
    assert outputs[DELTA][-1].finished
    assert by_kind[DELTA].emitted_tokens == sum(map(len, tokens.values()))
    assert by_kind[DELTA].emitted(0) == tokens[0]


@pytest.mark.parametrize(
    ("delta", "words"),
    [
        pytest.param(
            link_pb2.Delta(choices=[choice(2, [1])]),
            "choice 2, but only 2 requested",
            id="index",
        ),
        pytest.param(
            link_pb2.Delta(choices=[choice(0, [1, 2], logprobs=[-1.0])]),
            "1 log-probabilities for 2 tokens",
            id="log-probabilities",
        ),
    ],
)
def test_delta_that_does_not_fit_changes_nothing(delta, words):
    buffer = OutputBuffer("x", [1], SamplingParams(n=2, logprobs=0), DELTA)
    with pytest.raises(ValueError, match=words):
        buffer.apply(delta)
    assert not buffer.started
    assert buffer.take() is None


def test_choices_that_never_spoke_are_aborted_at_the_end():
    buffer = OutputBuffer("x", [1], SamplingParams(n=2), FINAL)
    buffer.apply(link_pb2.Delta(choices=[choice(0, [1], length=True)], finished=True))
    output = buffer.take()
    assert output is not None
    assert [each.finish_reason for each in output.outputs] == ["length", "abort"]


def test_speculation_is_that_of_each_choices_last_report():
    buffer = OutputBuffer("x", [1], SamplingParams(n=2), DELTA)
    reports = ((0, 4, 1), (1, 2, 2), (0, 8, 5))
    for index, proposed, accepted in reports:
        counts = link_pb2.SpeculationCounts(proposed_tokens=proposed, accepted_tokens=accepted)
        choice = link_pb2.ChoiceDelta(index=index, token_ids=[5], speculation=counts)
        buffer.apply(link_pb2.Delta(choices=[choice]))
    assert buffer.speculation == (10, 7)
