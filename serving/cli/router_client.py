"""What the commands ask a router over REST. Standard library only: ``status`` answers at once."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from serving.errors import NotReady

# Proxies of the environment are for the world outside; a router here is not behind them.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get_json(url: str, timeout: float) -> tuple[int, Any]:
    """Return status and decoded body of GET ``url``; an empty body or text is ``None``.

    Raises:
        NotReady: nobody answers there.
    """
    try:
        with _opener.open(url, timeout=timeout) as answer:
            return answer.status, _decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _decode(error.read())
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise NotReady(f"no router answers at {url}: {_reason(error)}") from error


def stream_chat(
    base_url: str, model: str, question: str, timeout: float
) -> Iterator[tuple[str, str]]:
    """Ask ``question`` and yield what comes: ("reasoning" or "content", text).

    Raises:
        NotReady: the router does not answer or refuses; the message has its words.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "temperature": 0,
        "max_tokens": 256,
    }
    request = urllib.request.Request(  # noqa: S310  our own http URL
        f"{base_url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
        method="POST",
    )
    try:
        with _opener.open(request, timeout=timeout) as answer:
            for line in answer:
                yield from _pieces(line.decode("utf-8", "replace").strip())
    except urllib.error.HTTPError as error:
        with error:
            said = _decode(error.read())
        raise NotReady(f"the router answered {error.code}: {_message(said)}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise NotReady(f"the router stopped answering: {_reason(error)}") from error


def _pieces(line: str) -> Iterator[tuple[str, str]]:
    """Yield the text in one server-sent event line."""
    if not line.startswith("data:") or line == "data: [DONE]":
        return
    event = _decode(line.removeprefix("data:").encode())
    if not isinstance(event, Mapping):
        return
    if "error" in event:
        raise NotReady(f"the answer broke off: {_message(event)}")
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        # vLLM calls the field reasoning; other servers and older vLLM reasoning_content.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning:
            yield "reasoning", reasoning
        if delta.get("content"):
            yield "content", delta["content"]


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body) if body.strip() else None
    except ValueError:
        return None


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        return str(error.get("message", error))
    return str(error)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", "")) or str(error) or type(error).__name__
