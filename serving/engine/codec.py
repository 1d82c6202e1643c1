"""Conversion of requests and outputs between the link's messages and vLLM's objects."""

import logging
from collections.abc import Iterable
from typing import Any

import msgspec
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from serving.errors import InvalidRequest
from serving.link.v1 import link_pb2

_log = logging.getLogger(__name__)

_FINISH_REASONS = {
    "stop": link_pb2.ChoiceDelta.STOP,
    "length": link_pb2.ChoiceDelta.LENGTH,
    "abort": link_pb2.ChoiceDelta.ABORT,
    "error": link_pb2.ChoiceDelta.ERROR,
    "repetition": link_pb2.ChoiceDelta.REPETITION,
}

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


def encode_output(output: RequestOutput, request_id: str, *, first: bool) -> link_pb2.Delta:
    """Return the message for an output that vLLM yields in delta mode.

    Args:
        output: New output of one request in one step.
        request_id: The router's id of the request.
        first: Whether this is the request's first delta, which carries the prompt's token counts.

    """
    delta = link_pb2.Delta(
        request_id=request_id,
        choices=[_encode_choice(choice) for choice in output.outputs],
        finished=output.finished,
    )
    if first:
        delta.prompt_tokens = len(output.prompt_token_ids or ())
        delta.cached_tokens = output.num_cached_tokens or 0
    if output.prompt_logprobs:
        delta.prompt_logprobs.extend(_encode_logprobs(output.prompt_logprobs))
    return delta


def failed_choice(output: RequestOutput) -> bool:
    """Return whether vLLM ended one of the choices with an error."""
    return any(choice.finish_reason == "error" for choice in output.outputs)


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
        alone: Whether the engine is alive and has generated nothing for the request, which means
            that the request is at fault. Reporting an engine failure instead would fence the
            group, and every retry would fence another.

    """
    codes = link_pb2.RequestError
    cause = error.__cause__ if isinstance(error, EngineGenerateError) else error
    if isinstance(cause, EngineDeadError):
        return error_delta(request_id, codes.ENGINE_FAILED, "an engine process died")
    if isinstance(cause, GracefulHTTPError):
        return error_delta(request_id, codes.OVERLOADED, str(cause))
    if isinstance(cause, InvalidRequest | VLLMClientError | ValueError | TypeError):
        return error_delta(request_id, codes.INVALID_REQUEST, str(cause))
    _log.error("request %s failed", request_id, exc_info=error)
    if alone:
        message = "the engine cannot process this request: a parameter has an invalid form"
        return error_delta(request_id, codes.INVALID_REQUEST, message)
    return error_delta(
        request_id, codes.ENGINE_FAILED, "the engine failed while processing this request"
    )


def _encode_choice(choice: CompletionOutput) -> link_pb2.ChoiceDelta:
    message = link_pb2.ChoiceDelta(
        index=choice.index,
        token_ids=choice.token_ids,
        text=choice.text,
    )
    if choice.logprobs:
        message.logprobs.extend(_encode_logprobs(choice.logprobs))
    if choice.finish_reason is None:
        return message
    message.finish_reason = _FINISH_REASONS.get(choice.finish_reason, link_pb2.ChoiceDelta.ERROR)
    if isinstance(choice.stop_reason, str):
        message.stop_string = choice.stop_reason
    elif choice.stop_reason is not None:
        message.stop_token_id = choice.stop_reason
    metrics = choice.spec_decode_metrics
    if metrics is not None:
        message.speculation.draft_steps = sum(metrics.histogram)
        message.speculation.proposed_tokens = metrics.num_draft_tokens
        message.speculation.accepted_tokens = sum(
            accepted * steps for accepted, steps in enumerate(metrics.histogram)
        )
    return message


def _encode_logprobs(
    logprobs: FlatLogprobs | Iterable[Any],
) -> Iterable[link_pb2.PositionLogprobs]:
    """Yield one message per position; vLLM puts the chosen token first in each."""
    if isinstance(logprobs, FlatLogprobs):
        for start, end in zip(logprobs.start_indices, logprobs.end_indices, strict=True):
            yield link_pb2.PositionLogprobs(
                token_ids=logprobs.token_ids[start:end],
                logprobs=logprobs.logprobs[start:end],
                vocab_ranks=[rank or 0 for rank in logprobs.ranks[start:end]],
                decoded_tokens=[text or "" for text in logprobs.decoded_tokens[start:end]],
            )
        return
    for position in logprobs:
        entries = position or {}  # the prompt's first position has no logprobs
        yield link_pb2.PositionLogprobs(
            token_ids=entries.keys(),
            logprobs=[entry.logprob for entry in entries.values()],
            vocab_ranks=[entry.rank or 0 for entry in entries.values()],
            decoded_tokens=[entry.decoded_token or "" for entry in entries.values()],
        )
