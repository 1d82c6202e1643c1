"""Converts proto requests to vLLM's request models, which validate them as over REST. No I/O.

Only fields that are set are passed on, so vLLM's defaults apply to the others.
"""

import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.tokenize.protocol import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
)
from vllm.exceptions import VLLMValidationError

from serving.api.v1 import inference_pb2 as pb
from serving.edge.grpc.errors import BadField, field_of
from serving.edge.grpc.messages import json_object, messages_json, tool_choice_json, tool_json

ModelT = TypeVar("ModelT", bound=BaseModel)

_PLAIN_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_tokens",
    "n",
    "seed",
    "skip_special_tokens",
)

_SAMPLING_LISTS = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words")


def chat_request(request: pb.ChatRequest, *, stream: bool) -> ChatCompletionRequest:
    """Build vLLM's chat request.

    Raises:
        BadField: A field is missing or malformed.
    """
    content = _model_and_stream(request.model, stream=stream)
    content["messages"] = messages_json(request.messages)
    content |= _sampling(request.sampling, max_tokens="max_completion_tokens")
    if request.tools:
        content["tools"] = [tool_json(tool, i) for i, tool in enumerate(request.tools)]
    if request.HasField("tool_choice"):
        content["tool_choice"] = tool_choice_json(request.tool_choice)
    if request.HasField("parallel_tool_calls"):
        content["parallel_tool_calls"] = request.parallel_tool_calls
    content |= _response_format(request)
    if request.logprobs or request.top_logprobs:
        content["logprobs"] = request.logprobs
        content["top_logprobs"] = request.top_logprobs
    if request.reasoning_effort:
        content["reasoning_effort"] = request.reasoning_effort
    if request.chat_template_kwargs_json:
        content["chat_template_kwargs"] = json_object(
            request.chat_template_kwargs_json, "chat_template_kwargs_json"
        )
    if request.return_token_ids:
        content["return_token_ids"] = True
    return validated(ChatCompletionRequest, content)


def complete_request(request: pb.CompleteRequest, *, stream: bool) -> CompletionRequest:
    """Build vLLM's completion request.

    Raises:
        BadField: A field is missing or malformed.
    """
    content = _model_and_stream(request.model, stream=stream)
    match request.WhichOneof("prompt"):
        case "text":
            content["prompt"] = request.text
        case "token_ids":
            content["prompt"] = list(request.token_ids.ids)
        case _:
            raise BadField("prompt", "is required: set text or token_ids")
    if not content["prompt"]:
        raise BadField(str(request.WhichOneof("prompt")), "must not be empty")
    content |= _sampling(request.sampling, max_tokens="max_tokens")
    if request.HasField("logprobs"):
        content["logprobs"] = request.logprobs
    if request.echo:
        content["echo"] = True
    content |= _response_format(request)
    if request.return_token_ids:
        content["return_token_ids"] = True
    return validated(CompletionRequest, content)


def tokenize_request(
    request: pb.TokenizeRequest,
) -> TokenizeChatRequest | TokenizeCompletionRequest:
    """Build vLLM's tokenize request.

    Raises:
        BadField: A field is missing or malformed.
    """
    content: dict[str, Any] = {"model": _required_model(request.model)}
    if request.HasField("add_special_tokens"):
        content["add_special_tokens"] = request.add_special_tokens
    if request.return_token_strings:
        content["return_token_strs"] = True
    match request.WhichOneof("input"):
        case "text":
            return validated(TokenizeCompletionRequest, {**content, "prompt": request.text})
        case "messages":
            given = request.messages
            content["messages"] = messages_json(given.messages, "messages.messages")
            if given.tools:
                content["tools"] = [tool_json(tool, i) for i, tool in enumerate(given.tools)]
            if given.HasField("add_generation_prompt"):
                content["add_generation_prompt"] = given.add_generation_prompt
            return validated(TokenizeChatRequest, content)
        case _:
            raise BadField("input", "is required: set text or messages")


def detokenize_request(request: pb.DetokenizeRequest) -> DetokenizeRequest:
    """Build vLLM's detokenize request.

    Raises:
        BadField: The model is missing.
    """
    return validated(
        DetokenizeRequest,
        {"model": _required_model(request.model), "tokens": list(request.token_ids)},
    )


def validated(model: type[ModelT], content: dict[str, Any]) -> ModelT:
    """Validate ``content`` with a request model of vLLM.

    Raises:
        BadField: The model rejects a field.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        name = getattr(cause, "parameter", None) or ".".join(
            str(part) for part in first["loc"] if not str(part).startswith(("function", "chain"))
        )
        raise BadField(field_of(name), str(cause or first["msg"])) from error
    except VLLMValidationError as error:
        raise BadField(field_of(error.parameter or ""), str(error)) from error
    except Exception as error:
        # vLLM's validators access fields before pydantic has checked their types.
        raise BadField("request", "contains a field of the wrong type") from error


def _model_and_stream(model: str, *, stream: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"model": _required_model(model)}
    if stream:
        content["stream"] = True
        content["stream_options"] = {"include_usage": True}
    return content


def _required_model(model: str) -> str:
    # Over REST, vLLM substitutes the served model for a missing one; the proto requires it.
    if not model:
        raise BadField("model", "is required; ListModels returns the served models")
    return model


def _response_format(request: pb.ChatRequest | pb.CompleteRequest) -> dict[str, Any]:
    if not request.HasField("response_format"):
        return {}
    given = request.response_format
    match given.WhichOneof("format"):
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            schema = given.json_schema
            if not schema.schema_json:
                raise BadField("response_format.json_schema.schema_json", "is required")
            named: dict[str, Any] = {
                "name": schema.name or "response",
                "schema": json_object(
                    schema.schema_json, "response_format.json_schema.schema_json"
                ),
            }
            if schema.HasField("strict"):
                named["strict"] = schema.strict
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case "regex":
            return {"structured_outputs": {"regex": given.regex}}
        case "grammar":
            return {"structured_outputs": {"grammar": given.grammar}}
        case "choices":
            if not given.choices.values:
                raise BadField("response_format.choices.values", "must not be empty")
            return {"structured_outputs": {"choice": list(given.choices.values)}}
        case _:
            raise BadField("response_format", "is empty: set one of the formats")


def _sampling(sampling: pb.SamplingParams, *, max_tokens: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        name: _finite(getattr(sampling, name), f"sampling.{name}")
        for name in _PLAIN_SAMPLING
        if sampling.HasField(name)
    }
    if sampling.HasField("max_tokens"):
        content[max_tokens] = sampling.max_tokens
    if sampling.logit_bias:
        content["logit_bias"] = {
            str(token): _finite(bias, f"sampling.logit_bias[{token}]")
            for token, bias in sampling.logit_bias.items()
        }
    content |= {
        name: list(values) for name in _SAMPLING_LISTS if (values := getattr(sampling, name))
    }
    if sampling.include_stop_in_output:
        content["include_stop_str_in_output"] = True
    if sampling.ignore_eos:
        content["ignore_eos"] = True
    return content


def _finite(value: float, field: str) -> float:
    """Return the value; vLLM checks only some parameters for NaN and infinity.

    Raises:
        BadField: The value is NaN or infinite.
    """
    if not math.isfinite(value):
        raise BadField(field, f"must be a finite number, got {value}")
    return value
