"""vLLM's log without the tracebacks of requests that were wrong.

vLLM logs what ends a stream with a traceback, whoever is at fault. What the client did wrong is in
its answer and in the request's log line; a traceback for each would let clients fill the log.
"""

import logging
from http import HTTPStatus

from vllm.entrypoints.anthropic import api_router
from vllm.entrypoints.anthropic import serving as messages
from vllm.entrypoints.openai.chat_completion import serving as chat
from vllm.entrypoints.openai.completion import serving as completion

from serving.vllm_adapter.error_response import response_of

_MODULES = (chat, completion, messages, api_router)
"""Modules of vLLM that log the exceptions of requests."""


class ClientErrorFilter(logging.Filter):
    """Drops records about exceptions whose answer has a status below 500."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is written."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, Exception):
            return True
        status: int = response_of(error).error.code
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR


_FILTER = ClientErrorFilter()


def quiet_client_errors() -> None:
    """Install the filter, once however often it is called."""
    for module in _MODULES:
        logging.getLogger(module.__name__).addFilter(_FILTER)
