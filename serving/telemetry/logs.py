"""Structured logs of all processes: one line per request, never a prompt or an answer.

Lines are human-readable on a terminal and JSON elsewhere. Records of vLLM and uvicorn use the same
handler.
"""

import logging
import sys
from dataclasses import dataclass, fields
from typing import Any

import structlog

from serving.errors import ServingError
from serving.settings import TelemetrySettings

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# Loggers whose INFO records help only their developers, with the minimum level used instead.
# vLLM's warnings concern settings that this project chooses (eager mode, CPU).
_QUIET = {
    "vllm": logging.ERROR,
    "torch": logging.ERROR,
    "torch._library.triton": logging.ERROR,
    "uvicorn": logging.WARNING,
    "uvicorn.error": logging.WARNING,
    "httpx": logging.WARNING,
    "transformers": logging.WARNING,
    "asyncio": logging.WARNING,
    "grpc": logging.WARNING,
}

# structlog's default renders the local variables of every frame, which include prompts and keys.
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


@dataclass(frozen=True, slots=True)
class RequestLine:
    """The log line of a finished request."""

    request_id: str
    protocol: str
    """"rest" or "grpc"."""
    method: str
    """Route or RPC name."""
    model: str
    outcome: str
    """"ok", "CANCELLED", or an error reason of ``serving.errors.ERROR_TABLE``."""
    status: str
    """HTTP status or gRPC status name."""
    duration: float
    """Duration of the request, seconds."""
    ttft: float | None = None
    """Time to the first part of a streamed response, otherwise to the first token, seconds. None if
    no token arrived."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tenant: str | None = None
    priority: str | None = None
    waited: float | None = None
    """Time in the admission queue, including parked time, seconds."""
    resumes: int | None = None
    """Number of resumptions on another group after a loss."""
    parked: bool | None = None
    """True if the request waited because no group was ready, otherwise None."""
    group: str | None = None
    """Last group on which the request ran."""
    rank: int | None = None
    cached_tokens: int | None = None
    """Number of prompt tokens that came from a KV cache."""
    trace_id: str | None = None
    """Trace id. None if the request is not traced."""


_REQUEST_LOG = "serving.request"
_LINE_FIELDS = tuple(field.name for field in fields(RequestLine))


def configure_logs(settings: TelemetrySettings, *, process: str) -> None:
    """Send all log records of this process to stderr in one format.

    Args:
        settings: Level and format.
        process: Name of the process in every line, for example "router" or "rank".
    """
    level = _LEVELS[settings.log_level]
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[Any] = (
        [_tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _process_name(process),
                *renderers,
            ],
        )
    )
    handler.addFilter(expected_errors)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # DEBUG applies only to "serving": debug records of libraries contain user data (vLLM logs the
    # names of unknown fields, gRPC logs metadata).
    others = max(level, logging.INFO)
    root.setLevel(others)
    # Set explicitly for "serving", because a library imported by vLLM changes the root level.
    logging.getLogger("serving").setLevel(level)
    for name, quiet in _QUIET.items():
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(others if level == logging.DEBUG else max(level, quiet))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def expected_errors(record: logging.LogRecord) -> bool:
    """Drop vLLM's records about failed requests, which are reported in the request's log line.

    These are records with a ``ServingError`` or ``VLLMClientError`` (matched by name, so that vLLM
    is not imported here), and errors of vLLM's entrypoints without a traceback.

    Returns:
        Whether to keep the record.
    """
    error = record.exc_info[1] if record.exc_info else None
    client_error = any(cls.__name__ == "VLLMClientError" for cls in type(error).__mro__)
    if record.name.startswith("vllm") and (isinstance(error, ServingError) or client_error):
        return False
    error_response = record.levelno == logging.ERROR and error is None
    return not (error_response and record.name.startswith("vllm.entrypoints"))


def log_request(line: RequestLine) -> None:
    """Write the log line of a finished request."""
    if not logging.getLogger(_REQUEST_LOG).isEnabledFor(logging.INFO):
        return
    fields_set = {
        name: value for name in _LINE_FIELDS if (value := getattr(line, name)) is not None
    }
    fields_set["duration"] = round(line.duration, 6)
    if line.ttft is not None:
        fields_set["ttft"] = round(line.ttft, 6)
    if line.waited is not None:
        fields_set["waited"] = round(line.waited, 6)
    structlog.get_logger(_REQUEST_LOG).info("request", **fields_set)


def _process_name(process: str) -> Any:
    def add(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["process"] = process
        return event

    return add
