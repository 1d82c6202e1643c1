"""Fields of requests: how errors name them, and checks that vLLM leaves to its own edge."""

import json
import math
from typing import Any

from serving.errors import InvalidRequest

_SAMPLING = {
    name: f"sampling.{name}"
    for name in (
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "max_tokens",
        "min_tokens",
        "n",
        "seed",
        "stop",
        "stop_token_ids",
        "ignore_eos",
        "logit_bias",
        "allowed_token_ids",
        "bad_words",
        "skip_special_tokens",
    )
}

_FIELDS = _SAMPLING | {
    "max_completion_tokens": "sampling.max_tokens",
    "include_stop_str_in_output": "sampling.include_stop_in_output",
    "structured_outputs": "response_format",
    "input_tokens": "messages",
    "prompt": "text",
    "tokens": "token_ids",
    "return_token_strs": "return_token_strings",
    "chat_template_kwargs": "chat_template_kwargs_json",
}


def field_of(parameter: str) -> str:
    """Return the proto path of a (dotted) vLLM parameter; unknown ones keep their name."""
    head, dot, rest = parameter.partition(".")
    return _FIELDS.get(head, head) + dot + rest


class BadField(InvalidRequest):
    """One field of the request is wrong; ``field`` is its path in the proto."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


def json_object(text: str, field: str) -> dict[str, Any]:
    """Read JSON text that must hold an object; the order of its keys is kept.

    Raises:
        BadField: it is no JSON, or no object.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadField(field, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadField(field, "must be a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def finite(value: float, field: str) -> float:
    """Return the value if it is a finite number.

    Raises:
        BadField: it is NaN or infinite, which vLLM checks for some parameters only.
    """
    if not math.isfinite(value):
        raise BadField(field, f"must be a finite number, got {value}")
    return value
