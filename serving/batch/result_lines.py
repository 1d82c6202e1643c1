"""Lines of result files, with OpenAI's fields."""

from typing import Any

import msgspec


def content_of(custom_id: str | None, *, response: Any = None, error: Any = None) -> bytes:
    """Return a line of a result file without its id.

    Args:
        custom_id: The line's custom_id. None if it could not be read.
        response: Status code, request id and body. None: the line was not run.
        error: Code and message. None: the line has a response.
    """
    return msgspec.json.encode({"custom_id": custom_id, "response": response, "error": error})


def response_of(status: int, request_id: str, body: bytes) -> dict[str, Any]:
    """Return the response of a line; ``body`` is JSON."""
    return {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
