"""Logs of all processes: structured, one line per request, never a prompt or an answer.

JSON off a terminal, readable on one. vLLM's and uvicorn's records take the same way out.
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

# Loggers that say at INFO what only their own developers need, and the level they get instead.
# vLLM's warnings are about choices that are made for it here (eager mode, CPU); its errors stay.
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

# structlog's own default shows the variables of every frame: prompts and keys among them.
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


@dataclass(frozen=True, slots=True)
class RequestLine:
    """What is said about a finished request."""

    request_id: str
    protocol: str
    """rest or grpc."""
    method: str
    """Route or rpc."""
    model: str
    outcome: str
    """ok, cancelled, or the reason of the error (see ``serving.errors.ERROR_TABLE``)."""
    status: str
    """HTTP status or gRPC status name."""
    duration: float
    """Seconds."""
    ttft: float | None = None
    """Seconds to the first part of a streamed answer, else to the first token; none without."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tenant: str | None = None
    priority: str | None = None
    waited: float | None = None
    """Seconds in the admission queue, parked time included."""
    resumes: int | None = None
    """How often it went on elsewhere after its group was lost."""
    parked: bool | None = None
    """Whether it waited because no group was ready; only said if so."""
    group: str | None = None
    """Where it ran, at last."""
    rank: int | None = None
    cached_tokens: int | None = None
    """Prompt tokens that came from a KV cache."""
    trace_id: str | None = None
    """Of the request's trace, if it has one."""


_REQUEST_LOG = "serving.request"
_LINE_FIELDS = tuple(field.name for field in fields(RequestLine))


def configure_logs(settings: TelemetrySettings, *, process: str) -> None:
    """Send all log records of this process to stderr in one form.

    Args:
        settings: level and form.
        process: stands in every line: router, rank …
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
                _naming(process),
                *renderers,
            ],
        )
    )
    handler.addFilter(expected_errors)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Debug is for ours alone: libraries' debug records hold what users send (vLLM's, names of
    # unknown fields; gRPC's, metadata).
    others = max(level, logging.INFO)
    root.setLevel(others)
    # Said again for ours: a library that vLLM's app imports lowers the root's level.
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
    """Drop what vLLM's handlers say about bad requests: the request's own line has it.

    That is errors of ours and those that blame the request (vLLM's class for them is known here
    by name only) with their tracebacks, and errors without any: those are answers.
    """
    error = record.exc_info[1] if record.exc_info else None
    blames_request = any(cls.__name__ == "VLLMClientError" for cls in type(error).__mro__)
    if record.name.startswith("vllm") and (isinstance(error, ServingError) or blames_request):
        return False
    answered = record.levelno == logging.ERROR and error is None
    return not (answered and record.name.startswith("vllm.entrypoints"))


def log_request(line: RequestLine) -> None:
    """Write the one line about a finished request."""
    if not logging.getLogger(_REQUEST_LOG).isEnabledFor(logging.INFO):
        return
    said = {name: value for name in _LINE_FIELDS if (value := getattr(line, name)) is not None}
    said["duration"] = round(line.duration, 6)
    if line.ttft is not None:
        said["ttft"] = round(line.ttft, 6)
    if line.waited is not None:
        said["waited"] = round(line.waited, 6)
    structlog.get_logger(_REQUEST_LOG).info("request", **said)


def _naming(process: str) -> Any:
    def add(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["process"] = process
        return event

    return add
