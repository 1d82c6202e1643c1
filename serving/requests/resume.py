"""How a request goes on after its group was lost: from where it was, or from the start.

Pure functions of the request's parameters and its transcript. Two ways:

- CONTINUE: prompt and emitted tokens become the prompt of the rest. One prefill, then on. Exact
  where the next token depends on the tokens before it alone: greedy and unseeded sampling.
- REPLAY: the request runs again from its start, what comes is compared with what was emitted and
  skipped. For whatever keeps a state beside the tokens: a grammar, a random generator, penalties
  over the output, a stop string that may be split by the cut, several choices. It takes as long
  as the answer took so far, and needs the same numbers again: in float32 they come; where they
  do not, the first difference ends the request before anything wrong is sent.

deploy/docs/resumption.md has the table; tests/unit/requests/test_resume.py has a test per row.
"""

import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from vllm.sampling_params import SamplingParams

from serving.link.v1 import link_pb2
from serving.requests.output_buffer import Transcript

_CONTINUED = frozenset(
    {
        # What a single position's distribution is made of.
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "logit_bias",
        "allowed_token_ids",
        # Over prompt and output together (vllm/v1/sample/ops/penalties.py).
        "repetition_penalty",
        # Adapted to what is left, or of the prompt, which was answered.
        "max_tokens",
        "min_tokens",
        "prompt_logprobs",
        "prompt_logprob_start",
        # Of each token for itself.
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "logprob_token_ids",
        "flat_logprobs",
        # How the answer is written down.
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
"""Sampling parameters under which a continuation is exact. Any other that is set, also one that a
later vLLM adds, means replay."""

_DEFAULTS = SamplingParams()
_GREEDY_BELOW = 1e-5
"""As vLLM's ``_SAMPLING_EPS``: below it the likeliest token is taken."""


class Way(StrEnum):
    """How a request goes on elsewhere."""

    CONTINUE = "continue"
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send to the next rank."""

    way: Way
    work: link_pb2.Submit
    expected_output: int
    """Tokens that the next rank is expected to generate, over all choices."""


def way_of(params: SamplingParams) -> Way:
    """Say how a request with these parameters can go on."""
    return Way.REPLAY if state_beside_tokens(params) else Way.CONTINUE


def state_beside_tokens(params: SamplingParams) -> list[str]:
    """Name the parameters for which the next token depends on more than the tokens before it."""
    names = [
        name
        for name in params.__struct_fields__
        if name not in _CONTINUED and getattr(params, name) != getattr(_DEFAULTS, name)
    ]
    if params.temperature < _GREEDY_BELOW and "seed" in names:
        names.remove("seed")  # nothing is drawn
    return [name for name in names if getattr(params, name) not in (None, [], {}, "")]


def needs_seed(params: SamplingParams) -> bool:
    """Whether the router must choose a seed, so that a replay can draw the same tokens."""
    return (
        params.seed is None and params.temperature >= _GREEDY_BELOW and way_of(params) is Way.REPLAY
    )


def plan(
    work: link_pb2.Submit,
    params: SamplingParams,
    transcript: Transcript,
    *,
    attempt: int,
    expected_output: int,
) -> Plan:
    """Build what the next rank is sent; the transcript is set to take it.

    Args:
        work: what the first rank was sent.
        params: its sampling parameters.
        transcript: what was emitted.
        attempt: counts the ranks that were tried; 1 for the first resumption.
        expected_output: output tokens that were expected at first, over all choices.
    """
    again = link_pb2.Submit()
    again.CopyFrom(work)
    # Another id: a late delta of the lost rank must not be taken for one of the new one.
    again.request_id = f"{work.request_id}~{attempt}"
    if not transcript.started:
        return Plan(Way.REPLAY, again, expected_output)
    if way_of(params) is Way.REPLAY:
        transcript.rewind()
        return Plan(Way.REPLAY, again, max(expected_output, transcript.emitted_tokens + params.n))
    emitted = transcript.emitted(0)
    again.prompt_token_ids.extend(emitted)
    again.sampling_params = msgspec.msgpack.encode(rest_of(params, len(emitted)))
    return Plan(Way.CONTINUE, again, max(expected_output - len(emitted), 1))


def rest_of(params: SamplingParams, emitted: int) -> SamplingParams:
    """Return the parameters for what is left after ``emitted`` tokens."""
    changes: dict[str, Any] = {
        "max_tokens": (params.max_tokens or 1) - emitted,
        "min_tokens": max(params.min_tokens - emitted, 0),
        "prompt_logprobs": None,
        "prompt_logprob_start": None,
    }
    rest = copy.copy(params)  # its own clone() may be the very same object
    for name, value in changes.items():
        setattr(rest, name, value)
    return rest
