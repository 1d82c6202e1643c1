"""Conversion of requests and outputs between the link's messages and vLLM's objects."""

import logging
from collections.abc import Iterable
from typing import Any

import msgspec
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.logprobs import FlatLogprobs, create_sample_logprobs
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.logprobs import LogprobsProcessor

from serving.errors import InvalidRequest, Overloaded
from serving.link.v1 import link_pb2

_log = logging.getLogger(__name__)

_FINISH_REASONS = {
    FinishReason.STOP: link_pb2.ChoiceDelta.STOP,
    FinishReason.LENGTH: link_pb2.ChoiceDelta.LENGTH,
    FinishReason.ABORT: link_pb2.ChoiceDelta.ABORT,
    FinishReason.ERROR: link_pb2.ChoiceDelta.ERROR,
    FinishReason.REPETITION: link_pb2.ChoiceDelta.REPETITION,
}

DEAD_END = (
    "structured_outputs: the engine cannot continue: it does not support the grammar, or the "
    "grammar allows none of the model's next tokens"
)
"""Message for a request whose grammar allows no further token."""

_params_decoder = msgspec.msgpack.Decoder(SamplingParams)


def decode_params(request: link_pb2.Submit) -> SamplingParams:
    """Return a request's sampling parameters, set to stream deltas.

    Raises:
        InvalidRequest: The bytes do not decode into vLLM's ``SamplingParams``.
    """
    try:
        params = _params_decoder.decode(request.sampling_params)
    except (msgspec.MsgspecError, VLLMClientError, ValueError, TypeError) as error:
        raise InvalidRequest(f"sampling_params: {error}") from error
    params.output_kind = RequestOutputKind.DELTA
    if params.extra_args:
        # Clients can set this option, which makes the engine report existing blocks as new.
        params.extra_args.pop("kv_cache_report_mode", None)
    return params


def decode_parser_kwargs(request: link_pb2.Submit) -> dict[str, Any] | None:
    """Return a request's arguments for the reasoning parser, or ``None`` if it has none.

    Raises:
        InvalidRequest: The bytes are not a msgpack map.
    """
    if not request.reasoning_parser_kwargs:
        return None
    try:
        return msgspec.msgpack.decode(request.reasoning_parser_kwargs, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"reasoning_parser_kwargs: {error}") from error


def encode_end(message: link_pb2.ChoiceDelta, output: EngineCoreOutput) -> None:
    """Add the end of a choice: its finish reason, and its speculative decoding counts.

    Args:
        message: The choice's last delta.
        output: The engine's last output for the choice; its finish reason is set.
    """
    reason = output.finish_reason
    assert reason is not None
    message.finish_reason = _FINISH_REASONS.get(reason, link_pb2.ChoiceDelta.ERROR)
    if isinstance(output.stop_reason, str):
        message.stop_string = output.stop_reason
    elif output.stop_reason is not None:
        message.stop_token_id = output.stop_reason
    metrics = output.spec_decode_metrics
    if metrics is not None:
        message.speculation.draft_steps = sum(metrics.histogram)
        message.speculation.proposed_tokens = metrics.num_draft_tokens
        message.speculation.accepted_tokens = sum(
            accepted * steps for accepted, steps in enumerate(metrics.histogram)
        )


def encode_logprobs(
    processor: LogprobsProcessor, output: EngineCoreOutput
) -> tuple[Iterable[link_pb2.PositionLogprobs], Iterable[link_pb2.PositionLogprobs]]:
    """Return the log-probabilities of the prompt (all at once, then none) and of the new tokens.

    Args:
        processor: vLLM's collector of the choice, without a tokenizer. Its collected
            log-probabilities are removed.
        output: The engine's output for the choice.
    """
    processor.update_from_output(output)
    sampled = processor.logprobs
    if sampled is not None:
        processor.logprobs = create_sample_logprobs(isinstance(sampled, FlatLogprobs))
    return (
        _encode_positions(processor.pop_prompt_logprobs() or ()),
        _encode_positions(sampled or ()),
    )


def error_delta(
    request_id: str,
    code: link_pb2.RequestError.Code,
    message: str,
) -> link_pb2.Delta:
    """Return the delta that ends a failed request."""
    return link_pb2.Delta(
        request_id=request_id,
        finished=True,
        error=link_pb2.RequestError(code=code, message=message),
    )


def failure_delta(request_id: str, error: Exception, *, alone: bool) -> link_pb2.Delta:
    """Return the delta that ends a request on which vLLM raised ``error``.

    Args:
        request_id: Id of the request.
        error: Exception raised by vLLM.
        alone: Whether the engine is alive and has generated no tokens for the request, which means
            that the request is at fault. Reporting an engine failure instead would fence the group,
            and every retry would fence another.

    """
    codes = link_pb2.RequestError
    if isinstance(error, EngineDeadError):
        return error_delta(request_id, codes.ENGINE_FAILED, "an engine process died")
    if isinstance(error, Overloaded | GracefulHTTPError):
        return error_delta(request_id, codes.OVERLOADED, str(error))
    if isinstance(error, InvalidRequest | VLLMClientError | ValueError | TypeError):
        return error_delta(request_id, codes.INVALID_REQUEST, str(error))
    _log.error("request %s failed", request_id, exc_info=error)
    if alone:
        message = "the engine cannot process this request: a parameter has an invalid form"
        return error_delta(request_id, codes.INVALID_REQUEST, message)
    return error_delta(
        request_id, codes.ENGINE_FAILED, "the engine failed while processing this request"
    )


def _encode_positions(
    logprobs: FlatLogprobs | Iterable[Any],
) -> Iterable[link_pb2.PositionLogprobs]:
    """Yield one message per position; vLLM puts the chosen token first in each."""
    if isinstance(logprobs, FlatLogprobs):
        for start, end in zip(logprobs.start_indices, logprobs.end_indices, strict=True):
            yield link_pb2.PositionLogprobs(
                token_ids=logprobs.token_ids[start:end],
                logprobs=logprobs.logprobs[start:end],
                vocab_ranks=[rank or 0 for rank in logprobs.ranks[start:end]],
            )
        return
    for position in logprobs:
        entries = position or {}  # the prompt's first position has no logprobs
        yield link_pb2.PositionLogprobs(
            token_ids=entries.keys(),
            logprobs=[entry.logprob for entry in entries.values()],
            vocab_ranks=[entry.rank or 0 for entry in entries.values()],
        )
