"""Resumes a request after its group was lost: continues it where it stopped, or replays it.

Pure functions of the request's parameters and its output buffer. There are two ways:

- CONTINUE: the prompt and the emitted tokens become the prompt of the remaining work, which costs
  one prefill. Exact if the next token depends only on the tokens before it: greedy and unseeded
  sampling.
- REPLAY: the request runs again from the start; its output is compared with the emitted output and
  skipped. Used for requests with state other than the tokens: a grammar, a random generator,
  penalties over the output, several choices. A replay takes as long as the answer took so far, and
  requires that the same tokens are generated. In float32 they are; with other data types, the first
  difference ends the request before a wrong token is sent.

Text and stop strings are derived from the tokens in the output buffer, so they require neither.

deploy/docs/resumption.md contains the table; tests/unit/requests/test_resume.py has a test per row.
"""

import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from vllm.sampling_params import SamplingParams

from serving.link.v1 import link_pb2
from serving.requests.output_buffer import OutputBuffer

_CONTINUED = frozenset(
    {
        # These shape the distribution at a single position.
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "logit_bias",
        "allowed_token_ids",
        # This applies to prompt and output together (vllm/v1/sample/ops/penalties.py).
        "repetition_penalty",
        # These are adapted to the remaining tokens, or concern the prompt, which was already
        # processed.
        "max_tokens",
        "min_tokens",
        "prompt_logprobs",
        "prompt_logprob_start",
        # The router finds stop strings in the whole output.
        "stop",
        "output_text_buffer_length",
        # These concern each token separately.
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "logprob_token_ids",
        "flat_logprobs",
        # These concern how the output is returned.
        "detokenize",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "include_stop_str_in_output",
        "output_kind",
        "stream_interval",
        "skip_clone",
        "skip_reading_prefix_cache",
        "watermarking",
        "routed_experts_prompt_start",
        "_eos_token_id",
        "_all_stop_token_ids",
        "_watermarking_skipped",
    }
)
"""Sampling parameters with which a continuation is exact. Any other parameter that is set requires
a replay, including parameters that a later vLLM adds."""

_DEFAULTS = SamplingParams()
_GREEDY_BELOW = 1e-5
"""vLLM's ``_SAMPLING_EPS``: below this temperature, sampling is greedy."""


class Way(StrEnum):
    """How a request is resumed."""

    CONTINUE = "continue"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class Plan:
    """The work for the next rank."""

    way: Way
    work: link_pb2.Submit
    expected_output: int
    """Number of tokens that the next rank is expected to generate, over all choices."""


def way_of(params: SamplingParams) -> Way:
    """Return how a request with these parameters is resumed."""
    return Way.REPLAY if state_beside_tokens(params) else Way.CONTINUE


def state_beside_tokens(params: SamplingParams) -> list[str]:
    """Return the parameters that make the next token depend on more than the previous tokens."""
    names = [
        name
        for name in params.__struct_fields__
        if name not in _CONTINUED and getattr(params, name) != getattr(_DEFAULTS, name)
    ]
    if params.temperature < _GREEDY_BELOW and "seed" in names:
        names.remove("seed")  # greedy sampling draws no random numbers
    return [name for name in names if getattr(params, name) not in (None, [], {}, "")]


def needs_seed(params: SamplingParams) -> bool:
    """Return whether the router must choose a seed for a replay to draw the same tokens."""
    return (
        params.seed is None and params.temperature >= _GREEDY_BELOW and way_of(params) is Way.REPLAY
    )


def plan(
    work: link_pb2.Submit,
    params: SamplingParams,
    buffer: OutputBuffer,
    *,
    attempt: int,
    expected_output: int,
) -> Plan:
    """Build the work for the next rank, and prepare the buffer for its output.

    Args:
        work: The message sent to the first rank.
        params: Its sampling parameters.
        buffer: The emitted output; rewound for a replay.
        attempt: Number of resumptions, including this one.
        expected_output: Expected output tokens of the whole request, over all choices.
    """
    again = link_pb2.Submit()
    again.CopyFrom(work)
    # A new id, so that a late delta from the lost rank is not mistaken for the new rank's.
    again.request_id = f"{work.request_id}~{attempt}"
    if not buffer.started:
        return Plan(Way.REPLAY, again, expected_output)
    if way_of(params) is Way.REPLAY:
        buffer.rewind()
        return Plan(Way.REPLAY, again, max(expected_output, buffer.emitted_tokens + params.n))
    emitted = buffer.emitted(0)
    again.prompt_token_ids.extend(emitted)
    again.sampling_params = msgspec.msgpack.encode(rest_of(params, len(emitted)))
    return Plan(Way.CONTINUE, again, max(expected_output - len(emitted), 1))


def rest_of(params: SamplingParams, emitted: int) -> SamplingParams:
    """Return the sampling parameters for the work that remains after ``emitted`` tokens."""
    changes: dict[str, Any] = {
        "max_tokens": (params.max_tokens or 1) - emitted,
        "min_tokens": max(params.min_tokens - emitted, 0),
        "prompt_logprobs": None,
        "prompt_logprob_start": None,
    }
    rest = copy.copy(params)  # params.clone() may return the same object
    for name, value in changes.items():
        setattr(rest, name, value)
    return rest
