"""What the commands ask a router over REST. Standard library only: ``status`` answers at once."""

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from serving.client.credentials import NO_ACCESS, Access
from serving.errors import NotReady

_UNREACHABLE = (
    urllib.error.URLError,
    TimeoutError,
    ConnectionError,
    http.client.HTTPException,
    ssl.SSLError,
)
_OTHER_NAME = frozenset({62, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_UNKNOWN_AUTHORITY = frozenset({18, 19, 20, 21})
"""Self-signed, or no issuer that is trusted."""


def get_json(url: str, timeout: float, access: Access = NO_ACCESS) -> tuple[int, Any]:
    """Return status and decoded body of GET ``url``; an empty body or text is ``None``.

    Raises:
        NotReady: nobody answers there.
    """
    try:
        request = urllib.request.Request(url, headers=access.headers())  # noqa: S310  our own URL
        with _opener(url, access).open(request, timeout=timeout) as answer:
            return answer.status, _decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _decode(error.read())
    except _UNREACHABLE as error:
        raise NotReady(f"no router answers at {url}: {_reason(error)}") from error


def stream_chat(
    base_url: str, model: str, question: str, timeout: float, access: Access = NO_ACCESS
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
        headers={"content-type": "application/json", **access.headers()},
        method="POST",
    )
    try:
        with _opener(base_url, access).open(request, timeout=timeout) as answer:
            for line in answer:
                yield from _pieces(line.decode("utf-8", "replace").strip())
    except urllib.error.HTTPError as error:
        with error:
            said = _decode(error.read())
        raise NotReady(f"the router answered {error.code}: {message_of(said)}") from error
    except _UNREACHABLE as error:
        raise NotReady(f"the router stopped answering: {_reason(error)}") from error


def _opener(url: str, access: Access) -> urllib.request.OpenerDirector:
    # Proxies of the environment are for the world outside; a router here is not behind them.
    direct = urllib.request.ProxyHandler({})
    if not url.startswith("https:"):
        return urllib.request.build_opener(direct)
    tls = urllib.request.HTTPSHandler(context=access.ssl_context())
    return urllib.request.build_opener(direct, tls)


def _pieces(line: str) -> Iterator[tuple[str, str]]:
    """Yield the text in one server-sent event line."""
    if not line.startswith("data:") or line == "data: [DONE]":
        return
    event = _decode(line.removeprefix("data:").encode())
    if not isinstance(event, Mapping):
        return
    if "error" in event:
        raise NotReady(f"the answer broke off: {message_of(event)}")
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


def message_of(body: Any) -> str:
    """Return the words of an error body, or the body."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        return str(error.get("message", error))
    return str(error)


def _reason(error: BaseException) -> str:
    """Return what went wrong, and for TLS what to do about it."""
    cause = getattr(error, "reason", "")
    if not isinstance(cause, BaseException):
        said = str(cause) or str(error) or type(error).__name__
        if isinstance(error, http.client.HTTPException):
            return f"{said}: is this an https:// address?"
        return said
    code = getattr(cause, "verify_code", None)
    if code in _OTHER_NAME:
        return f"{cause}: say which name it has with --tls-server-name NAME"
    if code in _UNKNOWN_AUTHORITY:
        return f"{cause}: name its authority with --ca-file FILE (ca.crt of the TLS secret)"
    if "WRONG_VERSION_NUMBER" in str(cause) or "RECORD_LAYER_FAILURE" in str(cause):
        return f"{cause}: it speaks no TLS, is this an http:// address?"
    return str(cause) or type(cause).__name__
